"""compressed-tensors checkpoints: what its own software packed and decoded, older packings made by hand, and hostile ones."""

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from handmade_checkpoint import arrays as numbers
from handmade_checkpoint import checkpoint, stored
from numpy.typing import NDArray
from qconvert.dialects.compressed_tensors_config import matches

import qformat
from qformat.errors import FileError, NotExact
from qformat.formats import find
from qformat.tensor import from_values

VARIANTS = sorted((Path(__file__).parents[1] / "spec/vectors/hf/compressed-tensors").iterdir())
RNG = np.random.default_rng(7)
MODULE = "model.layers.0.mlp.up_proj"
NAME = f"{MODULE}.weight"
N, K, GROUP = 16, 64, 32
Arrays = dict[str, NDArray[Any]]


def words(fields: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Pack rows of unsigned fields as one stream of bits each, least significant first, filled up to whole 32-bit words."""
    stream = (fields[..., None].astype(np.int64) >> np.arange(bits) & 1).reshape(len(fields), -1)
    padded = np.pad(stream, ((0, 0), (0, -stream.shape[1] % 32)))
    return np.packbits(padded.astype(np.uint8), axis=1, bitorder="little").view("<i4")


def repeated(groups: NDArray[Any], size: int, n_cols: int) -> NDArray[np.float32]:
    """Give the value of every column's group."""
    return np.repeat(groups.astype(np.float32), size, axis=1)[:, :n_cols]


def by_id(path: Path) -> str:
    return path.name


def settings(form: str = "pack-quantized", targets: tuple[str, ...] = ("Linear",), **weights: Any) -> dict[str, Any]:
    said = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP} | weights
    groups = {"group_0": {"targets": list(targets), "weights": said}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}}


