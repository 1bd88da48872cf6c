"""torchao makes the stored MXFP4 groups again, byte for byte; it loads what is written for it and decodes the same values."""

from pathlib import Path

import mxfp4
import numpy as np
import pytest
import qconvert
import torch
from carried import converted
from exact_ways import Make, ways_to
from safetensors import safe_open
from safetensors.torch import load_file
from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict

import qformat
from qformat.formats import gguf
from qformat.tensor import from_values

TORCHAO = Path(__file__).parents[2] / "spec/vectors/hf/torchao"
FLOATS = ("MXTensor", "NVFP4Tensor")  # whose stored values are in float32
WAYS = ways_to("torchao")
VARIANTS = sorted(path.parent for path in TORCHAO.glob("*/model.safetensors"))


def decoded(folder: Path) -> dict[str, torch.Tensor]:
    """Make the peer's tensors of a folder, and decode them there."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        found, rest = unflatten_tensor_state_dict(load_file(folder / "model.safetensors"), file.metadata())
    assert rest == {}
    return {name: t.dequantize(torch.float32) if type(t).__name__ in FLOATS else t.dequantize() for name, t in found.items()}


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.name)
def test_what_is_written_decodes_as_the_stored_checkpoint_does(path: Path, tmp_path: Path) -> None:
    with qconvert.open(path) as model:  # without the peer's own words
        qformat.save(tmp_path / "kept.qfmt", dict(model.items()))
    qconvert.convert(tmp_path / "kept.qfmt", tmp_path / "folder", to="torchao")

    expected = load_file(path / "expected.safetensors")
    found = decoded(tmp_path / "folder")

    assert found.keys() == {name for name in expected if not name.endswith(".float32")}
    assert all(torch.equal(tensor.nan_to_num(), expected[name].nan_to_num()) for name, tensor in found.items())


@pytest.mark.parametrize("target", ["torchao:int8", "torchao:int4"])
def test_blocks_of_gguf_are_the_same_here(target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    codes, scales = rng.integers(-8, 8, (6, 64)).astype(np.int8), rng.standard_normal((6, 2)).astype(np.float16)
    source = from_values(gguf.Q4_0, (6, 64), {"codes": codes, "scales": scales}, "float16")

    found = decoded(converted(source, target, tmp_path))["m.weight"]
    assert torch.equal(found, torch.from_numpy(source.dequantize("float16")))


@pytest.mark.parametrize("mode", ["floor", "ceil", "rceil", "even"])
def test_quantizing_the_stored_input_gives_the_stored_groups(mode: str) -> None:
    stored = np.load(mxfp4.STORED)

    scales, codes = mxfp4.torchao(stored["x"], mode)

    assert scales.tobytes() == stored[f"torchao_{mode}.scales"].tobytes()
    assert codes.tobytes() == stored[f"torchao_{mode}.codes"].tobytes()


@pytest.mark.parametrize(("make", "target"), WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, target: str, tmp_path: Path) -> None:
    tensor = make()

    found = decoded(converted(tensor, target, tmp_path))["m.weight"]

    assert torch.equal(found, torch.from_numpy(tensor.dequantize(str(found.dtype).removeprefix("torch."))))
