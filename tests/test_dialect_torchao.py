"""torchao checkpoints: decoded, written back, and refused where arrays and metadata do not fit one another."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import qconvert
from carried import written_again
from conftest import VECTORS
from handmade_checkpoint import CODES, arrays, same_floats, stored
from numpy.typing import NDArray

import qformat
from qformat import reference
from qformat.errors import FileError, NotExact
from qformat.formats import gguf
from qformat.scheme import Integers
from qformat.tensor import from_values

FOLDER = VECTORS / "hf" / "torchao"
VARIANTS = sorted(path.parent.name for path in FOLDER.glob("*/model.safetensors"))
NAMES = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"]
# variant: target, bits per weight of q_proj
FACTS = {
    "float8wo": ("torchao:fp8", 8 + 32 / 256), "int8wo": ("torchao:int8", 8 + 40 / 256),
    "intx-uint4-g32": ("torchao:int4", 8 + 24 / 32), "mxfp4": ("torchao:mxfp4", 4.25), "mxfp8": ("torchao:mxfp8", 8.25),
    "nvfp4": ("torchao:nvfp4", 4.5 + 32 / (32 * 256)),
}  # fmt: skip
RNG = np.random.default_rng(46)
BF16 = {"_type": "torch.dtype", "_data": "bfloat16"}
N, K, G = 6, 128, 32
Arrays = dict[str, NDArray[Any]]
Said = dict[str, Any]

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_weight = pytest.mark.parametrize("name", NAMES)


def metadata_of(folder: Path) -> dict[str, Any]:
    """Read the strings of a file, each as the JSON that it is."""
    data = (folder / "model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    return {key: json.loads(value) for key, value in header["__metadata__"].items()}


def write(folder: Path, held: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> Path:
    """Write a folder with arrays and strings."""
    folder.mkdir()
    header: Said = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for name, array in held.items():
        payload = np.ascontiguousarray(array).tobytes()
        places = [len(data), len(data) + len(payload)]
        header[name] = {"dtype": CODES[array.dtype], "shape": list(array.shape), "data_offsets": places}
        data += payload
    said = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(said)) + said + data)
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
    return folder


def weight(folder: Path, kind: str, facts: Said, parts: Mapping[str, NDArray[Any]]) -> Path:
    """Write a folder with one weight of a class."""
    said = {"_type": kind, "_data": facts, "_tensor_data_names": list(parts)}
    strings = {"m.weight": json.dumps(said), "tensor_names": json.dumps(["m.weight"])}
    return write(folder, {f"m._weight_{part}": array for part, array in parts.items()}, strings)


def repeated(params: NDArray[Any], size: int = G) -> NDArray[np.float32]:
    return np.repeat(params.astype(np.float32), size, axis=-1)


@every_variant
@every_weight
def test_a_stored_weight_decodes_as_torchao_decodes_it(variant: str, name: str) -> None:
    expected = arrays(FOLDER / variant / "expected.safetensors")[name]

    with qconvert.open(FOLDER / variant) as model:
        assert model.dialects == ("torchao",)
        made = model[name].dequantize(expected.dtype.name)

    assert made.shape == expected.shape
    assert same_floats(made.astype(np.float32), expected.astype(np.float32))


@every_variant
def test_a_stored_weight_has_its_format_and_size(variant: str) -> None:
    with qconvert.open(FOLDER / variant) as model:
        tensor = model[NAMES[0]]

    assert (tensor.scheme.name, tensor.bits_per_weight, tensor.dtype) == (*FACTS[variant], "bfloat16")


@every_variant
@pytest.mark.parametrize("through", ["torchao", "qfmt"])
def test_a_stored_checkpoint_is_written_again_array_for_array(variant: str, through: str, tmp_path: Path) -> None:
    made, counts = written_again(FOLDER / variant, "torchao", through, tmp_path)

    assert counts == {"same-bytes": 2}
    assert stored(made) == stored(FOLDER / variant)
    assert metadata_of(made) == metadata_of(FOLDER / variant)


@every_variant
def test_metadata_made_anew_says_what_the_peer_said(variant: str, tmp_path: Path) -> None:
    with qconvert.open(FOLDER / variant) as model:
        qformat.save(tmp_path / "without.qfmt", {name: model[name] for name in NAMES})

    qconvert.convert(tmp_path / "without.qfmt", tmp_path / "made", to="torchao")

    made, said = metadata_of(tmp_path / "made"), metadata_of(FOLDER / variant)
    assert made["tensor_names"] == said["tensor_names"]
    assert [json.dumps(made[name]) for name in NAMES] == [json.dumps(said[name]) for name in NAMES]


def test_dense_tensors_are_listed_too(tmp_path: Path) -> None:
    parts = {"qdata": np.zeros((N, K), np.int8), "scale": np.ones((N, 1), np.float32)}
    folder = weight(tmp_path / "m", "Int8Tensor", {"block_size": [1, K], "dtype": BF16}, parts)
    qconvert.convert(folder, tmp_path / "m.qfmt")
    with qformat.open(tmp_path / "m.qfmt") as model:
        qformat.save(tmp_path / "two.qfmt", dict(model.items()) | {"lm_head.weight": np.ones((2, 3), np.float16)})

    qconvert.convert(tmp_path / "two.qfmt", tmp_path / "made", to="torchao")

    said = metadata_of(tmp_path / "made")
    assert said["tensor_names"] == ["m.weight", "lm_head.weight"]
    assert said["lm_head.weight"] == {"_type": "Tensor"}
    config = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]
    assert config["modules_to_not_convert"] == ["lm_head"]
    assert config["quant_type"]["default"]["_type"] == "Int8WeightOnlyConfig"
    with qconvert.open(tmp_path / "made") as model:
        assert set(model) == {"m.weight", "lm_head.weight"}


def test_the_metadata_goes_no_further_than_torchao(tmp_path: Path) -> None:
    qconvert.convert(FOLDER / "mxfp4", tmp_path / "made", to="mlx:mxfp4")

    header = (tmp_path / "made" / "model.safetensors").read_bytes()
    assert b"MXTensor" not in header
    assert b"tensor_names" not in header


@pytest.mark.parametrize(("block", "shape"), [([1, K], (N, 1)), ([1, G], (N, K // G)), ([N, K], (1, 1)), ([2, 64], (3, 2))])
@pytest.mark.parametrize("zeros", [True, False])
def test_int8_has_scales_of_any_block(block: list[int], shape: tuple[int, int], zeros: bool, tmp_path: Path) -> None:
    codes = RNG.integers(-128, 128, (N, K)).astype(np.int8)
    scale, zero = RNG.standard_normal(shape).astype(np.float32), RNG.integers(-9, 9, shape).astype(np.int8)
    parts = {"qdata": codes, "scale": scale} | ({"zero_point": zero} if zeros else {})
    spread = np.repeat(np.repeat(scale, block[0], axis=0), block[1], axis=1)
    shifted = codes.astype(np.float32) - zeros * np.repeat(np.repeat(zero, block[0], axis=0), block[1], axis=1)

    folder = weight(tmp_path / "m", "Int8Tensor", {"block_size": block, "dtype": BF16}, parts)
    qconvert.convert(folder, tmp_path / "again", to="torchao")

    with qconvert.open(folder) as model:
        assert model["m.weight"].dequantize().tobytes() == (shifted * spread).astype(np.float32).tobytes()
    assert stored(tmp_path / "again") == stored(folder)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_of_few_bits_have_a_byte_each(bits: int, tmp_path: Path) -> None:
    codes = RNG.integers(-(1 << bits - 1), 1 << bits - 1, (N, K)).astype(np.int8)
    scale, zero = RNG.standard_normal((N, K // G)).astype(np.float16), RNG.integers(-3, 3, (N, K // G)).astype(np.int8)
    facts = {"target_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"}, "block_size": [1, G], "dtype": BF16}
    expected = (codes - repeated(zero)) * repeated(scale)

    folder = weight(tmp_path / "m", "IntxUnpackedToInt8Tensor", facts, {"qdata": codes, "scale": scale, "zero_point": zero})
    qconvert.convert(folder, tmp_path / "kept.qfmt")
    qconvert.convert(tmp_path / "kept.qfmt", tmp_path / "again", to="torchao")

    with qconvert.open(folder) as model:
        assert model["m.weight"].dequantize().tobytes() == expected.tobytes()
        assert reference.decode(model["m.weight"]).tobytes() == expected.tobytes()
        assert model["m.weight"].scheme.alphabet == Integers(-(1 << bits - 1), (1 << bits - 1) - 1)
    assert stored(tmp_path / "again") == stored(folder)
    assert metadata_of(tmp_path / "again")["m.weight"]["_data"]["target_dtype"]["_data"] == f"int{bits}"


def test_int4_has_two_codes_in_a_byte_and_biases_by_group(tmp_path: Path) -> None:
    codes = RNG.integers(-8, 8, (N, K)).astype(np.int8)
    packed = (codes[:, ::2] & 15) | (codes[:, 1::2] << 4)
    scale, bias = RNG.standard_normal((2, K // G, N)).astype(ml_dtypes.bfloat16)
    expected = codes.astype(np.float32) * repeated(scale.T) + repeated(bias.T)

    facts = {"activation_dtype": BF16, "block_size": [1, G], "shape": [N, K]}
    folder = weight(tmp_path / "m", "Int4Tensor", facts, {"qdata": packed, "scale": scale, "zero_point": bias})
    qconvert.convert(folder, tmp_path / "again", to="torchao")

    with qconvert.open(folder) as model:
        assert (model["m.weight"].shape, model["m.weight"].dequantize().tobytes()) == ((N, K), expected.tobytes())
    assert stored(tmp_path / "again") == stored(folder)
    assert metadata_of(tmp_path / "again") == metadata_of(folder)


def test_float8_of_stacked_experts_has_a_scale_for_each_row(tmp_path: Path) -> None:
    codes = RNG.integers(0, 0x7F, (2, N, K), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    scale = RNG.standard_normal((2, N, 1)).astype(np.float32)

    folder = weight(tmp_path / "m", "Float8Tensor", {"block_size": [1, 1, K], "dtype": BF16}, {"qdata": codes, "scale": scale})
    qconvert.convert(folder, tmp_path / "again", to="torchao")

    with qconvert.open(folder) as model:
        assert model["m.weight"].shape == (2, N, K)
        assert model["m.weight"].dequantize().tobytes() == (codes.astype(np.float32) * scale).tobytes()
    assert stored(tmp_path / "again") == stored(folder)


@pytest.mark.parametrize("extra", [("per_tensor_scale",), (), ("per_tensor_scale", "act_per_tensor_scale")])
def test_nvfp4_may_have_a_scale_of_the_tensor_and_one_of_activations(extra: tuple[str, ...], tmp_path: Path) -> None:
    codes = RNG.integers(0, 256, (N, K // 2), dtype=np.uint8)
    scale = RNG.integers(0, 0x7F, (N, K // 16), dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    parts = {part: np.array(0.3, np.float32) for part in extra} | {"qdata": codes, "scale": scale}
    values = np.stack([codes & 15, codes >> 4], axis=-1).reshape(N, K).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    factor = scale.astype(np.float32) * (np.float32(0.3) if extra else np.float32(1))

    folder = weight(tmp_path / "m", "NVFP4Tensor", {"block_size": 16, "orig_dtype": BF16}, parts)
    qconvert.convert(folder, tmp_path / "again", to="torchao")

    with qconvert.open(folder) as model:
        assert model["m.weight"].dequantize().tobytes() == (values * np.repeat(factor, 16, axis=1)).tobytes()
    assert stored(tmp_path / "again") == stored(folder)


@pytest.mark.parametrize(("target", "kind"), [("torchao:int8", "Int8Tensor"), ("torchao:int4", "IntxUnpackedToInt8Tensor")])
def test_q4_0_becomes_torchao_and_comes_back(target: str, kind: str, tmp_path: Path) -> None:
    values = {
        "codes": RNG.integers(-8, 8, (6, 64)).astype(np.int8),
        "scales": RNG.standard_normal((6, 2)).astype(np.float16),
    }
    qformat.save(tmp_path / "q.qfmt", {"m.weight": from_values(gguf.Q4_0, (6, 64), values)})

    report = qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to=target)
    qconvert.convert(tmp_path / "made", tmp_path / "back.gguf", to="gguf:q4_0")

    assert report.plan.counts() == {"exact": 1}
    assert metadata_of(tmp_path / "made")["m.weight"]["_type"] == kind
    with qconvert.open(tmp_path / "back.gguf") as model:
        assert model["m.weight"].codes().tobytes() == values["codes"].tobytes()
        assert model["m.weight"].param("scales").tobytes() == values["scales"].tobytes()


INT8: Said = {"block_size": [1, K], "dtype": BF16}
PARTS: Arrays = {"qdata": np.zeros((N, K), np.int8), "scale": np.ones((N, 1), np.float32)}
NIBBLES: Arrays = {"qdata": np.zeros((N, K // 2), np.uint8), "scale": np.ones((N, K // 32), ml_dtypes.float8_e8m0fnu)}
FP4 = {"_type": "torch.dtype", "_data": "float4_e2m1fn_x2"}
WRONG: dict[str, tuple[str, Said, Arrays, str]] = {
    "class": ("Int4PlainInt32Tensor", INT8, PARTS, r"is a torchao Int4PlainInt32Tensor, which is not read: expected one of"),
    "part": ("Int8Tensor", INT8, PARTS | {"act_pre_scale": np.ones(K, np.float32)}, r"the parts .*, 'act_pre_scale'\]"),
    "parts": ("Int8Tensor", INT8, {"qdata": PARTS["qdata"]}, r"has the parts \['qdata'\], expected qdata and scale"),
    "block": ("Int8Tensor", {"block_size": [1, 100]}, PARTS, r"block_size \[1, 100\], expected .* divide .*\[6, 128\]"),
    "no block": ("Int8Tensor", {"dtype": BF16}, PARTS, r"block_size None, expected"),
    "rank": ("Int8Tensor", INT8, PARTS | {"qdata": np.zeros(K, np.int8)}, r"found 1 dimensions, expected rows and columns"),
    "scale": ("Int8Tensor", INT8, PARTS | {"scale": np.ones((N, 2), np.float32)}, r"found float32 6 x 2, expected .* 6 x 1"),
    "type": ("Int8Tensor", INT8, PARTS | {"scale": np.ones((N, 1), np.int8)}, r"scales are int8, expected one of bfloat16"),
    "codes": ("Int8Tensor", INT8, PARTS | {"qdata": np.zeros((N, K), np.uint8)}, r"found uint8 6 x 128, expected int8 6 x 128"),
    "dtype": ("Int8Tensor", INT8 | {"dtype": "int3"}, PARTS, r"dtype is 'int3', expected one of bfloat16"),
    "float": ("Float8Tensor", INT8, PARTS, r"codes are int8, expected float8_e4m3fn or float8_e5m2"),
    "swizzled": ("MXTensor", {"elem_dtype": FP4, "block_size": 32, "is_swizzled_scales": True}, NIBBLES, "has swizzled scales"),
    "element": ("MXTensor", {"elem_dtype": "fp6_e2m3", "block_size": 32}, NIBBLES, r"elem_dtype is 'fp6_e2m3', expected"),
    "size": ("MXTensor", {"elem_dtype": FP4, "block_size": 16}, NIBBLES, r"block_size is 16, expected 32"),
    "bits": ("IntxUnpackedToInt8Tensor", INT8 | {"target_dtype": "int9"}, PARTS, r"target_dtype is 'int9', expected"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_arrays_and_metadata_that_do_not_fit_one_another_are_refused(case: str, tmp_path: Path) -> None:
    kind, facts, parts, message = WRONG[case]

    with pytest.raises(FileError, match=message) as caught:
        qconvert.open(weight(tmp_path / "m", kind, facts, parts))
    assert "\n" not in str(caught.value)


STRINGS: dict[str, tuple[dict[str, str], str]] = {
    "no json": ({"tensor_names": "["}, "tensor_names"),
    "no list": ({"tensor_names": '"m.weight"'}, "tensor_names in the metadata is no list of names that the metadata describes"),
    "no names": ({"tensor_names": "[1]"}, "is no list of names"),
    "unknown": ({"tensor_names": '["m.weight"]'}, "is no list of names"),
    "missing": (
        {
            "tensor_names": '["m.weight"]',
            "m.weight": '{"_type": "Int8Tensor", "_data": {}, "_tensor_data_names": ["qdata", "scale", "zero_point"]}',
        },
        "has no array 'm._weight_zero_point', which the metadata names",
    ),
    "nameless": ({"other": "x"}, r"tensor 'm._weight_qdata'.*is a part of a packed weight whose other arrays are missing"),
    "deep": ({"tensor_names": '["m.weight"]', "m.weight": "[" * 100_000}, "nested"),
}


@pytest.mark.parametrize("case", STRINGS)
def test_metadata_that_describes_no_weights_is_refused(case: str, tmp_path: Path) -> None:
    strings, message = STRINGS[case]

    with pytest.raises(FileError, match=message) as caught:
        qconvert.open(write(tmp_path / "m", {f"m._weight_{part}": array for part, array in PARTS.items()}, strings))
    assert "\n" not in str(caught.value)


def test_a_name_without_a_module_is_refused(tmp_path: Path) -> None:
    values = {"codes": np.zeros((2, 32), np.int8), "scales": np.ones((2, 1), np.float16)}
    qformat.save(tmp_path / "q.qfmt", {"odd": from_values(gguf.Q4_0, (2, 32), values)})

    with pytest.raises(NotExact, match=r"torchao holds matrices named '<module>.weight'"):
        qconvert.convert(tmp_path / "q.qfmt", tmp_path / "made", to="torchao")
