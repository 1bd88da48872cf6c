"""mlx makes the stored MXFP4 groups again, byte for byte, and loads what is written for it with the values that we give."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mxfp4
import numpy as np
import pytest
import qconvert
from carried import converted
from conftest import VECTORS
from exact_ways import Make, ways_to, with_one_zero
from numpy.typing import NDArray

HF = VECTORS / "hf"
WAYS = ways_to("mlx")
VARIANTS = sorted(path.parent.name for path in (HF / "mlx").glob("*/model.safetensors"))
# Where else weights come from that MLX holds exactly: target, source.
OTHERS = [
    ("mlx:mxfp4", "gpt-oss-mxfp4/experts"),
    ("mlx:mxfp8", "fp8-block/deepseek-128-ue8m0"),
    ("mlx:f32", "mlx/affine-3bit-g64"),
    ("mlx:f32", "gptq/v2-4bit-g64-asym"),
]


def loaded(folder: Path, widened: bool = False) -> dict[str, NDArray[Any]]:
    """Let mlx build modules from a folder's config, load its arrays and decode them.

    widened : scales and biases are made float32 before
    """
    said = json.loads((folder / "config.json").read_text())["quantization"]
    weights: dict[str, mx.array] = mx.load(str(folder / "model.safetensors"))
    found = {}
    for name in sorted(weights):
        if not name.endswith(".scales"):
            continue
        module = name.removesuffix(".scales")
        facts = said.get(module, {key: said[key] for key in ("group_size", "bits", "mode")})
        held = {key: weights[f"{module}.{key}"] for key in ("weight", "scales", "biases") if f"{module}.{key}" in weights}
        if widened and "biases" in held:
            held |= {key: held[key].astype(mx.float32) for key in ("scales", "biases")}
        n_cols = held["weight"].shape[-1] * 32 // facts["bits"]
        layer = nn.QuantizedLinear(n_cols, held["weight"].shape[-2], bias=False, **facts)
        layer.load_weights(list(held.items()), strict=False)
        values = mx.dequantize(layer.weight, layer.scales, layer.get("biases"), dtype=mx.float32, **facts)
        found[module] = np.array(values.astype(mx.float32))
    return found


def test_quantizing_the_stored_input_gives_the_stored_groups() -> None:
    stored = np.load(mxfp4.STORED)

    scales, codes = mxfp4.mlx(stored["x"])

    assert scales.tobytes() == stored["mlx.scales"].tobytes()
    assert codes.tobytes() == stored["mlx.codes"].tobytes()


def test_the_stored_input_is_made_from_its_seed() -> None:
    stored = np.load(mxfp4.STORED)

    assert mxfp4.make_input().tobytes() == stored["x"].tobytes()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_checkpoint_that_was_written_again_loads_with_the_stored_values(variant: str, tmp_path: Path) -> None:
    qconvert.convert(HF / "mlx" / variant, tmp_path / "again", to="mlx")
    expected: dict[str, mx.array] = mx.load(str(HF / "mlx" / variant / "expected.safetensors"))

    found = loaded(tmp_path / "again")

    for module, values in found.items():
        rounded = expected[f"{module}.weight"]
        assert mx.array_equal(mx.array(values).astype(rounded.dtype), rounded)
    assert {f"{module}.weight" for module in found} == {name for name in expected if not name.endswith("float32")}


@pytest.mark.parametrize(("target", "source"), OTHERS)
def test_a_checkpoint_of_another_kind_loads_with_its_values(target: str, source: str, tmp_path: Path) -> None:
    qconvert.convert(HF / source, tmp_path / "made", to=target)

    found = loaded(tmp_path / "made")

    with qconvert.open(HF / source) as model:
        packed = {name.removesuffix(".weight"): model[name] for name in model if not model[name].scheme.is_dense}
        assert set(found) == set(packed)
        for module, tensor in packed.items():
            assert found[module].tobytes() == tensor.dequantize().tobytes()


@pytest.mark.parametrize(("make", "target"), WAYS.values(), ids=WAYS)
def test_what_is_exact_has_the_values_of_its_source(make: Make, target: str, tmp_path: Path) -> None:
    """In float32: where scales are narrower, mlx is given them widened, as it would round product and sum to their type."""
    tensor = make()

    found = loaded(converted(tensor, target, tmp_path), widened=True)["m"]

    assert with_one_zero(found).tobytes() == with_one_zero(tensor.dequantize()).tobytes()
