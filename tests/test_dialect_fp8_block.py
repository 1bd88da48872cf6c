"""Block FP8 checkpoints: decoded, written back, converted, and refused where scales do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from carried import written_again
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, same_floats, stored
from numpy.typing import NDArray

from qformat.errors import FileError, NotExact

FOLDER = VECTORS / "hf" / "fp8-block"
WEIGHT = "model.layers.0.mlp.up_proj.weight"
VARIANTS = {"deepseek-128": "fp8-block:f32", "deepseek-128-ue8m0": "fp8-block:ue8m0"}
RNG = np.random.default_rng(43)
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}
UE8M0 = {**FP8, "scale_fmt": "ue8m0"}
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def codes(*shape: int) -> NDArray[Any]:
    """Make E4M3 weights of every code."""
    return RNG.integers(0, 256, shape, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)


def exponents(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(100, 140, shape, dtype=np.uint8)


def matrix(scales: NDArray[Any], *shape: int) -> Arrays:
    """Make the arrays of a weight."""
    return {"m.weight": codes(*shape), "m.weight_scale_inv": scales}


def spread(scales: NDArray[np.float32], rows: int, cols: int, block: tuple[int, int] = (128, 128)) -> NDArray[np.float32]:
    """Repeat each scale over its block."""
    return np.repeat(np.repeat(scales, block[0], axis=-2), block[1], axis=-1)[..., :rows, :cols]


def config(said: dict[str, Any]) -> dict[str, Any]:
    return {"quantization_config": said}


@every_variant
def test_a_stored_weight_decodes_as_transformers_decodes_it(variant: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")

    with qconvert.open(FOLDER / variant) as model:
        tensor = model[WEIGHT]
        assert (model.dialects, model.keys()) == (("fp8-block",), (WEIGHT,))
    assert (tensor.scheme.name, tensor.shape) == (VARIANTS[variant], (128, 256))
    assert tensor.dequantize().tobytes() == expected[f"{WEIGHT}.float32"].tobytes()
    assert tensor.dequantize("bfloat16").tobytes() == expected[WEIGHT].tobytes()


@every_variant
@pytest.mark.parametrize("through", ["fp8-block", "qfmt"])
def test_a_stored_checkpoint_is_written_again_array_for_array(variant: str, through: str, tmp_path: Path) -> None:
    made, counts = written_again(FOLDER / variant, "fp8-block", through, tmp_path)

    assert counts == {"same-bytes": 1}
    assert stored(made) == stored(FOLDER / variant)
    if through != "qfmt":
        assert json.loads((made / "config.json").read_text()) == json.loads((FOLDER / variant / "config.json").read_text())


HELD: list[tuple[str, NDArray[Any], dict[str, Any]]] = [
    ("float32", RNG.standard_normal((2, 2)).astype(np.float32), FP8),
    ("bfloat16", RNG.standard_normal((2, 2)).astype(ml_dtypes.bfloat16), FP8),
    ("e8m0", exponents(2, 2).view(ml_dtypes.float8_e8m0fnu), UE8M0),
    ("bytes", exponents(2, 2), UE8M0),
    ("of another block", RNG.standard_normal((3, 7)).astype(np.float32), {**FP8, "weight_block_size": [64, 32]}),
    ("one for the tensor", np.array(0.25, np.float32), {**FP8, "weight_block_size": None}),
]


@pytest.mark.parametrize(("scales", "said"), [case[1:] for case in HELD], ids=[case[0] for case in HELD])
def test_blocks_may_end_short_on_both_axes_with_scales_of_any_type(
    scales: NDArray[Any], said: dict[str, Any], tmp_path: Path
) -> None:
    held = matrix(scales, 150, 200)
    block = said["weight_block_size"] or (150, 200)
    factors = scales.view(ml_dtypes.float8_e8m0fnu) if scales.dtype == np.uint8 else scales
    expected = held["m.weight"].astype(np.float32) * spread(np.atleast_2d(factors.astype(np.float32)), 150, 200, block)
    source = checkpoint(tmp_path / "source", held, config(said))

    with qconvert.open(source) as model:
        assert same_floats(model["m.weight"].dequantize(), expected)
    qconvert.convert(source, tmp_path / "again", to="fp8-block")
    assert stored(tmp_path / "again") == stored(source)
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config(said)


def test_experts_are_stacks_with_the_scale_beside_them(tmp_path: Path) -> None:
    scales = RNG.standard_normal((3, 2, 2)).astype(np.float32)
    held = {"mlp.experts.down_proj": codes(3, 256, 200), "mlp.experts.down_proj_scale_inv": scales}
    source = checkpoint(tmp_path / "source", held, config(FP8))

    with qconvert.open(source) as model:
        decoded = model["mlp.experts.down_proj"].dequantize()
    assert same_floats(decoded, held["mlp.experts.down_proj"].astype(np.float32) * spread(scales, 256, 200))
    qconvert.convert(source, tmp_path / "again", to="fp8-block")
    assert stored(tmp_path / "again") == stored(source)


def test_the_config_tells_what_is_dense_what_experts_are_and_that_activations_are_static(tmp_path: Path) -> None:
    held = matrix(exponents(1, 1).view(ml_dtypes.float8_e8m0fnu), 64, 64)
    held |= {"e.weight": RNG.integers(-128, 128, (4, 32), dtype=np.int8), "e.weight_scale_inv": exponents(4, 2)}
    held |= {"lm_head.weight": np.ones((4, 64), np.float32), "norm.weight": np.ones(64, np.float32)}
    held |= {"m.activation_scale": np.ones((), np.float32)}
    source = checkpoint(tmp_path / "source", held, config(UE8M0))

    qconvert.convert(source, tmp_path / "again", to="fp8-block")

    assert stored(tmp_path / "again") == stored(source)
    expected = {**UE8M0, "activation_scheme": "static", "expert_dtype": "fp4", "modules_to_not_convert": ["lm_head"]}
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config(expected)


def test_what_the_config_says_besides_stays_with_weights_that_stay(tmp_path: Path) -> None:
    """Float scales that are powers of two, as activations' are to be: "scale_fmt" says it, no array does."""
    said = {**UE8M0, "more": 1}
    source = checkpoint(tmp_path / "source", matrix(np.full((1, 1), 0.5, np.float32), 64, 64), config(said))

    qconvert.convert(source, tmp_path / "again", to="fp8-block")
    qconvert.convert(source, tmp_path / "changed", to="fp8-block:bf16")

    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config(said)
    assert json.loads((tmp_path / "changed" / "config.json").read_text()) == config(FP8)


