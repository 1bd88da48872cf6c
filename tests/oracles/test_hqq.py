"""HQQ loads what is written for it, and decodes the same values."""

from pathlib import Path

import numpy as np
import pytest
import qconvert
import torch
from carried import converted
from exact_ways import Make, ways_to
from hqq.core.quantize import HQQBackend, HQQLinear
from safetensors.torch import load_file

from qformat.formats import gguf
from qformat.tensor import from_values

HQQ = Path(__file__).parents[2] / "spec/vectors/hf/hqq"
WAYS = ways_to("hqq")
VARIANTS = sorted(path.parent for path in HQQ.glob("*/model.safetensors"))


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    """Load every module of a folder into the peer's layer, and decode it there."""
    stored, found = load_file(folder / "model.safetensors"), {}
    HQQLinear.set_backend(HQQBackend.PYTORCH)
    for module in [name.removesuffix(".W_q") for name in stored if name.endswith(".W_q")]:
        layer = HQQLinear(None, None, compute_dtype=stored[f"{module}.scale"].dtype, device="cpu", initialize=False)
        layer.load_state_dict({name[len(module) + 1 :]: t for name, t in stored.items() if name.startswith(f"{module}.")})
        found[f"{module}.weight"] = layer.dequantize()
    return found


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.name)
def test_what_is_written_decodes_as_the_stored_checkpoint_does(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "kept.qfmt")
    qconvert.convert(tmp_path / "kept.qfmt", tmp_path / "folder", to="hqq")

    found, expected = decoded(tmp_path / "folder"), load_file(path / "expected.safetensors")

    assert found.keys() == {name for name in expected if not name.endswith(".float32")}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


def test_blocks_of_gguf_are_the_same_here(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    codes, scales = rng.integers(-8, 8, (6, 64)).astype(np.int8), rng.standard_normal((6, 2)).astype(np.float16)
    source = from_values(gguf.Q4_0, (6, 64), {"codes": codes, "scales": scales})

    assert torch.equal(decoded(converted(source, "hqq", tmp_path))["m.weight"], torch.from_numpy(source.dequantize("float16")))


@pytest.mark.parametrize(("make", "target"), WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, target: str, tmp_path: Path) -> None:
    tensor = make()

    found = decoded(converted(tensor, target, tmp_path))["m.weight"]

    assert torch.equal(found, torch.from_numpy(tensor.dequantize(str(found.dtype).removeprefix("torch."))))
