"""Packed tensors without a weight: every target holds or refuses them in words."""

import math
from pathlib import Path

import pytest
import qconvert
from handmade_gguf import gguf, info
from qconvert.naming import as_wanted
from qconvert.planning import make_plan
from qconvert.targets import packed_targets

TYPES = {"q4_0": 2, "q8_0": 8, "q4_k": 12}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dims", [(256, 0), (0, 4), (0, 0)], ids=str)
def test_a_packed_tensor_without_weights_is_held_or_refused(tmp_path: Path, kind: str, dims: tuple[int, int]) -> None:
    (tmp_path / "a.gguf").write_bytes(gguf([], [info("m.weight", dims, TYPES[kind], 0)], b""))
    assert not math.prod(dims)
    with qconvert.open(tmp_path / "a.gguf") as model:
        for target in packed_targets():
            (item,) = make_plan(as_wanted(model, target), target).items
            if target.dialect is not None:
                assert (item.verdict.verdict, item.verdict.field) == ("refused", "shape"), target.name
                assert "holds no weights" in item.verdict.reason
            elif target.name in ("qfmt", "gguf", f"gguf:{kind}"):
                assert item.verdict.verdict == "same-bytes", target.name
            else:
                assert item.verdict.reason, target.name
