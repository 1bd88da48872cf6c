"""AWQ checkpoints: decoded, written back, moved between kernels and conventions, and refused where their arrays do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import qconvert
from conftest import VECTORS
from handmade_checkpoint import arrays, checkpoint, stored
from numpy.typing import NDArray
from qfmt.__main__ import main

from qformat.errors import FileError, NotExact

FOLDER = VECTORS / "hf" / "awq"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
GOLDEN = "model.layers.0.self_attn.q_proj"
MODULE = "model.layers.3.mlp.up_proj"
NIBBLES = [0, 2, 4, 6, 1, 3, 5, 7]  # the row of eight that field i of a GEMM word holds
RNG = np.random.default_rng(31)
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def nibble_words(fields: NDArray[np.int64]) -> NDArray[np.int32]:
    """Write runs of eight fields into words, least significant bits first."""
    runs = fields.reshape(*fields.shape[:-1], -1, 8).astype(np.uint32)
    return np.ascontiguousarray((runs << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)).view(np.int32)


def random(n_out: int, n_in: int, groups: int) -> tuple[Any, Any, Any]:
    """Give codes (rows, columns), zeros and scales (rows, groups)."""
    scales = RNG.standard_normal((n_out, groups)).astype(np.float16)
    return RNG.integers(0, 16, (n_out, n_in)), RNG.integers(0, 16, (n_out, groups)), scales


def decoded(codes: Any, zeros: Any, scales: Any) -> NDArray[np.float32]:
    g = np.arange(codes.shape[1]) * zeros.shape[1] // codes.shape[1]
    values: NDArray[np.float32] = (codes - zeros[:, g]).astype(np.float32) * scales.astype(np.float32)[:, g]
    return values


def named(qweight: Any, qzeros: Any, scales: Any, name: str = MODULE) -> Arrays:
    return {f"{name}.qweight": qweight, f"{name}.qzeros": qzeros, f"{name}.scales": scales}


def gemm(codes: Any, zeros: Any, scales: Any, name: str = MODULE) -> Arrays:
    interleaved = (fields.T.reshape(fields.shape[1], -1, 8)[..., NIBBLES].reshape(fields.T.shape) for fields in (codes, zeros))
    qweight, qzeros = (nibble_words(fields) for fields in interleaved)
    return named(qweight, qzeros, scales.T, name)


def filled(array: Any, group_size: int) -> Any:
    """Fill the groups of rows up as GEMV kernels want them."""
    run = 8 * {32: 4, 64: 2}.get(group_size, 1)
    return np.pad(array, ((0, 0), (0, -array.shape[1] % run)))


def gemv(codes: Any, zeros: Any, scales: Any, group_size: int) -> Arrays:
    return named(nibble_words(codes), nibble_words(filled(zeros, group_size)), filled(scales, group_size))


def gemv_fast(codes: Any, zeros: Any, scales: Any, group_size: int) -> Arrays:
    """Deal pairs of 32 columns out to runs of 8, part even from odd, and lay four rows of 64 columns together."""
    n_out, n_in = codes.shape
    dealt = codes.reshape(n_out, n_in // 32, 4, 4, 2).transpose(0, 1, 3, 2, 4).reshape(n_out, n_in // 8, 4, 2)
    parted = dealt.transpose(0, 1, 3, 2).reshape(n_out // 4, 4, n_in // 64, 64).transpose(0, 2, 1, 3)
    fields = parted.reshape(n_out // 4, n_in, 4).astype(np.uint16)
    qweight = (fields << np.arange(0, 16, 4, dtype=np.uint16)).sum(axis=-1, dtype=np.uint16).view(np.int16)
    products = (-(scales.astype(np.float32) * zeros.astype(np.float32))).astype(np.float16)
    return named(qweight, filled(products, group_size).T, filled(scales, group_size).T)


def said(version: str = "gemm", group_size: int = 32, **more: Any) -> dict[str, Any]:
    known = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": version}
    return {"quantization_config": known | more}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


@every_variant
def test_a_stored_weight_decodes_as_autoawq_decodes_it(variant: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")
    key = f"{GOLDEN}.weight.{'float32' if variant.startswith('gemm') else 'grid_float32'}"

    with qconvert.open(FOLDER / variant) as model:
        assert model.dialects == ("awq",)
        tensor = model[f"{GOLDEN}.weight"]

    assert tensor.dequantize().tobytes() == expected[key].tobytes()
    assert tensor.dequantize(rows=slice(3, 9)).tobytes() == expected[key][3:9].tobytes()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name.startswith("gemm")])
def test_a_stored_weight_in_float16_is_what_autoawq_gives(variant: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")[f"{GOLDEN}.weight"]

    with qconvert.open(FOLDER / variant) as model:
        assert model[f"{GOLDEN}.weight"].dequantize("float16").tobytes() == expected.tobytes()


@every_variant
def test_a_stored_checkpoint_is_written_back_as_it_was(variant: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "back", to="awq")

    assert stored(tmp_path / "back") == stored(FOLDER / variant)
    assert config_of(tmp_path / "back") == config_of(FOLDER / variant)


@every_variant
def test_a_stored_checkpoint_returns_from_qfmt(variant: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "there.qfmt")

    qconvert.convert(tmp_path / "there.qfmt", tmp_path / "back", to="awq")

    assert stored(tmp_path / "back") == stored(FOLDER / variant)


@pytest.mark.parametrize(("variant", "bits_per_weight"), [("gemm-4bit-g128", 4.15625), ("gemv-4bit-g64", 5.25)])
def test_inspect_names_the_dialect_bits_and_logical_weights(
    variant: str, bits_per_weight: float, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["inspect", str(FOLDER / variant), "--json"])

    found = json.loads(capsys.readouterr().out)
    (row,) = found["tensors"]
    assert (code, found["dialects"], found["n_weights"]) == (0, ["awq"], 32 * 256)
    assert (row["name"], row["shape"], row["bits"]) == (f"{GOLDEN}.weight", [32, 256], 4)
    assert (row["group_size"], row["bits_per_weight"]) == (int(variant.rpartition("g")[2]), bits_per_weight)


@pytest.mark.parametrize(("group_size", "n_in"), [(32, 96), (64, 192), (128, 1280), (256, 512), (-1, 128), (-1, 64)])
@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast"])
def test_every_kernel_and_group_size_decodes_and_returns(version: str, group_size: int, n_in: int, tmp_path: Path) -> None:
    n_in, size = n_in + (n_in % 64 if version == "gemv_fast" else 0), n_in if group_size == -1 else group_size
    given = random(16, n_in, n_in // size)
    made = gemm(*given) if version == "gemm" else gemv(*given, size) if version == "gemv" else gemv_fast(*given, size)
    folder = checkpoint(tmp_path / "m", made, said(version, group_size))

    qconvert.convert(folder, tmp_path / "back", to="awq")

    with qconvert.open(folder) as model:
        assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given).tobytes()
    assert stored(tmp_path / "back") == stored(folder)
    assert (config_of(tmp_path / "back")["version"], config_of(tmp_path / "back")["group_size"]) == (version, group_size)


@pytest.mark.parametrize("to", ["awq:gemm", "awq:gemv", "gptq", "gptq:v2", "gguf:q5_0"])
@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast"])
def test_codes_and_integer_zero_points_go_on_exactly(version: str, to: str, tmp_path: Path) -> None:
    given = random(16, 128, 2)
    made = gemm(*given) if version == "gemm" else gemv(*given, 64) if version == "gemv" else gemv_fast(*given, 64)
    folder = checkpoint(tmp_path / "m", made, said(version, 64))
    target = tmp_path / ("there.gguf" if to.startswith("gguf") else "there")

    report = qconvert.convert(folder, target, to=to)

    assert report.plan.counts() in ({"exact": 1}, {"same-bytes": 1})
    with qconvert.open(target) as model:
        assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given).tobytes()


def test_gptq_in_order_becomes_awq_and_returns(tmp_path: Path) -> None:
    source = VECTORS / "hf" / "gptq" / "v2-4bit-g64-asym"

    qconvert.convert(source, tmp_path / "awq", to="awq:gemv")
    qconvert.convert(tmp_path / "awq", tmp_path / "gptq", to="gptq:v2")

    assert stored(tmp_path / "gptq") == stored(source)


@pytest.mark.parametrize("kind", ["awq:gemm", "awq:gemv"])
def test_columns_out_of_order_are_refused_naming_g_idx(kind: str, tmp_path: Path) -> None:
    with pytest.raises(NotExact, match=f"columns are grouped by g_idx, which {kind} does not hold"):
        qconvert.convert(VECTORS / "hf" / "gptq" / "v1-4bit-g128-sym-descact", tmp_path / "no", to=kind)


def test_zero_points_of_0_are_refused_as_gptq_v1(tmp_path: Path) -> None:
    codes, zeros, scales = random(32, 128, 4)
    zeros[2, 1] = 0
    folder = checkpoint(tmp_path / "m", gemm(codes, zeros, scales), said())

    with pytest.raises(NotExact, match=rf"{np.count_nonzero(zeros == 0)} zero points of 0.*use gptq:v2"):
        qconvert.convert(folder, tmp_path / "no", to="gptq:v1")


def test_codes_of_five_bits_have_no_place_in_awq(tmp_path: Path) -> None:
    with pytest.raises(NotExact, match="awq holds no packed gptq:planar"):
        qconvert.convert(VECTORS / "hf" / "gptq" / "p-5bit-g64-asym", tmp_path / "no", to="awq")


def test_a_scaled_zero_point_of_no_integer_is_refused(tmp_path: Path) -> None:
    found = gemv_fast(*random(16, 128, 2), 64)
    found[f"{MODULE}.scales"][1, 5], found[f"{MODULE}.qzeros"][1, 5] = 0.5, -1.75

    with pytest.raises(FileError, match=r"-1.75 of group 1, row 5 is minus its scale 0.5 times no zero point from 0 to 15"):
        qconvert.open(checkpoint(tmp_path / "m", found, said("gemv_fast", 64)))


@pytest.mark.parametrize(("scaled", "scale"), [(-8.0, 0.5), (0.5, 0.5), (np.nan, 0.5), (-1.0, 0.0), (-1.0, np.inf)])
def test_scaled_zero_points_out_of_range_are_refused(scaled: float, scale: float, tmp_path: Path) -> None:
    found = gemv_fast(*random(16, 128, 2), 64)
    found[f"{MODULE}.scales"][0, 2], found[f"{MODULE}.qzeros"][0, 2] = scale, scaled

    with pytest.raises(FileError, match="of group 0, row 2 is minus its scale"):
        qconvert.open(checkpoint(tmp_path / "m", found, said("gemv_fast", 64)))


@pytest.mark.parametrize(
    ("config", "assume", "version"),
    [
        ({"quant_method": "awq", "version": "GEMM"}, (), "gemm"), ({"quant_method": "awq"}, (), "gemm"),
        ({"quant_method": "awq", "version": "GEMV"}, (), "gemv"),
        ({"quant_method": "awq", "version": "gemm"}, ("awq:gemv",), "gemv"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}, (), "gemm"),
        ({"quant_method": "awq", "version": "llm-awq"}, (), "gemv_fast"),
    ],
)  # fmt: skip
def test_the_user_then_the_config_say_for_which_kernel(
    config: dict[str, Any], assume: tuple[str, ...], version: str, tmp_path: Path
) -> None:
    given = random(16, 128, 2)
    made = gemm(*given) if version == "gemm" else gemv(*given, 64) if version == "gemv" else gemv_fast(*given, 64)
    folder = checkpoint(tmp_path / "m", made, {"quantization_config": config | {"bits": 4, "group_size": 64}})

    with qconvert.open(folder, assume=assume) as model:
        assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given).tobytes()


def test_old_checkpoints_say_in_a_file_of_their_own_how_they_are_packed(tmp_path: Path) -> None:
    given = random(16, 128, 2)
    folder = checkpoint(tmp_path / "m", gemm(*given), {"model_type": "llama"})
    (folder / "quant_config.json").write_text('{"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}')

    with qconvert.open(folder) as model:
        assert model.dialects == ("awq",)
        assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given).tobytes()


def test_dense_matrices_among_packed_ones_are_named(tmp_path: Path) -> None:
    found = gemm(*random(16, 128, 4)) | {
        name: np.ones((4, 128), np.float16)
        for name in ("model.layers.3.gate.weight", "model.embed.weight", "visual.0.x.weight")
    }
    folder = checkpoint(tmp_path / "m", found, said(modules_to_not_convert=["visual", "up_proj"]))

    qconvert.convert(folder, tmp_path / "back", to="awq")

    assert config_of(tmp_path / "back")["modules_to_not_convert"] == ["visual", "model.layers.3.gate"]


def test_two_group_sizes_have_no_place_in_one_config(tmp_path: Path) -> None:
    names = ["model.layers.0.a", "model.layers.1.a"]
    v2 = VECTORS / "hf" / "gptq"
    one, other = (arrays(v2 / variant / "model.safetensors") for variant in ("v2-4bit-g64-asym", "v1-4bit-g32-asym"))
    found = {
        key.replace(GOLDEN, name): array for name, held in zip(names, (one, other), strict=True) for key, array in held.items()
    }
    config = {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "checkpoint_format": "gptq_v2",
        "dynamic": {"x": {"group_size": 32}},
    }
    folder = checkpoint(tmp_path / "m", found, {"quantization_config": config})

    with pytest.raises(NotExact, match=r"awq:gemm in groups of 32, but 'model.layers.0.a.weight' is awq:gemm, groups of 64"):
        qconvert.convert(folder, tmp_path / "no", to="awq")


def change(suffix: str, edit: Callable[[Any], Any]) -> Callable[[Arrays], Any]:
    def changed(found: Arrays) -> None:
        found[f"{MODULE}.{suffix}"] = edit(found[f"{MODULE}.{suffix}"])

    return changed


@pytest.mark.parametrize(
    ("version", "edit", "words"),
    [
        ("gemm", change("scales", lambda a: a.T), "found float16 16 x 4, expected float16 or bfloat16 or float32 any x 16"),
        ("gemm", change("qweight", lambda a: a.astype(np.int64)), "found int64 128 x 2, expected int32 any x any"),
        ("gemm", change("qzeros", lambda a: a[:-1]), "found int32 3 x 2, expected int32 4 x 2"),
        ("gemm", change("qzeros", lambda a: a[:, :1]), "found int32 4 x 1, expected int32 4 x 2"),
        ("gemm", change("qweight", lambda a: a[:0]), "16 rows of 0 weights, expected some"),
        ("gemm", change("qweight", lambda a: a[:40]), "40 columns in 4 groups, expected groups of 32 as the config says"),
        ("gemm", lambda found: found.pop(f"{MODULE}.qzeros"), "part of a packed weight whose other arrays are missing"),
        ("gemv", change("scales", lambda a: a[:, :4]), "found float16 16 x 4, expected float16 16 x 32"),
        ("gemv", change("qzeros", lambda a: a[:, :1]), "found int32 16 x 1, expected int32 16 x 4"),
        ("gemv", change("qweight", lambda a: a[:, :3]), "group_size 32 for rows of 24, expected a divisor: 32, 64, or from"),
        ("gemv_fast", change("qweight", lambda a: a[:, :96]), "rows of 96 weights, expected a multiple of 64"),
        ("gemv_fast", change("scales", lambda a: a[:4]), "found float16 4 x 16, expected float16 32 x 16"),
        ("gemv_fast", change("qweight", lambda a: a.astype(np.int32)), "found int32 4 x 128, expected int16 any x any"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_one_another_are_refused_with_numbers(
    version: str, edit: Callable[[Arrays], Any], words: str, tmp_path: Path
) -> None:
    given = random(16, 128, 4)
    found = gemm(*given) if version == "gemm" else gemv(*given, 32) if version == "gemv" else gemv_fast(*given, 32)
    edit(found)

    with pytest.raises(FileError) as caught:
        qconvert.open(checkpoint(tmp_path / "m", found, said(version)))

    assert words in str(caught.value)
    assert MODULE in str(caught.value)


@pytest.mark.parametrize(
    ("version", "key", "value", "words"),
    [
        ("gemm", "version", "gemm-v9", "version 'gemm-v9', expected one of gemm, gemv, gemv_fast"),
        ("gemm", "version", 4, "version 4, expected one of gemm"),
        ("gemm", "bits", 8, "fields of 4 bits, expected 8 as the config says"),
        ("gemm", "group_size", 64, "128 columns in 4 groups, expected groups of 64"),
        ("gemv", "group_size", 0, "group_size 0 for rows of 128"),
        ("gemv", "group_size", 16, "group_size 16 for rows of 128"), ("gemv", "group_size", 64, "expected int32 16 x 2"),
        ("gemv", "group_size", 2**63, "group_size 9223372036854775808 for rows of 128"),
        ("gemv", "group_size", "32", "group_size is '32', expected an integer"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_the_arrays_is_refused(
    version: str, key: str, value: Any, words: str, tmp_path: Path
) -> None:
    given = random(16, 128, 4)
    found = gemm(*given) if version == "gemm" else gemv(*given, 32)
    config = said(version)["quantization_config"] | {key: value}

    with pytest.raises(FileError) as caught:
        qconvert.open(checkpoint(tmp_path / "m", found, {"quantization_config": config}))

    assert words in str(caught.value)
