"""Python's collector rests while files are listed, and works again afterwards."""

import gc
from pathlib import Path

import numpy as np
import pytest
from qfmt.__main__ import main
from qfmt.collector import resting

import qformat


@pytest.mark.parametrize("name", ["a.qfmt", "none.qfmt"])
def test_the_collector_is_as_it_was_after_a_command_however_it_ends(name: str, tmp_path: Path) -> None:
    qformat.save(tmp_path / "a.qfmt", {"a": np.zeros(1, np.float32)})

    main(["inspect", str(tmp_path / name)])

    assert gc.isenabled()


def test_a_collector_that_rested_before_still_rests() -> None:
    gc.disable()
    try:
        with resting():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
