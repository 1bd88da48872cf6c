"""optimum-quanto loads what is written for it, by the map that is written beside, and decodes the same values."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qconvert
import torch
from carried import converted
from exact_ways import Make, ways_to
from optimum.quanto import requantize
from optimum.quanto.library.extensions.extension import get_extension
from safetensors.torch import load_file

from qformat.formats import gguf
from qformat.tensor import from_values

QUANTO = Path(__file__).parents[2] / "spec/vectors/hf/quanto"
WAYS = ways_to("quanto")
VARIANTS = sorted(path.parent for path in QUANTO.glob("*/model.safetensors"))
SHAPES = {"proj0.weight": (32, 256), "proj1.weight": (48, 128)}


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Do what the peer's extension does, which it would compile."""
    return torch.cat([packed >> bits * i & (1 << bits) - 1 for i in range(8 // bits)])


get_extension("quanto_cpp")._lib = SimpleNamespace(unpack=unpack)


def decoded(folder: Path, shapes: dict[str, tuple[int, int]], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Load a folder into linear layers of these shapes, and decode them there."""
    layers = {
        name.removesuffix(".weight"): torch.nn.Linear(n_in, n_out, bias=False, dtype=dtype)
        for name, (n_out, n_in) in shapes.items()
    }
    model = torch.nn.ModuleDict(layers)
    requantize(model, load_file(folder / "model.safetensors"), json.loads((folder / "quanto_qmap.json").read_text()))
    return {f"{name}.weight": module.weight.dequantize() for name, module in model.items()}


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.name)
def test_what_is_written_decodes_as_the_stored_checkpoint_does(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "kept.qfmt", shapes=SHAPES)
    qconvert.convert(tmp_path / "kept.qfmt", tmp_path / "folder", to="quanto")

    found, expected = decoded(tmp_path / "folder", SHAPES, torch.bfloat16), load_file(path / "expected.safetensors")

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in expected.items())


@pytest.mark.parametrize("target", ["quanto:int8", "quanto:int4"])
def test_blocks_of_gguf_are_the_same_here(target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    scales = np.repeat(np.ldexp(1, -rng.integers(1, 9, (16, 1))).astype(np.float16), 8, axis=1)
    codes = rng.integers(-8, 8, (16, 256)).astype(np.int8)
    source = from_values(gguf.Q4_0, (16, 256), {"codes": codes, "scales": scales})

    found = decoded(converted(source, target, tmp_path), {"m.weight": (16, 256)}, torch.bfloat16)["m.weight"]
    assert torch.equal(found.float(), torch.from_numpy(source.dequantize()))


@pytest.mark.parametrize(("make", "target"), WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, target: str, tmp_path: Path) -> None:
    tensor = make()
    shapes = {"m.weight": (tensor.n_rows, tensor.n_cols)}

    found = decoded(converted(tensor, target, tmp_path), shapes, torch.float32)["m.weight"]

    assert torch.equal(found.float(), torch.from_numpy(tensor.dequantize()))