def scales(shape: tuple[int, ...] = (N, K // GROUP), dtype: Any = np.float16) -> NDArray[Any]:
    return (RNG.integers(1, 64, shape) / 512).astype(dtype)


def packed(bits: int = 4, n: int = N, k: int = K, **more: NDArray[Any]) -> tuple[Arrays, NDArray[np.int64]]:
    """Give the arrays of packed symmetric integers, and the codes."""
    codes = RNG.integers(-(1 << bits - 1), 1 << bits - 1, (n, k))
    arrays = {
        "weight_packed": words(codes + (1 << bits - 1), bits),
        "weight_scale": scales((n, k // GROUP)),
        "weight_shape": np.array([n, k]),
    }
    return {f"{MODULE}.{word}": array for word, array in (arrays | more).items()}, codes


def decoded(path: Path, name: str = NAME) -> NDArray[np.float32]:
    with qconvert.open(path) as model:
        return model[name].dequantize()


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return found


@pytest.mark.parametrize("path", VARIANTS, ids=by_id)
def test_a_checkpoint_decodes_as_its_own_software_does(path: Path) -> None:
    expected = numbers(path / "expected.safetensors")
    with qconvert.open(path) as model:
        assert model.dialects == ("compressed-tensors",)
        assert set(model) == {name for name in expected if not name.endswith(".float32")}
        for name, tensor in model.items():
            want = expected.get(f"{name}.float32", expected[name])
            assert tensor.shape == want.shape
            assert tensor.dequantize(want.dtype.name).tobytes() == want.tobytes()


@pytest.mark.parametrize("path", VARIANTS, ids=by_id)
def test_a_checkpoint_is_written_back_as_it_was(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "back", to="compressed-tensors")
    assert stored(tmp_path / "back") == stored(path)
    found, expected = config_of(tmp_path / "back"), config_of(path)
    assert found == {key: expected[key] for key in found}


@pytest.mark.parametrize("path", VARIANTS, ids=by_id)
def test_a_checkpoint_comes_back_out_of_qfmt(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "a.qfmt")
    kind = config_of(path)["format"].partition("-")[0]
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "back", to=f"compressed-tensors:{kind}")
    assert stored(tmp_path / "back") == stored(path)


@pytest.mark.parametrize("path", VARIANTS, ids=by_id)
def test_one_file_says_in_its_metadata_what_a_config_would(path: Path, tmp_path: Path) -> None:
    qconvert.convert(path, tmp_path / "one.safetensors", to="compressed-tensors")
    with qconvert.open(tmp_path / "one.safetensors") as one, qconvert.open(path) as whole:
        for name, tensor in whole.items():
            assert one[name].dequantize().tobytes() == tensor.dequantize().tobytes()


@pytest.mark.parametrize("beside", [None, '{"producer": {"name": "modelopt"}}'])
def test_a_lone_scale_of_float8_is_that_of_the_config_that_names_it(beside: str | None, tmp_path: Path) -> None:
    codes = np.array([[1, -2, 3], [0.5, 0, 448]]).astype(ml_dtypes.float8_e4m3fn)
    arrays = {f"{MODULE}.weight": codes, f"{MODULE}.weight_scale": np.array(0.25, np.float32)}
    said = settings("float-quantized", num_bits=8, type="float", strategy="tensor", group_size=None)
    source = checkpoint(tmp_path / "source", arrays, said)
    if beside is not None:
        (source / "hf_quant_config.json").write_text(beside)
    with qconvert.open(source) as model:
        assert model.dialects == ("compressed-tensors",)
        assert model[f"{MODULE}.weight"].dequantize().tolist() == [[0.25, -0.5, 0.75], [0.125, 0, 112]]


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_fields_that_do_not_cross_words_are_told_by_the_width(bits: int, tmp_path: Path) -> None:
    n_out, per_word, half = 20, 32 // bits, 1 << bits - 1
    codes, zeros = RNG.integers(-half, half, (n_out, K)), RNG.integers(-half, half, (n_out, K // GROUP))

    def sparse(fields: NDArray[Any]) -> NDArray[np.int32]:
        padded = np.pad(fields, ((0, 0), (0, -fields.shape[1] % per_word))).reshape(len(fields), -1, per_word)
        return (
            (padded.astype(np.uint32) << np.arange(0, per_word * bits, bits, dtype=np.uint32))
            .sum(-1)
            .astype(np.uint32)
            .view("i4")
        )

    zero_words = np.ascontiguousarray(sparse((zeros + half).T).T)
    arrays, _ = packed(n=n_out, weight_packed=sparse(codes + half), weight_zero_point=zero_words)
    source = checkpoint(tmp_path / "old", arrays, settings(num_bits=bits, symmetric=False))
    expected = (codes - repeated(zeros, GROUP, K)).astype(np.float32) * repeated(arrays[f"{MODULE}.weight_scale"], GROUP, K)
    assert decoded(source).tobytes() == expected.astype(np.float32).tobytes()

    qconvert.convert(source, tmp_path / "dense", to="compressed-tensors:pack")
    dense = numbers(tmp_path / "dense/model.safetensors")
    assert dense[f"{MODULE}.weight_packed"].tobytes() == words(codes + half, bits).tobytes()
    assert dense[f"{MODULE}.weight_zero_point"].tobytes() == np.ascontiguousarray(words((zeros + half).T, bits).T).tobytes()
    qconvert.convert(source, tmp_path / "same", to="compressed-tensors")
    assert stored(tmp_path / "same") == stored(source)


def test_columns_out_of_order_keep_their_groups(tmp_path: Path) -> None:
    g_idx = RNG.permutation(np.arange(K) // GROUP).astype(np.int32)
    arrays, codes = packed(weight_g_idx=g_idx)
    source = checkpoint(tmp_path / "source", arrays, settings(actorder="group"))
    expected = codes.astype(np.float32) * arrays[f"{MODULE}.weight_scale"].astype(np.float32)[:, g_idx]
    assert decoded(source).tobytes() == expected.tobytes()
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors:pack")
    assert stored(tmp_path / "back") == stored(source)
    assert config_of(tmp_path / "back")["config_groups"]["group_0"]["weights"]["actorder"] == "group"


@pytest.mark.parametrize("g_idx", [np.arange(K) // GROUP, np.full(K, -1)], ids=["in order", "not chosen"])
def test_an_order_that_says_nothing_is_left_out(g_idx: NDArray[Any], tmp_path: Path) -> None:
    arrays, codes = packed(weight_g_idx=g_idx.astype(np.int32))
    source = checkpoint(tmp_path / "source", arrays, settings())
    assert decoded(source).tobytes() == (codes * repeated(arrays[f"{MODULE}.weight_scale"], GROUP, K)).astype("f4").tobytes()
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors")
    assert f"{MODULE}.weight_g_idx" not in stored(tmp_path / "back")


def test_zero_points_of_older_files_are_bytes(tmp_path: Path) -> None:
    zeros = RNG.integers(-8, 8, (N, K // GROUP)).astype(np.int8)
    arrays, codes = packed(weight_zero_point=zeros)
    source = checkpoint(tmp_path / "source", arrays, settings(symmetric=False))
    expected = (codes - repeated(zeros, GROUP, K)) * repeated(arrays[f"{MODULE}.weight_scale"], GROUP, K)
    assert decoded(source).tobytes() == expected.astype(np.float32).tobytes()
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors")
    assert stored(tmp_path / "back") == stored(source)
    qconvert.convert(source, tmp_path / "new", to="compressed-tensors:pack")
    assert decoded(tmp_path / "new").tobytes() == expected.astype(np.float32).tobytes()
    assert stored(tmp_path / "new")[f"{MODULE}.weight_zero_point"][:2] == ("I32", (N // 8, K // GROUP))


def test_one_scale_and_zero_point_may_serve_the_tensor(tmp_path: Path) -> None:
    zero, scale = np.array([-3], np.int8), np.array([0.25], np.float32)
    arrays, codes = packed(weight_scale=scale, weight_zero_point=zero)
    said = settings(strategy="tensor", group_size=None, symmetric=False)
    source = checkpoint(tmp_path / "source", arrays, said)
    assert decoded(source).tobytes() == ((codes + 3) * 0.25).astype(np.float32).tobytes()
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors")
    assert stored(tmp_path / "back") == stored(source)


def test_bytes_may_have_groups_and_zero_points(tmp_path: Path) -> None:
    codes, zeros = RNG.integers(-128, 128, (N, K)).astype(np.int8), RNG.integers(-128, 128, (N, K // GROUP)).astype(np.int8)
    held = {"weight": codes, "weight_scale": scales(dtype=ml_dtypes.bfloat16), "weight_zero_point": zeros}
    arrays = {f"{MODULE}.{word}": array for word, array in held.items()}
    source = checkpoint(tmp_path / "source", arrays, settings("naive-quantized", num_bits=8, symmetric=False))
    expected = (codes.astype("f4") - repeated(zeros, GROUP, K)) * repeated(held["weight_scale"], GROUP, K)
    assert decoded(source).tobytes() == expected.tobytes()
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors:int")
    assert stored(tmp_path / "back") == stored(source)
    assert config_of(tmp_path / "back")["config_groups"]["group_0"]["format"] == "naive-quantized"


def test_blocks_of_rows_and_columns_may_end_short(tmp_path: Path) -> None:
    codes = RNG.integers(0, 0x7F, (70, 100)).astype(np.uint8).view(ml_dtypes.float8_e4m3fn)
    scale = scales((3, 4), np.float32)
    said = settings("float-quantized", type="float", num_bits=8, strategy="block", block_structure=[32, 25], group_size=None)
    source = checkpoint(tmp_path / "source", {NAME: codes, f"{MODULE}.weight_scale": scale}, said)
    spread = np.repeat(np.repeat(scale, 32, axis=0), 25, axis=1)[:70, :100]
    assert decoded(source).tobytes() == (codes.astype(np.float32) * spread).tobytes()
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors:float")
    assert stored(tmp_path / "back") == stored(source)
    assert config_of(tmp_path / "back")["config_groups"]["group_0"]["weights"]["block_structure"] == [32, 25]


def test_modules_of_several_kinds_are_groups_of_their_own(tmp_path: Path) -> None:
    int4, _ = packed()
    eight = {"a.down_proj.weight": np.ones((N, K), ml_dtypes.float8_e4m3fn), "a.down_proj.weight_scale": scales((N, 1))}
    more = {word.replace(MODULE, "a.gate_proj"): array for word, array in int4.items()}
    dense = {f"{name}.weight": np.ones((N, K), np.float16) for name in ("embed_tokens", "a.router")}
    groups = {
        "group_0": {"targets": [r"re:.*\.(up|gate)_proj$"], **settings()["quantization_config"]["config_groups"]["group_0"]},
        "group_1": {
            "targets": ["a.down_proj"],
            "format": "float-quantized",
            "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"},
            "input_activations": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
        },
    }
    said = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": groups,
        "kv_cache_scheme": {"num_bits": 8},
    }
    source = checkpoint(tmp_path / "source", int4 | more | eight | dense, {"quantization_config": said})
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors")
    assert stored(tmp_path / "back") == stored(source)
    found = config_of(tmp_path / "back")
    first, second = found["config_groups"]["group_0"], found["config_groups"]["group_1"]
    assert (first["targets"], second["targets"]) == (["Linear"], ["a.down_proj"])
    assert (first["format"], second["format"], found["format"]) == ("pack-quantized", "float-quantized", "mixed-precision")
    assert first["input_activations"] is None
    assert second["input_activations"] == groups["group_1"]["input_activations"]
    assert (found["ignore"], found["kv_cache_scheme"]) == (["a.router", "lm_head"], {"num_bits": 8})


def test_scales_of_activations_stay_tensors_and_show_in_the_config(tmp_path: Path) -> None:
    weight = {NAME: np.ones((N, K), ml_dtypes.float8_e4m3fn), f"{MODULE}.weight_scale": np.ones(1, np.float32)}
    given = weight | {f"{MODULE}.input_scale": np.ones(1, np.float32)}
    said = settings("float-quantized", num_bits=8, type="float", strategy="tensor", group_size=None)
    source = checkpoint(tmp_path / "source", given, said)
    qconvert.convert(source, tmp_path / "a.safetensors", to="compressed-tensors")
    with qconvert.open(tmp_path / "a.safetensors") as model:
        assert set(model) == {NAME, f"{MODULE}.input_scale"}
        said = json.loads(model.metadata["quantization_config"])["config_groups"]["group_0"]["input_activations"]
    assert (said["strategy"], said["dynamic"]) == ("tensor", False)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("gguf:q4_0", "w4a16-g32-sym"),
        ("gptq:v2", "w4a16-g128-asym"),
        ("gguf:q8_0", "w8a16-g128-sym"),
        ("qfmt:mxfp4", "mxfp4a16"),
        ("gguf:mxfp4", "mxfp4a16"),
    ],
)
def test_codes_go_over_to_other_formats_unchanged(target: str, path: str, tmp_path: Path) -> None:
    """Where a bfloat16 scale is no float16 the verdict says so, and no file is made."""
    source = next(variant for variant in VARIANTS if variant.name == path)
    allow = "rounded" if "w4" in path else "exact"
    suffix = target.partition(":")[0]
    dst = tmp_path / f"a.{suffix}" if suffix in ("gguf", "qfmt") else tmp_path / "folder"
    report = qconvert.convert(source, dst, to=target, allow=allow)
    assert set(report.plan.counts()) <= {"exact", "rounded"}
    if allow == "exact":
        with qconvert.open(source) as model, qconvert.open(dst) as written:
            for name, tensor in model.items():
                assert np.array_equal(written[name].dequantize(), tensor.dequantize())  # ggml's table has no -0


@pytest.mark.parametrize("kind", ["mxfp6", "mxfp8"])
def test_wider_levels_hold_narrower_ones_where_they_are_asked_for(kind: str, tmp_path: Path) -> None:
    source = next(variant for variant in VARIANTS if variant.name == "mxfp4a16")
    qconvert.convert(source, tmp_path / "wide", to=f"compressed-tensors:{kind}")
    with qconvert.open(source) as narrow, qconvert.open(tmp_path / "wide") as wide:
        assert {tensor.scheme.name for _, tensor in wide.items()} == {f"compressed-tensors:{kind}"}
        for name, tensor in narrow.items():
            assert wide[name].dequantize().tobytes() == tensor.dequantize().tobytes()
    assert config_of(tmp_path / "wide")["format"].startswith(kind)


def test_a_group_may_be_a_preset_by_name(tmp_path: Path) -> None:
    weight = {NAME: np.ones((N, K), np.int8), f"{MODULE}.weight_scale": scales((N, 1))}
    said = settings("int-quantized")
    said["quantization_config"]["config_groups"] = {"W8A8": ["Linear"]}
    source = checkpoint(tmp_path / "source", weight, said)
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors")
    group = config_of(tmp_path / "back")["config_groups"]["group_0"]
    assert (group["weights"]["strategy"], group["input_activations"]["strategy"]) == ("channel", "token")


def test_the_config_of_the_first_versions_is_read(tmp_path: Path) -> None:
    arrays, codes = packed(bits=8)
    said = {"compression_config": settings(num_bits=8)["quantization_config"]}
    source = checkpoint(tmp_path / "source", arrays, said)
    expected = codes * repeated(arrays[f"{MODULE}.weight_scale"], GROUP, K)
    assert decoded(source).tobytes() == expected.astype(np.float32).tobytes()


def test_a_matrix_of_many_units_is_packed_along_rows_and_columns(tmp_path: Path) -> None:
    shape = (608, 1024)
    values = {
        "codes": RNG.integers(0, 16, shape).astype(np.uint8),
        "scales": RNG.random((608, 8)).astype(np.float16),
        "zeros": RNG.integers(0, 16, (608, 8)).astype(np.uint8),
    }
    qformat.save(tmp_path / "a.qfmt", {NAME: from_values(find("uint4_g128"), shape, values)})
    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "folder", to="compressed-tensors")
    found = numbers(tmp_path / "folder/model.safetensors")
    assert found[f"{MODULE}.weight_packed"].tobytes() == words(values["codes"], 4).tobytes()
    assert found[f"{MODULE}.weight_zero_point"].tobytes() == np.ascontiguousarray(words(values["zeros"].T, 4).T).tobytes()


def test_the_exponent_255_is_infinite_and_stays(tmp_path: Path) -> None:
    arrays: Arrays = {
        f"{MODULE}.weight_packed": np.full((2, 16), 0x21, np.uint8),
        f"{MODULE}.weight_scale": np.array([[127], [255]], np.uint8),
    }
    said = settings("mxfp4-pack-quantized", type="float", group_size=32)
    source = checkpoint(tmp_path / "source", arrays, said)
    assert decoded(source)[1].tolist() == [np.inf] * 32
    qconvert.convert(source, tmp_path / "back", to="compressed-tensors")
    for target in ("gguf:mxfp4", "qfmt:mxfp4", "mlx"):
        with pytest.raises(NotExact, match="255"):
            qconvert.convert(source, tmp_path / "other", to=target)


Edit = Callable[[Arrays], Mapping[str, NDArray[Any] | None]]
WRONG: list[tuple[str, Edit, dict[str, Any], str]] = [
    ("columns", lambda a: {"weight_shape": np.array([N, 128])}, {}, "8 words for 128 columns of 4 bits, expected 16"),
    ("rows", lambda a: {"weight_shape": np.array([8, K])}, {}, "found int32 16 x 8, expected int32 8 x any (8 rows"),
    ("negative", lambda a: {"weight_shape": np.array([N, -K])}, {}, "shape 16 x -64, expected sizes above 0"),
    ("huge", lambda a: {"weight_shape": np.array([2**32, 2**32])}, {}, "expected int32 4294967296 x any"),
    ("three sizes", lambda a: {"weight_shape": np.array([N, K, 1])}, {}, "found int64 3, expected int64 or int32 2"),
    ("no shape", lambda a: {"weight_shape": None}, {}, "weight_shape is missing beside weight_packed, weight_scale"),
    ("no scale", lambda a: {"weight_scale": None}, {}, "weight_scale is missing beside weight_packed, weight_shape"),
    ("float codes", lambda a: {"weight_packed": np.ones((N, 8), np.float32)}, {}, "found float32 16 x 8, expected uint8"),
    ("few scales", lambda a: {"weight_scale": scales((N, 1))}, {}, "float32 16 x 2 (16 rows"),
    ("scales of other rows", lambda a: {"weight_scale": scales((N - 1, 2))}, {}, "blocks of 128 x 128 in 16 x 64"),
    ("int scales", lambda a: {"weight_scale": np.ones((N, 2), np.int8)}, {}, "found int8 16 x 2"),
    ("bits", lambda a: {}, {"num_bits": 5}, "8 words for 64 columns of 5 bits, expected 10 or 11"),
    ("no number", lambda a: {}, {"num_bits": "4"}, "num_bits '4', expected a number above 0"),
    ("group of none", lambda a: {}, {"group_size": 0}, "group_size 0, expected a number above 0"),
    ("other groups", lambda a: {}, {"group_size": 64}, "16 rows of 64 weights in groups of 64"),
    ("ragged groups", lambda a: {"weight_scale": scales((N, 3))}, {"group_size": None}, "64 columns in 3 groups"),
    ("no zero points", lambda a: {}, {"symmetric": False}, "weight_zero_point is missing"),
    ("zero points", lambda a: {"weight_zero_point": np.ones((3, 2), np.int32)}, {}, "found int32 3 x 2, expected int32 2 x 2"),
    ("g_idx", lambda a: {"weight_g_idx": np.full(K, 2, np.int32)}, {}, "column 0 is of group 2, expected 0 to 1"),
    ("short g_idx", lambda a: {"weight_g_idx": np.zeros(K - 1, np.int32)}, {}, "found int32 63, expected int32 64"),
    ("global scale", lambda a: {"weight_global_scale": np.ones(1, np.float32)}, {}, "found beside weights of"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "said", "words"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_arrays_that_do_not_fit_one_another_are_refused(edit: Edit, said: dict[str, Any], words: str, tmp_path: Path) -> None:
    arrays, _ = packed()
    changed = arrays | {f"{MODULE}.{word}": array for word, array in edit(arrays).items()}
    source = checkpoint(tmp_path / "source", {k: a for k, a in changed.items() if a is not None}, settings(**said))
    with pytest.raises(FileError, match=re.escape(words)) as caught:
        qconvert.open(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "pack-quantised-v9"}, "format 'pack-quantised-v9', expected one of pack-quantized"),
        ({"format": ["x"]}, "format a list, expected"),
        ({"config_groups": {}}, "no groups, expected the groups of modules"),
        ({"config_groups": [4]}, "a list, expected the groups"),
        ({"config_groups": {"g": {"targets": ["Linear"], "format": "odd"}}}, "format 'odd', expected"),
        ({"format": "marlin-24"}, "sparse compressed-tensors"),
    ],
)
def test_a_config_that_is_none_is_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    said = settings()
    said["quantization_config"] |= changes
    source = checkpoint(tmp_path / "source", packed()[0], said)
    with pytest.raises(FileError, match=words):
        qconvert.open(source)


E4M3 = ml_dtypes.float8_e4m3fn
FLOATS: list[tuple[dict[str, tuple[Any, tuple[int, ...]]], str]] = [
    ({"weight_packed": (np.uint8, (4, 16)), "weight_scale": (E4M3, (4, 2))}, "weight_global_scale is missing"),
    ({"weight_packed": (np.uint8, (4, 16)), "weight_scale": (np.uint8, (4, 2))}, "found uint8 4 x 2, expected uint8 or"),
    (
        {"weight_packed": (np.uint8, (4, 16)), "weight_scale": (np.uint8, (4, 1)), "weight_zero_point": (np.uint8, (4, 1))},
        "which have none",
    ),
    ({"weight": (E4M3, (4, 64)), "weight_scale": (np.uint8, (4, 1))}, "expected uint8 or float8_e8m0fnu 4 x 2"),
    (
        {"weight": (np.int8, (4, 64)), "weight_scale": (np.float16, (4, 1)), "weight_zero_point": (np.int32, (4, 1))},
        "found int32 4 x 1, expected int8 4 x 1",
    ),
    ({"weight": (np.int8, (4, 0)), "weight_scale": (np.float16, (4, 1))}, "holds 4 x 0, expected sizes above 0"),
    ({"weight": (np.int8, (4, 4, 4)), "weight_scale": (np.float16, (4, 1))}, "found int8 4 x 4 x 4, expected int8 or"),
]


@pytest.mark.parametrize(("arrays", "words"), FLOATS, ids=[words for _, words in FLOATS])
def test_small_floats_and_bytes_that_do_not_fit_are_refused(arrays: dict[str, Any], words: str, tmp_path: Path) -> None:
    given = {f"{MODULE}.{word}": np.zeros(shape, dtype) for word, (dtype, shape) in arrays.items()}
    source = checkpoint(tmp_path / "source", given, settings("mixed-precision", num_bits=8, group_size=None))
    with pytest.raises(FileError, match=re.escape(words)):
        qconvert.open(source)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_width_alone_says_the_bits_where_no_config_does(bits: int, tmp_path: Path) -> None:
    half = 1 << bits - 1
    codes = RNG.integers(-half, half, (N, 96))
    arrays, _ = packed(weight_packed=words(codes + half, bits), weight_shape=np.array([N, 96]), weight_scale=scales((N, 3)))
    source = checkpoint(tmp_path / "source", arrays)
    assert decoded(source).tobytes() == (codes * repeated(arrays[f"{MODULE}.weight_scale"], GROUP, 96)).astype("f4").tobytes()


@pytest.mark.parametrize(
    ("target", "module", "expected"),
    [
        ("lm_head", "lm_head", True),
        ("lm_head", "model.lm_head", False),
        ("re:.*lm_head", "model.lm_head", True),
        (r"re:.*\.mlp\.experts\.[0-9]+\.(up|gate)_proj$", "model.layers.3.mlp.experts.17.gate_proj", True),
        (r"re:.*\.mlp\.experts\.\d+\.(up|gate)_proj$", "model.layers.3.mlp.experts.17.down_proj", False),
        ("re:model.layers.[0-3].*", "model.layers.2.mlp", True),
        ("re:model.layers.[0-3].*", "x.model.layers.2.mlp", False),
        ("re:.*(up|upper)_proj", "model.upper_proj", True),
        ("re:(a+)+$", "aaaa", False),
        ("re:[", "[", False),
    ],
)
def test_targets_are_names_and_plain_patterns(target: str, module: str, expected: bool) -> None:
    assert matches(target, module) is expected


def test_no_pattern_takes_long() -> None:
    began = time.monotonic()
    for target in ("re:(a|a)*b", "re:" + ".*a" * 200 + "b", "re:" + "[a]+" * 200 + "b", "re:" + "(a|a)" * 150 + "b"):
        assert not matches(target, "a" * 1000)
    assert time.monotonic() - began < 5