def test_experts_of_two_codes_in_a_byte_are_mxfp4(tmp_path: Path) -> None:
    held: Arrays = {"m.weight": RNG.integers(-128, 128, (4, 32), dtype=np.int8), "m.weight_scale_inv": exponents(4, 2)}
    levels = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    nibbles = held["m.weight"].view(np.uint8)
    values = levels[np.stack([nibbles & 15, nibbles >> 4], axis=-1).reshape(4, 64)]
    factors = np.ldexp(np.float32(1), held["m.weight_scale_inv"].astype(np.int32) - 127)

    with qconvert.open(checkpoint(tmp_path / "source", held, config(UE8M0))) as model:
        assert model["m.weight"].shape == (4, 64)
        assert model["m.weight"].dequantize().tobytes() == (values * np.repeat(factors, 32, axis=1)).tobytes()
    for step, target in enumerate(["gpt-oss", "fp8-block:ue8m0"]):
        qconvert.convert(tmp_path / ("source" if step == 0 else "0"), tmp_path / str(step), to=target)
    back = stored(tmp_path / "1")
    assert back["m.weight"] == stored(tmp_path / "source")["m.weight"]
    assert back["m.weight_scale_inv"][2] == stored(tmp_path / "source")["m.weight_scale_inv"][2]


def test_exponents_become_floats_and_floats_that_are_powers_of_two_become_exponents(tmp_path: Path) -> None:
    source = FOLDER / "deepseek-128-ue8m0"

    for step, kind in enumerate(["f32", "bf16", "ue8m0"]):
        report = qconvert.convert(
            source if step == 0 else tmp_path / str(step - 1), tmp_path / str(step), to=f"fp8-block:{kind}"
        )
        assert [(item.target, item.verdict.verdict) for item in report.plan.items] == [(f"fp8-block:{kind}", "exact")]

    assert stored(tmp_path / "2") == stored(source)


