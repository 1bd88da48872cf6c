"""GPTQ checkpoints: decoded, written back, moved between conventions, and refused where their arrays do not fit."""

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

from qformat.errors import FileError, NotExact, UsageError

FOLDER = VECTORS / "hf" / "gptq"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
GOLDEN = "model.layers.0.self_attn.q_proj"
MODULE = "model.layers.3.mlp.up_proj"
FORMATS = {"v1": "gptq", "v2": "gptq_v2", "planar": "gptq_p"}
PLANES = {3: (2, 1), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}
RNG = np.random.default_rng(29)
Arrays = dict[str, NDArray[Any]]

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def words(fields: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Write rows of fields as streams through 32-bit words, least significant bits first."""
    cut = (fields[..., None] >> np.arange(bits) & 1).astype(np.uint8)
    packed = np.packbits(cut.reshape(*fields.shape[:-1], -1), axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view(np.int32)


def planar_words(fields: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Write runs of 32 fields plane by plane, low bits first."""
    runs, shift, found = fields.reshape(*fields.shape[:-1], -1, 32), 0, []
    for width in PLANES.get(bits, (bits,)):
        found.append(words(runs >> shift & (1 << width) - 1, width))
        shift += width
    return np.concatenate(found, axis=-1).reshape(*fields.shape[:-1], -1)


def module(
    codes: NDArray[np.int64], zeros: NDArray[np.int64], scales: NDArray[Any], bits: int, kind: str, name: str = MODULE
) -> Arrays:
    """Make the arrays of a module of codes (rows, columns), zeros and scales (groups, rows)."""
    pack = planar_words if kind == "planar" else words
    stored_zeros = words(zeros, bits)
    if kind == "v1" and 32 % bits == 0:  # the one of every field is subtracted from the word
        stored_zeros = (stored_zeros.view(np.uint32) - np.uint32(sum(1 << at for at in range(0, 32, bits)))).view(np.int32)
    elif kind == "v1":
        stored_zeros = words(zeros - 1 & (1 << bits) - 1, bits)
    elif kind == "planar":
        stored_zeros = planar_words(zeros, bits)
    return {f"{name}.qweight": pack(codes, bits).T, f"{name}.qzeros": stored_zeros, f"{name}.scales": scales}


def random(bits: int, n_out: int, n_in: int, groups: int, least: int = 0) -> tuple[Any, Any, Any]:
    codes = RNG.integers(0, 1 << bits, (n_out, n_in))
    return codes, RNG.integers(least, 1 << bits, (groups, n_out)), RNG.standard_normal((groups, n_out)).astype(np.float16)


def decoded(codes: Any, zeros: Any, scales: Any, g_idx: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = (codes - zeros.T[:, g_idx]).astype(np.float32) * scales.T.astype(np.float32)[:, g_idx]
    return values


def said(kind: str = "v2", bits: int = 4, group_size: int = 32, **more: Any) -> dict[str, Any]:
    config = {"quant_method": "gptq", "bits": bits, "group_size": group_size, "checkpoint_format": FORMATS[kind], **more}
    return {"quantization_config": config}


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


def sound(kind: str = "v2", n_out: int = 32, groups: int = 4) -> Arrays:
    return module(*random(4, n_out, 128, groups, least=1), 4, kind) | {f"{MODULE}.g_idx": np.arange(128, dtype="<i4") // 32}


@every_variant
def test_a_stored_weight_decodes_as_gptqmodel_decodes_it(variant: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")

    with qconvert.open(FOLDER / variant) as model:
        assert model.dialects == ("gptq",)
        tensor = model[f"{GOLDEN}.weight"]

    exact, half = expected.get(f"{GOLDEN}.weight.float32"), expected[f"{GOLDEN}.weight"]
    assert exact is None or tensor.dequantize().tobytes() == exact.tobytes()
    assert tensor.dequantize("float16").tobytes() == half.tobytes()


@every_variant
def test_a_stored_checkpoint_is_written_back_as_it_was(variant: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "back", to="gptq")

    assert stored(tmp_path / "back") == stored(FOLDER / variant)
    assert config_of(tmp_path / "back") == config_of(FOLDER / variant)


@every_variant
def test_a_stored_checkpoint_returns_from_qfmt(variant: str, tmp_path: Path) -> None:
    qconvert.convert(FOLDER / variant, tmp_path / "there.qfmt")

    qconvert.convert(tmp_path / "there.qfmt", tmp_path / "back", to="gptq")

    assert stored(tmp_path / "back") == stored(FOLDER / variant)


@pytest.mark.parametrize(
    ("variant", "bits", "bits_per_weight", "group"),
    [("p-6bit-g64-sym", 6, 6.34375, 64), ("v1-4bit-channel-sym", 4, 4.078125, 256), ("v2-3bit-g64-asym", 3, 3.296875, 64)],
)
def test_inspect_names_the_dialect_bits_and_logical_weights(
    variant: str, bits: int, bits_per_weight: float, group: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["inspect", str(FOLDER / variant), "--json"])

    found = json.loads(capsys.readouterr().out)
    (row,) = found["tensors"]
    assert (code, found["dialects"], found["n_weights"]) == (0, ["gptq"], 32 * 256)
    assert (row["name"], row["shape"], row["dialect"]) == (f"{GOLDEN}.weight", [32, 256], "gptq")
    assert (row["bits"], row["group_size"], row["bits_per_weight"]) == (bits, group, bits_per_weight)


@pytest.mark.parametrize("kind", ["v1", "v2", "planar"])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_every_width_decodes_or_is_refused_by_name(kind: str, bits: int, tmp_path: Path) -> None:
    given = random(bits, 32, 96, 3)
    folder = checkpoint(tmp_path / "m", module(*given, bits, kind), said(kind, bits))

    if bits in (5, 6, 7) and kind != "planar":
        with pytest.raises(FileError, match=rf"fields of {bits} bits, expected one of 2, 3, 4, 8 \(gptq:{kind}\)"):
            qconvert.open(folder)
        return
    with qconvert.open(folder) as model:
        values = model[f"{MODULE}.weight"].dequantize()
        some = model[f"{MODULE}.weight"].dequantize(rows=slice(5, 9))

    assert values.tobytes() == decoded(*given, np.arange(96) // 32).tobytes()
    assert some.tobytes() == values[5:9].tobytes()


@pytest.mark.parametrize(("group_size", "groups"), [(-1, 1), (16, 20), (32, 10), (128, 3), (320, 1), (1024, 1)])
def test_every_group_size_decodes_with_and_without_g_idx(group_size: int, groups: int, tmp_path: Path) -> None:
    given = random(4, 8, 320, groups)
    g_idx = np.arange(320, dtype="<i4") // (320 if group_size == -1 else group_size)
    found = module(*given, 4, "v2")
    bare = checkpoint(tmp_path / "bare", found, said(group_size=group_size))
    indexed = checkpoint(tmp_path / "indexed", found | {f"{MODULE}.g_idx": g_idx}, said(group_size=group_size))

    for folder in (bare, indexed):
        with qconvert.open(folder) as model:
            assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given, g_idx).tobytes()
        qconvert.convert(folder, folder.with_suffix(".back"), to="gptq")
        assert stored(folder.with_suffix(".back")) == stored(indexed)


def test_columns_out_of_order_stay_so_in_every_convention(tmp_path: Path) -> None:
    given, g_idx = random(4, 32, 128, 4, least=1), RNG.permutation(np.arange(128, dtype="<i4") // 32)
    source = checkpoint(tmp_path / "v2", module(*given, 4, "v2") | {f"{MODULE}.g_idx": g_idx}, said(desc_act=True))

    qconvert.convert(source, tmp_path / "v1", to="gptq:v1")
    qconvert.convert(tmp_path / "v1", tmp_path / "planar", to="gptq:planar")
    qconvert.convert(tmp_path / "planar", tmp_path / "again", to="gptq:v2")

    with qconvert.open(tmp_path / "v1") as model:
        assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given, g_idx).tobytes()
    assert stored(tmp_path / "again") == stored(source)
    assert config_of(tmp_path / "v1") == said("v1", desc_act=True, sym=False, pack_dtype="int32")["quantization_config"]
    assert config_of(tmp_path / "planar")["checkpoint_format"] == "gptq_p"


@pytest.mark.parametrize(
    ("variant", "to", "kind"),
    [
        ("v1-4bit-g32-asym", "gptq:v2", "v2"), ("v1-3bit-g64-sym", "gptq:v2", "v2"), ("p-3bit-g64-asym", "gptq:v2", "v2"),
        ("p-5bit-g64-asym", "gptq:v2", "v2"), ("v2-3bit-g64-asym", "gptq:planar", "planar"),
        ("v1-8bit-g64-sym", "gptq:planar", "planar"),
    ],
)  # fmt: skip
def test_conventions_convert_exactly(variant: str, to: str, kind: str, tmp_path: Path) -> None:
    report = qconvert.convert(FOLDER / variant, tmp_path / "there", to=to)

    assert report.plan.counts() == {"exact": 1}
    assert config_of(tmp_path / "there")["checkpoint_format"] == FORMATS[kind]
    with qconvert.open(FOLDER / variant) as one, qconvert.open(tmp_path / "there") as other:
        assert one[f"{GOLDEN}.weight"].dequantize().tobytes() == other[f"{GOLDEN}.weight"].dequantize().tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_of_0_is_read_but_not_written_as_v1(bits: int, tmp_path: Path) -> None:
    codes, zeros, scales = random(bits, 32, 96, 3)
    zeros[0, 1] = zeros[2, 3] = 0
    v1 = checkpoint(tmp_path / "v1", module(codes, zeros, scales, bits, "v1"), said("v1", bits))
    v2 = checkpoint(tmp_path / "v2", module(codes, zeros, scales, bits, "v2"), said("v2", bits))

    with qconvert.open(v1) as model:
        assert np.array_equal(model[f"{MODULE}.weight"].zeros(), zeros.T)
    with pytest.raises(NotExact, match=rf"{np.count_nonzero(zeros == 0)} zero points of 0.*take for {1 << bits}; use gptq:v2"):
        qconvert.convert(v2, tmp_path / "refused", to="gptq:v1")
    qconvert.convert(v1, tmp_path / "copied", to="gptq:v1")

    assert not (tmp_path / "refused").exists()
    assert stored(tmp_path / "copied") == stored(v1) | {k: v for k, v in stored(tmp_path / "copied").items() if "g_idx" in k}


def test_symmetric_codes_in_wider_fields_are_symmetric_no_more(tmp_path: Path) -> None:
    qconvert.convert(FOLDER / "p-6bit-g64-sym", tmp_path / "wide", to="gptq:v2")

    assert (config_of(tmp_path / "wide")["bits"], config_of(tmp_path / "wide")["sym"]) == (8, False)


def test_symmetric_and_asymmetric_codes_go_to_gguf_exactly(tmp_path: Path) -> None:
    to = {"v1-4bit-g64-sym": "gguf:q4_0", "v1-4bit-channel-sym": "gguf:q4_0", "v2-4bit-g64-asym": "gguf:q5_0"}
    counts = [qconvert.convert(FOLDER / v, tmp_path / f"{v}.gguf", to=t).plan.counts() for v, t in to.items()]

    assert counts == [{"exact": 1}] * len(to)


def test_columns_out_of_order_are_refused_by_gguf_naming_g_idx(tmp_path: Path) -> None:
    with pytest.raises(NotExact, match="columns are grouped by g_idx, which q5_0 does not hold") as caught:
        qconvert.convert(FOLDER / "v2-4bit-g32-asym-descact", tmp_path / "no.gguf", to="gguf:q5_0")

    assert caught.value.field == "g_idx"


@pytest.mark.parametrize(
    ("config", "assume", "kind"),
    [
        ({"sym": True}, (), "v1"), ({"checkpoint_format": "gptq_v2"}, (), "v2"), ({"format": "gptq_v2"}, (), "v2"),
        ({}, ("gptq:v2",), "v2"), ({"checkpoint_format": "gptq_v2"}, ("gptq:v1",), "v1"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}, (), "v1"),
        ({"quant_method": "auto-round", "packing_format": "auto_round:gptqmodel"}, (), "v2"),
        ({"quant_method": "auto-round", "packing_format": "auto_round"}, (), "v2"),
        ({"quant_method": "intel/auto-round"}, (), "v1"),
    ],
)  # fmt: skip
def test_the_user_then_the_config_say_how_zero_points_are_stored(
    config: dict[str, Any], assume: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    codes, zeros, scales = random(4, 32, 128, 4, least=1)
    config = {"quant_method": "gptq", "bits": 4, "group_size": 32, **config}
    folder = checkpoint(tmp_path / "m", module(codes, zeros, scales, 4, kind), {"quantization_config": config})

    with qconvert.open(folder, assume=assume) as model:
        assert np.array_equal(model[f"{MODULE}.weight"].zeros(), zeros.T)


def test_old_checkpoints_say_in_a_file_of_their_own_how_they_are_packed(tmp_path: Path) -> None:
    given = random(4, 32, 320, 3)
    folder = checkpoint(tmp_path / "m", module(*given, 4, "v1"), {"model_type": "llama"})
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128, "desc_act": false}')

    with qconvert.open(folder) as model:
        assert model[f"{MODULE}.weight"].dequantize().tobytes() == decoded(*given, np.arange(320) // 128).tobytes()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("told", "other"), [("v1", "v2"), ("v2", "v1")])
def test_a_config_that_symmetric_zero_points_contradict_is_reported(bits: int, told: str, other: str, tmp_path: Path) -> None:
    codes, _, scales = random(bits, 32, 96, 3)
    found = module(codes, np.full((3, 32), 1 << bits - 1), scales, bits, other)
    folder = checkpoint(tmp_path / "m", found, said(told, bits, sym=True))

    with qconvert.open(folder) as model:
        (odd,) = model.oddities
        off = int(model[f"{MODULE}.weight"].param("zeros")[0, 0]) - (1 << bits - 1)
    with qconvert.open(folder, assume=[f"gptq:{other}"]) as model:
        values, silent = model[f"{MODULE}.weight"].dequantize(), model.oddities

    assert odd.level == "error"
    assert f"as gptq:{told} no zero point is in the middle; as gptq:{other} each is: --assume gptq:{other}" in odd.message
    assert off == (1 if told == "v1" else -1)
    assert values.tobytes() == decoded(codes, np.full((3, 32), 1 << bits - 1), scales, np.arange(96) // 32).tobytes()
    assert not silent


def test_zero_points_that_say_another_kind_are_reported_where_no_config_does(tmp_path: Path) -> None:
    codes, _, scales = random(4, 32, 96, 3)
    found = {}
    for kind in ("v1", "v2"):
        arrays = module(codes, np.full((3, 32), 8), scales, 4, kind)
        with qconvert.open(checkpoint(tmp_path / kind, arrays, {"model_type": "llama"})) as model:
            found[kind] = [odd.message for odd in model.oddities]
    assert found["v1"] == []
    assert len(found["v2"]) == 1
    assert "nothing says the kind of zero points" in found["v2"][0]
    assert "--assume gptq:v2" in found["v2"][0]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.startswith("p-")])
def test_nothing_is_reported_of_what_gptqmodel_packs(variant: str) -> None:
    with qconvert.open(FOLDER / variant) as model:
        assert not model.oddities


def test_one_zero_point_that_fits_the_config_is_no_conflict(tmp_path: Path) -> None:
    codes, _, scales = random(4, 32, 128, 4)
    zeros = np.full((4, 32), 8)
    zeros[3, 31] = 7
    folder = checkpoint(tmp_path / "m", module(codes, zeros, scales, 4, "v1"), said("v2", sym=True))

    with qconvert.open(folder) as model:
        assert not model.oddities


def test_zero_points_that_a_packer_spoilt_are_reported(tmp_path: Path) -> None:
    codes, zeros, scales = random(4, 32, 128, 4, least=1)
    found = module(codes, zeros, scales, 4, "v1")
    spoilt = found[f"{MODULE}.qzeros"].view(np.uint32)
    spoilt &= np.uint32(0x77777777)  # no field of ones but those that follow
    spoilt[1, 2] |= np.uint32(0xFFFF0000)
    folder = checkpoint(tmp_path / "m", found, said("v1", sym=False))

    with qconvert.open(folder) as model:
        (odd,) = model.oddities

    assert (odd.level, odd.message[:52]) == ("warning", "1 words of zero points end in fields of ones, as Aut")


def test_modules_of_other_widths_and_groups_are_overrides_that_are_read_and_written(tmp_path: Path) -> None:
    names = [f"model.layers.{n}.mlp.up_proj" for n in range(4)]
    found = {}
    for name, (bits, groups) in zip(names, [(4, 4), (8, 4), (4, 2), (4, 4)], strict=True):
        found |= module(*random(bits, 32, 128, groups), bits, "v2", name)
    found |= {name: np.ones((4, 128), np.float16) for name in ("model.layers.1.gate.weight", "model.embed.weight")}
    overrides = {"+:.*1\\.mlp.*": {"bits": 8}, "layers.2": {"group_size": 64}, "-:.*gate": {}}
    folder = checkpoint(tmp_path / "m", found, said(dynamic=overrides))

    qconvert.convert(folder, tmp_path / "back", to="gptq")

    back = config_of(tmp_path / "back")
    assert (back["bits"], back["group_size"]) == (4, 32)
    assert back["dynamic"] == {
        r"+:^model\.layers\.1\.mlp\.up_proj$": {"bits": 8, "group_size": 32},
        r"+:^model\.layers\.2\.mlp\.up_proj$": {"bits": 4, "group_size": 64},
        r"-:^model\.layers\.1\.gate$": {},
    }
    qconvert.convert(tmp_path / "back", tmp_path / "again", to="gptq")
    assert stored(tmp_path / "again") == stored(tmp_path / "back")


def test_a_module_with_one_group_is_what_the_others_say(tmp_path: Path) -> None:
    names = ["model.layers.0.a", "model.layers.0.b"]
    found = module(*random(4, 32, 256, 2), 4, "v2", names[0]) | module(*random(4, 32, 128, 1), 4, "v2", names[1])

    qconvert.convert(checkpoint(tmp_path / "m", found, said(group_size=128)), tmp_path / "back", to="gptq")

    assert (config_of(tmp_path / "back")["group_size"], "dynamic" in config_of(tmp_path / "back")) == (128, False)


def change(suffix: str, edit: Callable[[Any], Any]) -> Callable[[Arrays], Any]:
    def changed(found: Arrays) -> None:
        found[f"{MODULE}.{suffix}"] = edit(found[f"{MODULE}.{suffix}"])

    return changed


def without(suffix: str) -> Callable[[Arrays], Any]:
    return lambda found: found.pop(f"{MODULE}.{suffix}")


def poke(value: int) -> Callable[[Any], Any]:
    return lambda index: np.where(np.arange(index.size) == 5, np.int32(value), index)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (without("qweight"), "part of a packed weight whose other arrays are missing"),
        (without("scales"), "part of a packed weight whose other arrays are missing"),
        (change("scales", lambda a: a[:-1]), "found int32 4 x 4, expected int32 3 x any (3 groups of zero points)"),
        (change("scales", lambda a: a[:, :-1]), "found float16 4 x 31, expected float16 or bfloat16 or float32 any x 32"),
        (change("scales", np.ravel), "found float16 128, expected float16"),
        (change("scales", lambda a: a.astype(np.int16)), "found int16 4 x 32, expected float16"),
        (change("qzeros", lambda a: a[:, :1]), "fields of 1 bits, expected one of 2, 3, 4, 8 (gptq:v2)"),
        (change("qzeros", lambda a: a[:, :2]), "fields of 2 bits, expected 4 as the config says"),
        (change("qweight", lambda a: a.astype(np.float32)), "found float32 16 x 32, expected int32 any x any"),
        (change("qweight", lambda a: a[:0]), "expected whole fields"),
        (change("qweight", lambda a: a[:-1]), "found int32 128, expected int32 120 (the group of each of 120 columns)"),
        (change("g_idx", lambda a: a[:-1]), "found int32 127, expected int32 128"),
        (change("g_idx", poke(4)), "column 5 is of group 4, expected 0 to 3"),
        (change("g_idx", poke(-1)), "column 5 is of group -1, expected 0 to 3"),
        (change("g_idx", poke(2**31 - 1)), "column 5 is of group 2147483647, expected 0 to 3"),
        (change("g_idx", lambda a: np.arange(128, dtype="<i4") // 40), "128 columns in 4 groups of 40, expected groups of 32"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_one_another_are_refused_with_numbers(
    edit: Callable[[Arrays], Any], words: str, tmp_path: Path
) -> None:
    found = sound()
    edit(found)
    folder = checkpoint(tmp_path / "m", found, said())

    with pytest.raises(FileError) as caught:
        qconvert.open(folder)

    assert words in str(caught.value)
    assert MODULE in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("bits", 8, "fields of 4 bits, expected 8 as the config says"), ("bits", "4", "bits is '4', expected an integer"),
        ("bits", None, "bits is None, expected an integer"), ("bits", True, "bits is True, expected an integer"),
        ("bits", 4.0, "bits is 4.0, expected an integer"), ("group_size", 0, "group_size 0, expected -1 or more than 0"),
        ("group_size", -2, "group_size -2, expected -1 or more than 0"),
        ("group_size", 64, "128 columns in 4 groups of 32, expected groups of 64"),
        ("group_size", 2**63, "as the config says"), ("group_size", "32", "group_size is '32', expected an integer"),
        ("group_size", -1, "expected groups of -1 as the config says"),
        ("checkpoint_format", "marlin", "checkpoint_format 'marlin', expected one of gptq, gptq_v2, gptq_p"),
        ("checkpoint_format", ["gptq"], "checkpoint_format ['gptq'], expected one of gptq, gptq_v2, gptq_p"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_the_arrays_is_refused(key: str, value: Any, words: str, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", sound(), said(**{key: value}) if key != "checkpoint_format" else said() | {
        "quantization_config": said()["quantization_config"] | {key: value}
    })  # fmt: skip

    with pytest.raises(FileError) as caught:
        qconvert.open(folder)

    assert words in str(caught.value)


def test_groups_that_nothing_tells_the_size_of_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "m", module(*random(4, 32, 320, 3), 4, "v2"), {})

    with pytest.raises(FileError, match="320 columns in 3 groups, expected a group_size in the config"):
        qconvert.open(folder)


def test_words_that_are_no_whole_runs_of_fields_are_refused(tmp_path: Path) -> None:
    found = module(*random(3, 32, 96, 3), 3, "v2")
    found[f"{MODULE}.qweight"] = found[f"{MODULE}.qweight"][:-1]

    with pytest.raises(FileError, match="8 words of 3-bit codes, expected a multiple of 3"):
        qconvert.open(checkpoint(tmp_path / "m", found, said(bits=3)))


def test_two_conventions_have_no_place_in_one_checkpoint(tmp_path: Path) -> None:
    found = module(*random(3, 32, 96, 3), 3, "v2") | module(*random(5, 32, 96, 3), 5, "planar", "model.layers.1.x")
    folder = checkpoint(tmp_path / "m", found, {})

    with pytest.raises(FileError, match="fields of 5 bits"):
        qconvert.open(folder)


def test_what_cannot_be_assumed_is_a_wrong_use() -> None:
    with pytest.raises(UsageError, match="'gptq:v3' cannot be assumed: expected one of gptq:v1, gptq:v2, gptq:planar"):
        qconvert.open(FOLDER / VARIANTS[0], assume=["gptq:v3"])


@pytest.mark.parametrize(("bits", "kind"), [(4, "v1"), (3, "v1"), (3, "planar")])
def test_rows_that_are_written_range_by_range_lie_as_those_of_the_whole(
    bits: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, g_idx = random(bits, 160, 128, 4, least=1), RNG.permutation(np.arange(128, dtype="<i4") // 32)
    index = {f"{MODULE}.g_idx": g_idx}
    source = checkpoint(tmp_path / "m", module(*given, bits, "v2") | index, said("v2", bits))
    expected = checkpoint(tmp_path / "e", module(*given, bits, kind) | index, said(kind, bits))
    monkeypatch.setattr("qconvert.cutting.TORN_WEIGHTS", 64 * 128)

    qconvert.convert(source, tmp_path / "there", to=f"gptq:{kind}")

    assert stored(tmp_path / "there") == stored(expected)


@pytest.mark.parametrize(("kind", "said", "is_middle"), [("v1", "gptq", False), ("planar", "gptq_p", True)])
def test_levels_that_are_integers_are_symmetric_where_their_zero_point_is_the_middle(
    kind: str, said: str, is_middle: bool, tmp_path: Path
) -> None:
    source, one = str(VECTORS / "hf" / "mlx" / "mxfp4"), str(tmp_path / "one")
    assert main(["extract", source, one, "--include", "*q_proj*"]) == 0
    assert main(["convert", one, str(tmp_path / "out"), "--to", f"gptq:{kind}"]) == 0  # -12..12 are 5 bits; v1 has 8
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    with qconvert.open(tmp_path / "out") as written, qconvert.open(source) as model:
        tensor = written[f"{GOLDEN}.weight"]
        assert tensor.dequantize().tobytes() == model[f"{GOLDEN}.weight"].dequantize().tobytes()
        assert bool((tensor.zeros() == 1 << (config["bits"] - 1)).all()) == is_middle
    assert (config["checkpoint_format"], config["sym"]) == (said, is_middle)
