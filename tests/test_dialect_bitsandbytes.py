"""bitsandbytes checkpoints: decoded, written back, and refused where their arrays do not fit one another."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
import safetensors
from conftest import VECTORS
from handmade_checkpoint import arrays as numbers
from handmade_checkpoint import checkpoint, stored
from numpy.typing import NDArray
from qconvert.report import Refused

import qformat
from qformat import reference
from qformat.errors import FileError, NotExact
from qformat.formats.bitsandbytes import int8
from qformat.tensor import from_values

Arrays = dict[str, NDArray[Any]]

HF = VECTORS / "hf"
VARIANTS = sorted(path.parent for path in (HF / "bitsandbytes").glob("*/model.safetensors"))
EXPECTED = [
    (folder, name.removesuffix(".float32"))
    for folder in VARIANTS
    for name in sorted(numbers(folder / "expected.safetensors"))
    if name.endswith(".float32")
]
NAME = "m.weight"
STATE = f"{NAME}.quant_state.bitsandbytes__"
N, K, BLOCK, NESTED = 5, 104, 64, 32  # blocks cross rows, the last is short, and the last of the scales' groups as well
TABLES = numbers(HF / "bitsandbytes" / "tables" / "tables.safetensors")
TINY = HF / "tiny-llama" / "bnb-nf4-dq"

every_variant = pytest.mark.parametrize("folder", VARIANTS, ids=lambda folder: folder.name)
every_weight = pytest.mark.parametrize(("folder", "name"), EXPECTED, ids=[f"{f.name}:{n}" for f, n in EXPECTED])


def four_bit(table: str = "nf4", nested: bool = False, **changed: Any) -> Arrays:
    """Make the arrays of a weight; `changed` replaces keys of its JSON."""
    rng = np.random.default_rng(4)
    n_blocks = -(-N * K // BLOCK)
    said = {"quant_type": table, "blocksize": BLOCK, "dtype": "bfloat16", "shape": [N, K]}
    found: Arrays = {
        NAME: rng.integers(0, 256, (N * K // 2, 1), dtype=np.uint8),
        f"{NAME}.absmax": rng.uniform(0.1, 2, n_blocks).astype(np.float32),
        f"{NAME}.quant_map": TABLES[table],
    }
    if nested:
        said |= {"nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": 0.375}
        found |= {
            f"{NAME}.absmax": rng.integers(0, 256, n_blocks, dtype=np.uint8),
            f"{NAME}.nested_absmax": rng.uniform(0.1, 2, -(-n_blocks // NESTED)).astype(np.float32),
            f"{NAME}.nested_quant_map": TABLES["dynamic"],
        }
    return found | {STATE + table: text({key: value for key, value in (said | changed).items() if value is not None})}


def eight_bit() -> Arrays:
    rng = np.random.default_rng(8)
    scales = rng.uniform(0.1, 2, N).astype(np.float32)
    codes = rng.integers(-128, 128, (N, K), dtype=np.int8)
    return {NAME: codes, "m.SCB": scales, "m.weight_format": np.zeros((), np.uint8)}


def text(said: object) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


def codes_of(arrays: Arrays) -> NDArray[np.uint8]:
    data = np.frombuffer(arrays[NAME].tobytes(), np.uint8)
    return np.stack([data >> 4, data & 15], axis=1).reshape(-1)[: N * K]


def decoded(arrays: Arrays) -> NDArray[np.float32]:
    """Decode a weight with a float32 scale for each block by plain NumPy."""
    levels = arrays[f"{NAME}.quant_map"][codes_of(arrays)]
    return (levels * np.repeat(arrays[f"{NAME}.absmax"], BLOCK)[: N * K]).reshape(N, K)


def refusal(folder: Path, arrays: Arrays) -> FileError:
    with pytest.raises(FileError) as caught, qconvert.open(checkpoint(folder, arrays)):
        pass
    assert "\n" not in str(caught.value)
    return caught.value


@every_weight
def test_a_stored_weight_decodes_as_bitsandbytes_decodes_it(folder: Path, name: str) -> None:
    expected = numbers(folder / "expected.safetensors")

    with qconvert.open(folder) as model:
        tensor = model[name]
        assert model.dialects == ("bitsandbytes",)
        assert tensor.dequantize().tobytes() == expected[f"{name}.float32"].tobytes()
        if name in expected:  # one rounding to the dtype of the state
            assert tensor.dtype == expected[name].dtype.name
            assert tensor.dequantize(tensor.dtype).tobytes() == expected[name].tobytes()


def test_scales_of_two_levels_are_given_as_one_float32() -> None:
    folder = HF / "bitsandbytes" / "nf4-b64-dq"
    name = "model.layers.0.self_attn.q_proj.weight"

    with qconvert.open(folder) as model:
        scales = model[name].scales()

    assert scales is not None
    assert scales.tobytes() == numbers(folder / "expected.safetensors")[f"{name}.absmax_float32"].tobytes()


@every_variant
def test_what_is_written_back_is_what_was_read(folder: Path, tmp_path: Path) -> None:
    report = qconvert.convert(folder, tmp_path / "out", to="bnb")

    assert set(report.plan.counts()) == {"same-bytes"}
    assert stored(tmp_path / "out") == stored(folder)
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    mine = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {key: mine[key] for key in said} == said


@every_variant
def test_a_qfmt_file_gives_the_arrays_back(folder: Path, tmp_path: Path) -> None:
    qconvert.convert(folder, tmp_path / "a.qfmt", to="qfmt")

    qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to="bnb")

    assert stored(tmp_path / "out") == stored(folder)


def test_a_model_in_several_files_is_written_back(tmp_path: Path) -> None:
    qconvert.convert(TINY, tmp_path / "out", to="bnb")

    found = stored(tmp_path / "out")
    files = sorted(TINY.glob("*.safetensors"))
    parts = [array for path in files for array in safetensors.deserialize(path.read_bytes())]
    assert found == {name: (array["dtype"], tuple(array["shape"]), bytes(array["data"])) for name, array in parts}
    mine, said = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", TINY))
    assert mine == said


@pytest.mark.parametrize(
    ("variant", "bits", "weights"), [("nf4-b64", 4.5, 8192), ("fp4-b128", 4.25, 8192), ("nf4-b64-odd", 4.53046875, 2861)]
)
def test_bits_and_weights_are_those_of_the_logical_matrix(variant: str, bits: float, weights: int) -> None:
    with qconvert.open(HF / "bitsandbytes" / variant) as model:
        tensors = [tensor for _, tensor in model.items()]

    n_bytes = sum(tensor.n_bytes for tensor in tensors)
    assert sum(tensor.n_weights for tensor in tensors) == weights
    assert 8 * n_bytes / weights == pytest.approx(bits, abs=0.005)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
def test_blocks_cross_rows(table: str, tmp_path: Path) -> None:
    arrays = four_bit(table)

    with qconvert.open(checkpoint(tmp_path / "m", arrays)) as model:
        tensor = model[NAME]
        assert tensor.dequantize().tobytes() == decoded(arrays).tobytes()
        assert tensor.dequantize(rows=slice(1, 3)).tobytes() == decoded(arrays)[1:3].tobytes()
        assert reference.decode(tensor).tobytes() == decoded(arrays).tobytes()


def test_eight_bit_scales_are_looked_up_multiplied_and_shifted(tmp_path: Path) -> None:
    arrays = four_bit(nested=True)
    index, many = arrays[f"{NAME}.absmax"], arrays[f"{NAME}.nested_absmax"]
    product = arrays[f"{NAME}.nested_quant_map"][index] * np.repeat(many, NESTED)[: index.size]
    expected = decoded(arrays | {f"{NAME}.absmax": product + np.float32(0.375)})

    with qconvert.open(checkpoint(tmp_path / "m", arrays)) as model:
        assert model[NAME].dequantize().tobytes() == expected.tobytes()
        assert reference.decode(model[NAME]).tobytes() == expected.tobytes()


def test_int8_multiplies_by_the_largest_magnitude_and_then_by_a_127th(tmp_path: Path) -> None:
    arrays = eight_bit()
    expected = arrays[NAME].astype(np.float32) * arrays["m.SCB"][:, None] * np.float32(1 / 127)

    with qconvert.open(checkpoint(tmp_path / "m", arrays)) as model:
        assert model[NAME].dequantize().tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_codes_may_be_stored_as_a_wider_type(dtype: Any, tmp_path: Path) -> None:
    arrays = four_bit()
    wide = arrays | {NAME: arrays[NAME].reshape(-1).view(dtype).reshape(-1, 1)}

    with qconvert.open(checkpoint(tmp_path / "m", wide)) as model:
        assert model[NAME].dequantize().tobytes() == decoded(arrays).tobytes()
    qconvert.convert(tmp_path / "m", tmp_path / "out", to="bnb")

    assert numbers(tmp_path / "out" / "model.safetensors")[NAME].tobytes() == arrays[NAME].tobytes()


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_of_its_own_is_kept(nested: bool, tmp_path: Path) -> None:
    arrays = four_bit("fp4", nested)
    arrays[f"{NAME}.quant_map"] = (arrays[f"{NAME}.quant_map"] * np.float32(1.5)).astype(np.float32)
    folder = checkpoint(tmp_path / "m", arrays)

    if not nested:
        with qconvert.open(folder) as model:
            assert model[NAME].dequantize().tobytes() == decoded(arrays).tobytes()
    qconvert.convert(folder, tmp_path / "a.qfmt", to="qfmt")
    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to="bnb")

    assert [item.target for item in report.plan.items] == ["bnb:fp4-dq" if nested else "bnb:fp4"]
    assert stored(tmp_path / "out") == stored(folder)


def test_a_table_that_the_peer_does_not_decode_by_is_doubted(tmp_path: Path) -> None:
    arrays = four_bit()
    arrays[f"{NAME}.quant_map"] = arrays[f"{NAME}.quant_map"][::-1].copy()

    with qconvert.open(checkpoint(tmp_path / "m", arrays)) as model:
        found = [(oddity.level, oddity.message) for oddity in model.oddities]
    with qconvert.open(checkpoint(tmp_path / "n", four_bit())) as model:
        assert list(model.oddities) == []

    assert [level for level, _ in found] == ["warning"]
    assert "1 quant_map are not the levels of their type, the first that of 'm.weight'" in found[0][1]


def test_a_stack_of_experts_keeps_its_name_and_shape(tmp_path: Path) -> None:
    arrays = {name.replace(NAME, "experts.down_proj"): array for name, array in four_bit(shape=[5, 8, 13]).items()}

    with qconvert.open(checkpoint(tmp_path / "m", arrays)) as model:
        assert model["experts.down_proj"].shape == (5, 8, 13)
    qconvert.convert(tmp_path / "m", tmp_path / "out", to="bnb")

    assert stored(tmp_path / "out") == stored(tmp_path / "m")


@pytest.mark.parametrize("folder", [f for f in VARIANTS if "-dq" in f.name], ids=lambda folder: folder.name)
def test_eight_bit_scales_expand_to_float32(folder: Path, tmp_path: Path) -> None:
    report = qconvert.convert(folder, tmp_path / "out", to=f"bnb:{folder.name[:3]}")

    assert set(report.plan.counts()) == {"exact"}
    found, expected = numbers(tmp_path / "out" / "model.safetensors"), numbers(folder / "expected.safetensors")
    scales = {name: found[name.replace("_float32", "")].tobytes() for name in expected if name.endswith("absmax_float32")}
    assert scales == {name: expected[name].tobytes() for name in scales}
    with qconvert.open(tmp_path / "out") as model:
        for name, tensor in model.items():
            assert tensor.dequantize().tobytes() == expected[f"{name}.float32"].tobytes()


def test_float32_scales_are_never_made_eight_bit_ones(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="bnb:nf4 to bnb:nf4-dq"):
        qconvert.convert(HF / "bitsandbytes" / "nf4-b64", tmp_path / "out", to="bnb:nf4-dq")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["bnb:fp4", "gguf:q4_0", "gguf:mxfp4"])
def test_levels_that_another_table_lacks_are_refused(to: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"model\.layers\.0\.self_attn\.q_proj\.weight.*bnb:nf4 to .*alphabets"):
        qconvert.convert(HF / "bitsandbytes" / "nf4-b64", tmp_path / "out", to=to)


def test_nf4_of_a_qfmt_file_is_that_of_bitsandbytes(tmp_path: Path) -> None:
    weights = np.random.default_rng(5).standard_normal((8, 96)).astype(np.float32)
    qformat.save(tmp_path / "a.qfmt", {NAME: qformat.quantize(weights, "nf4")})

    report = qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to="bnb:nf4")

    assert report.plan.counts() == {"same-bytes": 1}
    found = numbers(tmp_path / "out" / "model.safetensors")
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [8, 96]}
    assert found[f"{STATE}nf4"].tobytes().decode() == json.dumps(said)
    assert found[f"{NAME}.quant_map"].tobytes() == TABLES["nf4"].tobytes()


def test_the_config_names_the_matrices_that_stay_dense(tmp_path: Path) -> None:
    dense = np.ones((4, 8), np.float32)
    names = ("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight")
    folder = checkpoint(tmp_path / "m", four_bit() | dict.fromkeys(names, dense) | {"model.norm.weight": dense[0]})

    qconvert.convert(folder, tmp_path / "out", to="bnb:nf4")

    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["llm_int8_skip_modules"] == ["lm_head", "model.layers.0.mlp.gate"]


def test_how_to_compute_is_kept_from_the_config_and_else_follows_the_state(tmp_path: Path) -> None:
    said = {"quant_method": "bitsandbytes", "bnb_4bit_compute_dtype": "float16", "llm_int8_threshold": 5.0}
    checkpoint(tmp_path / "said", four_bit(dtype="float32"), {"quantization_config": said})
    checkpoint(tmp_path / "odd", four_bit(dtype="float32"), {"quantization_config": said | {"bnb_4bit_compute_dtype": "int4"}})

    for name in ("said", "odd"):
        qconvert.convert(tmp_path / name, tmp_path / f"{name}-out", to="bnb")

    found = [json.loads((tmp_path / f"{name}-out" / "config.json").read_text()) for name in ("said", "odd")]
    assert [config["quantization_config"]["bnb_4bit_compute_dtype"] for config in found] == ["float16", "float32"]
    assert [config["quantization_config"]["llm_int8_threshold"] for config in found] == [5.0, 5.0]


def test_the_config_says_that_nothing_is_left_out_where_the_output_matrix_is_packed(tmp_path: Path) -> None:
    arrays = {name.replace("m.", "lm_head.", 1): array for name, array in four_bit().items()}

    qconvert.convert(checkpoint(tmp_path / "m", arrays), tmp_path / "out", to="bnb")

    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert said["llm_int8_skip_modules"] == []


BROKEN: dict[str, tuple[Callable[[Arrays], Arrays], tuple[str, ...]]] = {
    "fewer codes than weights": (lambda a: a | {NAME: a[NAME][:-1]}, (NAME, "259 bytes", "260", "5 x 104")),
    "more codes than weights": (lambda a: a | {NAME: np.zeros((261, 1), np.uint8)}, ("261 bytes", "expected 260")),
    "fewer scales than blocks": (lambda a: a | {f"{NAME}.absmax": a[f"{NAME}.absmax"][1:]}, (".absmax", "8", "9", "each 64")),
    "scales of another type": (
        lambda a: a | {f"{NAME}.absmax": np.zeros(9, np.uint8)}, ("absmax", "found uint8 9", "expected float32 9"),
    ),
    "no scales": (lambda a: {k: v for k, v in a.items() if k != f"{NAME}.absmax"}, (f"{NAME}.absmax", "is missing")),
    "no codes": (lambda a: {k: v for k, v in a.items() if k != NAME}, (NAME, "is missing")),
    "a table of another size": (lambda a: a | {f"{NAME}.quant_map": TABLES["dynamic"]}, ("quant_map", "256", "16")),
    "second scales that the state does not name": (
        lambda a: a | {f"{NAME}.nested_absmax": np.ones(1, np.float32)}, ("nested_absmax", "is no part of"),
    ),
    "a block of no such size": (lambda a: a | four_bit(blocksize=48), ("blocksize is 48", "32, 64, 128")),
    "a block that is no number": (lambda a: a | four_bit(blocksize=True), ("blocksize is true", "32, 64, 128")),
    "a shape of other weights": (lambda a: a | four_bit(shape=[N, K + 1]), ("260 bytes", "expected 263", "5 x 105")),
    "a shape without weights": (lambda a: a | four_bit(shape=[0, 1 << 70]), ("shape is [0, 118", "1 to 8 positive sizes")),
    "a shape without end": (lambda a: a | four_bit(shape=[1 << 70, 1 << 70]), ("260 bytes", "expected 6968")),
    "no shape": (lambda a: a | four_bit(shape=None), ("shape is nothing", "1 to 8 positive sizes")),
    "a type of weights that there is not": (lambda a: a | four_bit(dtype="float64"), ('dtype is "float64"', "bfloat16")),
    "a state of another table": (lambda a: a | four_bit(quant_type="fp4"), ('quant_type is "fp4"', "'nf4'")),
    "a table that there is not": (
        lambda a: {k.replace("__nf4", "__af4"): v for k, v in four_bit(quant_type="af4").items()}, ('"af4"', "nf4, fp4"),
    ),
    "a state that is no JSON": (lambda a: a | {f"{STATE}nf4": np.zeros(9, np.uint8)}, ("quant state is not JSON",)),
    "a state that is a list": (lambda a: a | {f"{STATE}nf4": text([1])}, ("quant state is a list", "an object")),
    "a state without end": (
        lambda a: a | {f"{STATE}nf4": np.frombuffer(b"[" * 99999, np.uint8)}, ("nested deeper than 64 levels",),
    ),
    "two states of one weight": (lambda a: a | {f"{STATE}fp4": text({})}, ("belongs to",)),
}  # fmt: skip


@pytest.mark.parametrize(("broken", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_arrays_that_do_not_fit_are_refused(broken: Callable[[Arrays], Arrays], words: tuple[str, ...], tmp_path: Path) -> None:
    error = refusal(tmp_path / "m", broken(four_bit()))

    assert [word for word in words if word not in str(error)] == []


NESTED_BROKEN: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "a block of no such size": ({"nested_blocksize": 0}, {}, ("nested_blocksize is 0", "32, 64")),
    "scales of another type": ({"nested_dtype": "float16"}, {}, ('nested_dtype is "float16"', "float32")),
    "an offset that is no float32": ({"nested_offset": 1e39}, {}, ("nested_offset is 1e+39", "finite float32")),
    "an offset without end": ({"nested_offset": 10**400}, {}, ("nested_offset is 1000", "finite float32")),
    "an offset that is no number": ({"nested_offset": "0"}, {}, ('nested_offset is "0"', "finite float32")),
    "a table of another size": ({}, {".nested_quant_map": np.zeros(255, np.float32)}, ("255", "256")),
    "too many of the second": ({}, {".nested_absmax": np.zeros(2, np.float32)}, ("float32 2", "float32 1", "each 32")),
    "float scales": ({}, {".absmax": np.zeros(9, np.float32)}, ("float32 9", "uint8 9")),
    "no second scales said": ({"nested_blocksize": None}, {}, ("nested_absmax", "is no part of")),
}  # fmt: skip


@pytest.mark.parametrize(("said", "changed", "words"), NESTED_BROKEN.values(), ids=NESTED_BROKEN.keys())
def test_eight_bit_scales_that_do_not_fit_are_refused(
    said: dict[str, Any], changed: dict[str, Any], words: tuple[str, ...], tmp_path: Path
) -> None:
    arrays = four_bit(nested=True, **said) | {NAME + suffix: array for suffix, array in changed.items()}

    error = refusal(tmp_path / "m", arrays)

    assert [word for word in words if word not in str(error)] == []


INT8_BROKEN: dict[str, tuple[Arrays, tuple[str, ...]]] = {
    "scales of other rows": ({"m.SCB": np.ones(N + 1, np.float32)}, ("m.SCB", "float32 6", "float32 5")),
    "codes that are no int8": ({NAME: np.ones((N, K), np.uint8)}, (NAME, "uint8 5 x 104", "int8 any x any")),
    "tiles": ({"m.weight_format": np.array(2, np.uint8)}, ("m.weight_format", "order 2", "expected 0", "tiles")),
    "an order that is a list": ({"m.weight_format": np.zeros(1, np.uint8)}, ("m.weight_format", "uint8 1", "uint8 scalar")),
}


@pytest.mark.parametrize(("changed", "words"), INT8_BROKEN.values(), ids=INT8_BROKEN.keys())
def test_int8_arrays_that_do_not_fit_are_refused(changed: Arrays, words: tuple[str, ...], tmp_path: Path) -> None:
    error = refusal(tmp_path / "m", eight_bit() | changed)

    assert [word for word in words if word not in str(error)] == []


def test_int8_without_an_order_is_by_rows_and_is_written_with_one(tmp_path: Path) -> None:
    arrays = eight_bit()
    folder = checkpoint(tmp_path / "m", {name: array for name, array in arrays.items() if name != "m.weight_format"})

    qconvert.convert(folder, tmp_path / "out", to="bnb:int8")

    found = numbers(tmp_path / "out" / "model.safetensors")
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_int8_of_no_module_is_not_written(tmp_path: Path) -> None:
    values = {"codes": np.zeros((2, 8), np.int8), "scales": np.ones((2, 1), np.float32)}
    qformat.save(tmp_path / "a.qfmt", {"lone": from_values(int8(), (2, 8), values)})

    with pytest.raises(NotExact, match=r"tensor 'lone'.*<module>\.weight"):
        qconvert.convert(tmp_path / "a.qfmt", tmp_path / "out", to="bnb:int8")