def test_other_floats_are_no_exponents(tmp_path: Path) -> None:
    with pytest.raises(NotExact, match=r"scales rounds .*use --allow rounded"):
        qconvert.convert(FOLDER / "deepseek-128", tmp_path / "made", to="fp8-block:ue8m0")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("kind", ["f32", "ue8m0"])
def test_groups_that_agree_in_a_block_become_one_scale(kind: str, tmp_path: Path) -> None:
    """MXFP8 whose exponents are those of blocks of 128 x 128; 9 row groups, so that several tiles are judged and written."""
    rows, cols = 1100, 2080
    blocks = exponents(9, 17)
    held: Arrays = {"m.weight": codes(rows, cols).view(np.uint32), "m.scales": spread(blocks, rows, cols // 32, (128, 4))}
    source = checkpoint(tmp_path / "source", held)
    with qconvert.open(source) as model:
        expected = model["m.weight"].dequantize()

    assert qconvert.convert(source, tmp_path / "made", to=f"fp8-block:{kind}").plan.counts() == {"exact": 1}

    with qconvert.open(tmp_path / "made") as model:
        assert same_floats(model["m.weight"].dequantize(), expected)


Change = Callable[[Arrays], dict[str, Any]]
W, S = "m.weight", "m.weight_scale_inv"
BROKEN: list[tuple[str, Change, dict[str, Any], str]] = [
    ("fewer scales", lambda m: {S: m[S][:, :1]}, FP8, "found float32 2 x 1, expected float32 or bfloat16 or"),
    ("scales on one axis", lambda m: {S: m[S].reshape(-1)}, FP8, "2 x 2 (a scale for each 128 x 128 weights of 'm.weight')"),
    ("another block", lambda m: {}, {**FP8, "weight_block_size": [64, 64]}, "3 x 4 (a scale for each 64 x 64 weights of"),
    ("scales of another type", lambda m: {S: m[S].astype(np.int8)}, FP8, "found int8 2 x 2, expected float32 or bfloat16"),
    ("a lone axis", lambda m: {W: m[W][0], S: m[S][0]}, FP8, "found 1 dimensions, expected a matrix or a stack of them"),
    ("a block over two matrices", lambda m: {W: codes(2, 150, 200), S: np.ones((2, 2, 2), np.float32)}, FP8, "150 rows"),
    ("float scales of nibbles", lambda m: {W: np.ones((4, 32), np.int8)}, FP8, "expected float8_e8m0fnu or uint8 4 x 2"),
    ("a block of one number", lambda m: {}, {**FP8, "weight_block_size": [128]}, "[128], expected two positive integers"),
    ("a block of text", lambda m: {}, {**FP8, "weight_block_size": "128"}, "'128', expected two positive integers"),
    ("a block of nothing", lambda m: {}, {**FP8, "weight_block_size": [0, 128]}, "[0, 128], expected two positive integers"),
    ("no weight", lambda m: {W: None}, FP8, "is a part of a packed weight whose other arrays are missing"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_arrays_that_do_not_fit_are_refused(change: Change, said: dict[str, Any], message: str, tmp_path: Path) -> None:
    whole = matrix(np.ones((2, 2), np.float32), 150, 200)
    held = {name: array for name, array in {**whole, **change(whole)}.items() if array is not None}

    with pytest.raises(FileError) as caught, qconvert.open(checkpoint(tmp_path / "m", held, config(said))) as model:
        model["m.weight"]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
