"""torchao makes the stored MXFP4 groups again, byte for byte."""

import mxfp4
import numpy as np
import pytest


@pytest.mark.parametrize("mode", ["floor", "ceil", "rceil", "even"])
def test_quantizing_the_stored_input_gives_the_stored_groups(mode: str) -> None:
    stored = np.load(mxfp4.STORED)

    scales, codes = mxfp4.torchao(stored["x"], mode)

    assert scales.tobytes() == stored[f"torchao_{mode}.scales"].tobytes()
    assert codes.tobytes() == stored[f"torchao_{mode}.codes"].tobytes()
