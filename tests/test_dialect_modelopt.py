"""ModelOpt checkpoints: decoded, written back, and refused where their arrays do not fit one another."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, stored
from numpy.typing import NDArray
from qconvert.exact import Recast

import qformat
from qformat.errors import FileError, NotExact, QFormatError
from qformat.formats import find, mx, nf4
from qformat.formats.modelopt import w4a16
from qformat.methods.awq import carried
from qformat.tensor import PackedTensor, from_values

FOLDER = VECTORS / "hf" / "modelopt"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj")
NAMED = {"quantization_config": {"quant_method": "modelopt"}}
RNG = np.random.default_rng(104)
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_module = pytest.mark.parametrize("module", MODULES)


def random_bytes(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def row_pairs(columns: bool = False) -> Arrays:
    """Make a 6 x 64 matrix of 4-bit integers in groups of 32."""
    found: Arrays = {"m.weight": random_bytes(3, 64), "m.weight_scale": RNG.standard_normal((6, 2)).astype(np.float16)}
    return found | ({"m.pre_quant_scale": RNG.standard_normal(64).astype(np.float16)} if columns else {})


def decode_pairs(found: Arrays) -> NDArray[np.float32]:
    """Decode it by plain NumPy."""
    data = found["m.weight"]
    codes = np.stack([data & 15, data >> 4], axis=1).reshape(6, 64).astype(np.int8)
    scales = np.repeat(found["m.weight_scale"].astype(np.float32), 32, axis=1)
    weights = (codes - 16 * (codes > 7)).astype(np.float32) * scales
    return weights * found["m.pre_quant_scale"].astype(np.float32) if "m.pre_quant_scale" in found else weights


def nvfp4() -> Arrays:
    scales = RNG.integers(1, 0x7F, (4, 2), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    return {"m.weight": random_bytes(4, 16), "m.weight_scale": scales, "m.weight_scale_2": np.array(0.037, np.float32)}


def mxfp4() -> Arrays:
    return {"m.weight": random_bytes(4, 32), "m.weight_scale": RNG.integers(100, 140, (4, 2), dtype=np.uint8)}


def fp8(scale: NDArray[np.float32]) -> Arrays:
    codes = RNG.integers(0, 0x7F, (4, 10), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    return {"m.weight": codes, "m.weight_scale": scale}


@every_module
def test_stored_nvfp4_decodes_as_modelopt_decodes_it(module: str) -> None:
    expected = arrays(FOLDER / "nvfp4" / "expected.safetensors")[f"{module}.weight.float32"]

    with qconvert.open(FOLDER / "nvfp4") as model:
        assert model[f"{module}.weight"].dequantize().tobytes() == expected.tobytes()


@every_module
def test_stored_mxfp4_decodes_as_modelopt_decodes_it(module: str) -> None:
    expected = arrays(FOLDER / "mxfp4" / "expected.safetensors")[f"{module}.weight"]

    with qconvert.open(FOLDER / "mxfp4") as model:
        assert model[f"{module}.weight"].dequantize("bfloat16").tobytes() == expected.tobytes()


@every_module
def test_stored_row_pairs_hold_the_codes_that_modelopt_packed(module: str) -> None:
    expected = arrays(FOLDER / "w4a16-awq-g128" / "expected.safetensors")[f"{module}.codes"]
    scales = arrays(FOLDER / "w4a16-awq-g128" / "model.safetensors")[f"{module}.weight_scale"]

    with qconvert.open(FOLDER / "w4a16-awq-g128") as model:
        tensor = model[f"{module}.weight"]
        assert np.array_equal(tensor.codes(), expected)
        weights = expected.astype(np.float32) * np.repeat(scales.astype(np.float32), 128, axis=1)
        assert tensor.dequantize().tobytes() == weights.tobytes()


@every_variant
def test_a_stored_checkpoint_is_written_back_array_for_array(variant: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "again", to="modelopt")

    assert stored(tmp_path / "again") == stored(FOLDER / variant)


@every_variant
def test_a_stored_checkpoint_comes_back_out_of_qfmt(variant: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "a.qfmt")
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "again", to="modelopt")

    assert stored(tmp_path / "again") == stored(FOLDER / variant)


@pytest.mark.parametrize(
    ("variant", "facts"),
    [
        ("nvfp4", {"quant_algo": "NVFP4", "group_size": 16}),
        ("mxfp4", {"quant_algo": "MXFP4", "group_size": 32}),
        (
            "w4a16-awq-g128",
            {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False, "pre_quant_scale": False},
        ),
    ],
)
def test_the_config_says_what_the_tensors_are(variant: str, facts: dict[str, Any], tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "again", to="modelopt")

    config = json.loads((tmp_path / "again" / "config.json").read_text())
    beside = json.loads((tmp_path / "again" / "hf_quant_config.json").read_text())
    shared = {"producer": {"name": "modelopt"}}
    assert config["model_type"] == "llama"
    assert config["quantization_config"] == {"quant_method": "modelopt", **facts, "ignore": [], **shared}
    assert beside == {**shared, "quantization": {**facts, "kv_cache_quant_algo": None, "exclude_modules": []}}


@pytest.mark.parametrize("scale", [np.float32(0.3), np.float32([0.3, -2, 0, 5e-7])], ids=["tensor", "rows"])
def test_fp8_has_a_scale_for_the_tensor_or_for_each_row(scale: NDArray[np.float32], tmp_path: Path) -> None:
    found = fp8(np.asarray(scale))
    folder = checkpoint(tmp_path / "a", found, NAMED)
    expected = found["m.weight"].astype(np.float32) * np.reshape(scale, (-1, 1))

    with qconvert.open(folder) as model:
        assert model["m.weight"].dequantize().tobytes() == expected.tobytes()
    qconvert.convert(folder, tmp_path / "b", to="modelopt:fp8")
    assert stored(tmp_path / "b") == stored(folder)


def test_the_scale_of_the_input_is_part_of_the_weight(tmp_path: Path) -> None:
    found = row_pairs(columns=True)
    folder = checkpoint(tmp_path / "a", found, NAMED)

    with qconvert.open(folder) as model:
        assert list(model) == ["m.weight"]
        assert model["m.weight"].dequantize().tobytes() == decode_pairs(found).tobytes()
    qconvert.convert(folder, tmp_path / "b", to="modelopt")
    assert stored(tmp_path / "b") == stored(folder)
    config = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    assert config["pre_quant_scale"] is True


def test_other_formats_have_no_place_for_the_scale_of_the_input(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", row_pairs(columns=True), NAMED)

    with pytest.raises(NotExact, match=r"m\.weight"):
        qconvert.convert(folder, tmp_path / "b.gguf", to="gguf:q4_0")


def test_arrays_without_any_config_are_known_by_their_types(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", nvfp4())

    with qconvert.open(folder) as model:
        assert (model.dialects, model["m.weight"].scheme.name) == (("modelopt",), "modelopt:nvfp4")


def test_several_kinds_are_named_module_by_module(tmp_path: Path) -> None:
    pairs = {name.replace("m.", "n."): array for name, array in row_pairs().items()}
    dense = {"lm_head.weight": np.ones((4, 4), np.float16), "norm.weight": np.ones(4, np.float16)}
    folder = checkpoint(tmp_path / "a", {**nvfp4(), **pairs, **dense}, NAMED)

    qconvert.convert(folder, tmp_path / "b", to="modelopt")

    said = json.loads((tmp_path / "b" / "config.json").read_text())["quantization_config"]
    assert (said["quant_algo"], said["ignore"]) == ("MIXED_PRECISION", ["lm_head"])
    assert said["quantized_layers"]["m"] == {"quant_algo": "NVFP4", "group_size": 16}
    assert said["quantized_layers"]["n"]["quant_algo"] == "W4A16_AWQ"
    assert stored(tmp_path / "b") == stored(folder)


def test_the_config_of_an_older_repository_lies_beside(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", row_pairs(), {"model_type": "llama"})
    said = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A16_AWQ", "group_size": 64}}
    (folder / "hf_quant_config.json").write_text(json.dumps(said))

    with pytest.raises(FileError, match="groups of 32 weights, expected 64 as the config says"):
        qconvert.open(folder)


@pytest.mark.parametrize("said", [None, [], "NVFP4"])
def test_a_config_beside_that_says_nothing_contradicts_nothing(said: object, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", row_pairs())
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": said}))

    with qconvert.open(folder) as model:
        assert model.dialects == ("modelopt",)


def altered(found: Arrays, name: str, array: NDArray[Any] | None) -> Arrays:
    """Replace one array, or leave it out."""
    return {key: value for key, value in found.items() if key != name} | ({} if array is None else {name: array})


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (altered(nvfp4(), "m.weight_scale", np.ones((4, 3), ml_dtypes.float8_e4m3fn)), "4 x 3, expected float8_e4m3fn 4 x 2"),
        (altered(nvfp4(), "m.weight_scale_2", np.ones(2, np.float32)), "float32 2, expected float32 scalar"),
        (altered(nvfp4(), "m.weight_scale_2", np.array(1, np.float16)), "float16 scalar, expected float32 scalar"),
        (altered(nvfp4(), "m.weight_scale_2", None), "without a weight_scale_2"),
        (altered(nvfp4(), "m.weight_scale", None), "other arrays are missing"),
        (mxfp4() | {"m.weight_scale_2": np.array(1, np.float32)}, "with a weight_scale_2"),
        (mxfp4() | {"m.pre_quant_scale": np.ones(64, np.float16)}, "pre_quant_scale beside MXFP4"),
        (altered(mxfp4(), "m.weight_scale", random_bytes(4, 1)), "4 x 1, expected uint8 4 x 2"),
        (altered(mxfp4(), "m.weight", random_bytes(4, 2, 16)), "4 x 2 x 16, expected uint8 any x any"),
        (altered(mxfp4(), "m.weight", random_bytes(0, 32)), "0 x 64 weights"),
        (altered(row_pairs(), "m.weight_scale", np.ones((3, 2), np.float16)), "3 x 2, expected float16 6 x any"),
        (altered(row_pairs(), "m.weight_scale", np.ones((6, 5), np.float16)), "5 scales for a row of 64 weights"),
        (altered(row_pairs(), "m.weight_scale", np.ones((6, 0), np.float16)), "0 scales for a row of 64 weights"),
        (row_pairs() | {"m.pre_quant_scale": np.ones(63, np.float16)}, "float16 63, expected"),
        (fp8(np.ones(3, np.float32)), "float32 3, expected float32 4"),
        (fp8(np.ones((2, 2), np.float32)), "2 x 2, expected float32 scalar"),
    ],
)
def test_parts_that_do_not_fit_are_refused(found: Arrays, says: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", found, NAMED)

    with pytest.raises(FileError, match=says) as caught:
        qconvert.open(folder)

    assert caught.value.tensor is not None
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("mlx/nvfp4", "modelopt:nvfp4", "scale of the tensor 1"),
        ("mlx/mxfp4", "modelopt:mxfp4", "levels matched"),
        ("gptq/v1-4bit-g64-sym", "modelopt:w4a16-awq", "code - zero"),
        ("modelopt/w4a16-awq-g128", "gguf:q4_0", "codes copied"),
        ("modelopt/w4a16-awq-g128", "gptq:v2", "code + 8"),
        ("modelopt/mxfp4", "gguf:mxfp4", "levels x 2"),
    ],
)
def test_conversion_to_and_from_other_ecosystems_is_exact(source: str, target: str, reason: str, tmp_path: Path) -> None:
    dst = tmp_path / ("a.gguf" if target.startswith("gguf") else "a")
    report = qconvert.convert(VECTORS / "hf" / source, dst, to=target)

    assert {item.verdict.verdict for item in report.plan.items} == {"exact"}
    assert all(reason in item.verdict.reason for item in report.plan.items)


def test_a_divisor_whose_reciprocal_gives_other_scales_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotExact, match=r"global_scale rounds \(1, .*nearest: modelopt:nvfp4 with --allow rounded"):
        qconvert.convert(VECTORS / "hf" / "compressed-tensors" / "nvfp4a16", tmp_path / "a", to="modelopt:nvfp4")


def test_exponents_beyond_e4m3_are_shared_with_the_scale_of_the_tensor(tmp_path: Path) -> None:
    exponents = np.array([[90, 95], [92, 98]], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    tensor = from_values(mx.MXFP4, (2, 64), {"codes": RNG.integers(0, 16, (2, 64), dtype=np.uint8), "scales": exponents})
    qformat.save(tmp_path / "a.qfmt", {"m.weight": tensor})

    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b", to="modelopt:nvfp4")

    assert [item.verdict.verdict for item in report.plan.items] == ["exact"]
    second = arrays(tmp_path / "b" / "model.safetensors")["m.weight_scale_2"]
    assert second == np.float32(2.0 ** (98 - 127 - 8))


def test_a_codebook_is_no_kind_of_modelopt(tmp_path: Path) -> None:
    values: Arrays = {"codes": RNG.integers(0, 16, (2, 64), dtype=np.uint8), "scales": np.ones(2, np.float32)}
    qformat.save(tmp_path / "a.qfmt", {"m.weight": from_values(nf4.nf4(64), (2, 64), values)})

    with pytest.raises(QFormatError, match="alphabets do not hold the same numbers"):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b", to="modelopt:nvfp4")


@pytest.mark.parametrize("shape", [(2, 4, 64), (4, 63)])
def test_stacks_and_odd_rows_have_no_place(shape: tuple[int, ...], tmp_path: Path) -> None:
    codes = RNG.integers(0, 16, shape, dtype=np.uint8)
    scales = np.full((codes.size // shape[-1], 2), 120, np.uint8).view(ml_dtypes.float8_e8m0fnu)
    qformat.save(tmp_path / "a.qfmt", {"m.weight": from_values(mx.MXFP4, shape, {"codes": codes, "scales": scales})})

    with pytest.raises(NotExact, match=f"modelopt:mxfp4 holds no packed mxfp4 of shape .*{shape[-1]}"):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "b", to="modelopt:mxfp4")


def awq_packed(back: NDArray[np.float32]) -> PackedTensor:
    """Make symmetric int4 in groups of 32 with these scales of columns."""
    form = carried(find("int4_g32"), len(back))
    codes = RNG.integers(-7, 8, (4, len(back))).astype(np.int8)
    scales = RNG.uniform(0.5, 2, (4, len(back) // 32)).astype(np.float16)
    return from_values(form, (4, len(back)), {"codes": codes, "scales": scales, "pre_quant_scale": back[None]})


def test_a_scale_of_columns_goes_where_there_is_a_place_for_it(tmp_path: Path) -> None:
    packed = awq_packed(RNG.uniform(0.1, 9, 64).astype(np.float32))
    qformat.save(tmp_path / "a.qfmt", {"m.weight": packed})

    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", "modelopt:w4a16-awq")

    assert [item.verdict.verdict for item in report.plan.items] == ["exact"]
    stored = arrays(tmp_path / "out" / "model.safetensors")
    assert stored["m.pre_quant_scale"].tobytes() == packed.param("pre_quant_scale").tobytes()
    expected = packed.codes() * np.repeat(packed.param("scales").astype(np.float32), 32, axis=1)
    with qconvert.open(tmp_path / "out") as model:
        assert model["m.weight"].dequantize().tobytes() == (expected * packed.param("pre_quant_scale")).tobytes()


@pytest.mark.parametrize("to", ["gptq:v2", "awq", "gguf:q4_0", "mlx:f32", "compressed-tensors:pack", "hqq", "qfmt:int8-g32"])
def test_a_scale_of_columns_is_refused_where_there_is_none(tmp_path: Path, to: str) -> None:
    qformat.save(tmp_path / "a.qfmt", {"m.weight": awq_packed(RNG.uniform(0.1, 9, 64).astype(np.float32))})
    with pytest.raises(NotExact, match="scales columns by pre_quant_scale"):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to)


def test_a_scale_of_columns_changes_its_type_exactly_or_not_at_all() -> None:
    fits, does_not = np.full(64, 0.5, np.float32), np.full(64, 0.5, np.float32)
    does_not[5] = 0.1
    form = w4a16(32, "float16", "float16")
    found = Recast(awq_packed(fits), form).derive(0, 4).values["pre_quant_scale"]
    assert (found.dtype, found.tolist()) == (np.float16, [[0.5] * 64])
    with pytest.raises(NotExact, match=r"scale 0\.10000000149011612 of column 5 is no float16") as caught:
        Recast(awq_packed(does_not), form)
    assert (caught.value.field, caught.value.index) == ("pre_quant_scale", 5)
