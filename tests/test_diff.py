"""Two checkpoints compared: numbers by hand, files that differ in one known place, and what is looked at when."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import handmade_gguf as made
import ml_dtypes
import numpy as np
import pytest
import qconvert
from handmade_models import MODELS
from numpy.typing import NDArray
from qconvert import architectures
from qconvert.compare import Deviation, deviation, first_difference, same_bytes, same_format
from qconvert.difference import Difference, TensorDifference, compare_models
from qconvert.pairing import Rename, pair_names, parse_rename
from qconvert.views import Origin, View
from safetensors.numpy import save_file

import qformat
from qformat.decoding import TILE_WEIGHTS
from qformat.errors import FileError, UsageError
from qformat.file import Column, PartSpec, TensorSpec, Writer, open_file
from qformat.file.same import is_same_part
from qformat.model import Model
from qformat.tensor import from_array

INF, NAN = float("inf"), float("nan")
F32 = np.float32


def f32(*values: float) -> NDArray[np.float32]:
    return np.array(values, F32)


def floats(*bits: int) -> NDArray[np.float32]:
    return np.array(bits, np.uint32).view(F32)


def ints(dtype: str, *values: int) -> NDArray[Any]:
    return np.array(values, dtype)


# a, b, weights that differ, largest |b - a|, largest |b - a| / |a|
BY_HAND = {
    "equal": (f32(1, 2), f32(1, 2), (0, 0.0, 0.0)),
    "the larger of both, not of the same weight": (f32(1, 100, 4), f32(1.5, 101, 4), (2, 1.0, 0.5)),
    "relative to the first": (f32(2, 8), f32(8, 2), (2, 6.0, 3.0)),
    "from zero": (f32(0, 1), f32(0.25, 1), (1, 0.25, INF)),
    "to zero": (f32(0.25), f32(0), (1, 0.25, 1.0)),
    "zeros of two signs": (f32(0.0, -0.0), f32(-0.0, 0.0), (0, 0.0, 0.0)),
    "the least step": (floats(0, 1), floats(1, 1), (1, 2.0**-149, INF)),
    "two payloads of NaN": (floats(0x7FC00000, 0xFFC00001), floats(0x7FC0BEEF, 0x7F800001), (0, 0.0, 0.0)),
    "NaN beside a larger difference": (f32(NAN, 1, 1), f32(1, NAN, 9), (3, NAN, NAN)),
    "infinities": (f32(INF, -INF), f32(INF, -INF), (0, 0.0, 0.0)),
    "to infinity": (f32(2), f32(INF), (1, INF, INF)),
    "from infinity": (f32(INF), f32(2), (1, INF, INF)),
    "float32 has no room for it": (floats(0x7F7FFFFF), floats(0xFF7FFFFF), (1, 2 * (2.0**128 - 2.0**104), 2.0)),
    "float64, one bit": (np.array([1.0]), np.array([1 + 2.0**-52]), (1, 2.0**-52, 2.0**-52)),
    "float64 by its bytes": (np.array([0.0]), np.array([-0.0]), (1, 0.0, 0.0)),
    "float32 and float64": (f32(1, 0.5), np.array([1 + 2.0**-30, 0.5]), (1, 2.0**-30, 2.0**-30)),
    "float16 and float32": (np.array([0.1], np.float16), f32(0.0999755859375), (0, 0.0, 0.0)),
    "bfloat16 and float16": (np.array([1.5], ml_dtypes.bfloat16), np.array([1.25], np.float16), (1, 0.25, 0.25 / 1.5)),
    "int64, too near for float64": (ints("int64", 2**62), ints("int64", 2**62 + 1), (1, 1.0, 2.0**-62)),
    "int64, end to end": (ints("int64", -(2**63)), ints("int64", 2**63 - 1), (1, 2.0**64, 2.0)),
    "uint64": (ints("uint64", 4, 2**64 - 1), ints("uint64", 3, 2**64 - 1), (1, 1.0, 0.25)),
    "int32 and int64": (ints("int32", 5, -7), ints("int64", 5, -7), (0, 0.0, 0.0)),
    "int64 and uint64": (ints("int64", -1), ints("uint64", 2**64 - 1), (1, 2.0**64, 2.0**64)),
    "int32 and float32": (ints("int32", 2**24 + 1), f32(2**24), (1, 1.0, 1 / (2**24 + 1))),
    "int8 and uint8": (ints("int8", 127, -1), ints("uint8", 127, 255), (1, 256.0, 256.0)),
    "bool and uint8": (np.array([True, False]), ints("uint8", 1, 0), (0, 0.0, 0.0)),
    "complex64": (np.array([1 + 0j], np.complex64), np.array([1 + 2j], np.complex64), (1, 2.0, 2.0)),
    "none": (f32(), f32(), (0, 0.0, 0.0)),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_deviations_are_those_found_by_hand(case: str) -> None:
    a, b, (n_different, max_abs, max_rel) = BY_HAND[case]

    found = deviation(from_array(a), from_array(b))

    assert found.n_different == n_different
    assert np.array_equal([found.max_abs, found.max_rel], [max_abs, max_rel], equal_nan=True)


@pytest.mark.parametrize("case", BY_HAND)
def test_a_first_difference_is_found_where_weights_differ(case: str) -> None:
    a, b, (n_different, *_) = BY_HAND[case]

    assert (first_difference(from_array(a), from_array(b)) is not None) == bool(n_different)


def test_deviations_are_summed_over_tiles() -> None:
    a = np.ones((4, TILE_WEIGHTS), F32)
    b = a.copy()
    b[0, -1], b[1, 0], b[3, 7] = 3, 1.5, 0

    assert deviation(from_array(a), from_array(b)) == Deviation(3, 2.0, 2.0)
    assert first_difference(from_array(a), from_array(b)) == f"weight {TILE_WEIGHTS - 1} is 1.0, the other has 3.0"


def test_nan_of_one_tile_is_not_lost_in_the_next() -> None:
    a, b = np.ones((3, TILE_WEIGHTS), F32), np.ones((3, TILE_WEIGHTS), F32)
    b[0, 0], b[2, 0] = NAN, 9

    found = deviation(from_array(a), from_array(b))

    assert (found.n_different, str(found.max_abs), str(found.max_rel)) == (2, "nan", "nan")


def q4_0(scale: float, *codes: int) -> bytes:
    """Make a block of 32 weights by hand: the scale, then byte i with codes i (low) and i + 16 (high)."""
    stored = [*codes, *[8] * (32 - len(codes))]
    return np.float16(scale).tobytes() + bytes(low | high << 4 for low, high in zip(stored[:16], stored[16:], strict=True))


def gguf(path: Path, tensors: Mapping[str, tuple[list[int], int, bytes]], pairs: list[bytes] | None = None) -> Path:
    """Write tensors: name to dimensions, type and bytes."""
    infos, data = [], b""
    for name, (dims, type_id, raw) in tensors.items():
        infos.append(made.info(name, dims, type_id, len(data)))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(made.gguf([made.ARCH, *(pairs or [])], infos, data))
    return path


def compared(a: Path, b: Path, **options: Any) -> Difference:
    with qconvert.open(a) as one, qconvert.open(b) as other:
        return compare_models(one, other, **options)


def only(found: Difference) -> TensorDifference:
    (tensor,) = found.tensors
    return tensor


BLOCK, FLIPPED = q4_0(0.5, 9, 12), q4_0(0.5, 9, 13)  # codes 9, 12: weights 0.5, 2; code 13: weight 2.5


def test_one_flipped_code_is_one_weight(tmp_path: Path) -> None:
    a, b = (gguf(tmp_path / n, {"w": ([32], 2, raw)}) for n, raw in (("a.gguf", BLOCK), ("b.gguf", FLIPPED)))

    found = only(compared(a, b))

    assert (found.status, found.same_format, found.bytes_equal, found.equal) == ("differs", True, False, False)
    assert (found.n_different, found.max_abs, found.max_rel) == (1, 0.5, 0.25)


def test_scales_of_zero_with_two_signs_are_other_bytes_and_the_same_values(tmp_path: Path) -> None:
    a, b = (gguf(tmp_path / f"{s}.gguf", {"w": ([32], 2, q4_0(s, 9, 12))}) for s in (0.0, -0.0))

    found = compared(a, b)

    assert (only(found).status, only(found).bytes_equal, only(found).equal, found.is_same) == ("differs", False, True, False)
    assert compared(a, b, values_only=True).is_same


def test_a_packed_tensor_equals_its_floats_in_values_alone(tmp_path: Path) -> None:
    dense = np.zeros(32, F32)
    dense[:2] = 0.5, 2
    a = gguf(tmp_path / "a.gguf", {"w": ([32], 2, BLOCK)})
    save_file({"w": dense}, tmp_path / "b.safetensors")

    found = compared(a, tmp_path / "b.safetensors")

    tensor = only(found)
    assert (tensor.status, tensor.same_format, tensor.bytes_equal, tensor.equal) == ("differs", False, None, True)
    assert [side.form for side in (tensor.a, tensor.b) if side] == ["gguf:q4_0", "safetensors:f32"]
    assert compared(a, tmp_path / "b.safetensors", values_only=True).is_same


def test_another_shape_differs_whatever_the_values(tmp_path: Path) -> None:
    save_file({"w": np.zeros((2, 3), F32)}, tmp_path / "a.safetensors")
    save_file({"w": np.zeros((3, 2), F32)}, tmp_path / "b.safetensors")

    found = compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors", values_only=True)

    assert (only(found).status, only(found).equal, only(found).n_different) == ("differs", False, None)
    assert only(found).reason == "shapes differ"


def test_tensors_that_one_side_lacks_differ_in_values_too(tmp_path: Path) -> None:
    save_file({"x": f32(1), "y": f32(2)}, tmp_path / "a.safetensors")
    save_file({"y": f32(2), "z": f32(3)}, tmp_path / "b.safetensors")

    found = compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors", values_only=True)

    assert [(t.name, t.status) for t in found.tensors] == [("x", "only_a"), ("y", "same"), ("z", "only_b")]
    assert not found.is_same


def test_a_type_that_nothing_decodes_is_compared_by_its_bytes(tmp_path: Path) -> None:
    a, b, c = (gguf(tmp_path / f"{i}.gguf", {"w": ([32], 77, bytes([i // 2] * 32))}) for i in range(3))

    assert compared(a, b, values_only=True).is_same
    found = only(compared(a, c, values_only=True))
    assert (found.status, found.n_different) == ("differs", None)
    assert "can be copied, but not decoded" in found.reason


def test_byte_order_is_no_difference(tmp_path: Path) -> None:
    values = np.arange(8)
    a, b = tmp_path / "a.gguf", tmp_path / "b.gguf"
    a.write_bytes(made.gguf([made.ARCH], [made.info("w", [8], 0, 0)], values.astype("<f4").tobytes()))
    arch = made.kv("general.architecture", made.STR, "llama", order=">")
    b.write_bytes(made.gguf([arch], [made.info("w", [8], 0, 0, order=">")], values.astype(">f4").tobytes(), order=">"))

    found = compared(a, b)

    assert (found.is_same, only(found).bytes_equal) == (True, True)


def test_unknown_blocks_of_two_byte_orders_are_never_the_same(tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf", {"w": ([32], 77, bytes(32))})
    arch = made.kv("general.architecture", made.STR, "llama", order=">")
    swapped = made.gguf([arch], [made.info("w", [32], 77, 0, order=">")], bytes(32), order=">")
    (tmp_path / "b.gguf").write_bytes(swapped)

    found = only(compared(tmp_path / "a.gguf", tmp_path / "b.gguf"))

    assert (found.status, found.same_format, found.equal) == ("differs", False, False)


@pytest.mark.parametrize("depth", ["structure", "bytes", "values"])
def test_a_depth_looks_no_deeper(depth: str, tmp_path: Path) -> None:
    a, b = (gguf(tmp_path / n, {"w": ([32], 2, raw)}) for n, raw in (("a.gguf", BLOCK), ("b.gguf", FLIPPED)))

    found = only(compared(a, b, depth=depth))

    seen = {"structure": ("same", None, None), "bytes": ("differs", False, None), "values": ("differs", False, False)}
    assert (found.status, found.bytes_equal, found.equal) == seen[depth]


def test_include_leaves_other_tensors_and_metadata_aside(tmp_path: Path) -> None:
    save_file({"x": f32(1), "y": f32(2)}, tmp_path / "a.safetensors", {"k": "1"})
    save_file({"y": f32(2), "z": f32(3)}, tmp_path / "b.safetensors", {"k": "2"})

    assert compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors", include="y").is_same
    assert not compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors", include="?").is_same


def written(path: Path, compress: str = "none", **tensors: NDArray[Any]) -> Path:
    qformat.save(path, tensors, compress=compress)
    return path


def damaged(path: Path, value: bytes) -> Path:
    """Flip one bit of the payload where these bytes stand."""
    data = bytearray(path.read_bytes())
    data[data.index(value)] ^= 1
    path.write_bytes(data)
    return path


def test_bytes_are_compared_by_what_their_arrays_are_wherever_these_stand() -> None:
    tensor = qformat.quantize(np.arange(128, dtype=F32).reshape(2, 64), "int4-g32")
    turned = replace(tensor, parts=tensor.parts[::-1])

    assert len({part.source.n_bytes for part in tensor.parts}) == 2
    assert same_format(tensor, turned)
    assert same_bytes(tensor, turned)
    assert not same_bytes(tensor, qformat.quantize(np.ones((2, 64), F32), "int4-g32"))


@pytest.mark.parametrize("compress", ["none", "scales", "all"])
def test_equal_digests_answer_for_bytes_that_are_not_read(
    compress: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = np.arange(1 << 20, dtype=F32).reshape(4, -1)
    a, b = (written(tmp_path / f"{n}.qfmt", compress, w=w) for n in "ab")
    monkeypatch.setattr("qformat.file.read.File.read_part", None)  # whoever reads fails

    assert compared(a, b).is_same


def test_other_digests_are_read_where_chunks_are_compressed_otherwise(tmp_path: Path) -> None:
    w = np.zeros((4, 1 << 12), F32)
    a, b = (written(tmp_path / f"{compress}.qfmt", compress, w=w) for compress in ("none", "all"))

    assert only(compared(a, b)).bytes_equal


def test_equal_frames_of_bytes_that_are_shuffled_otherwise_are_not_equal(tmp_path: Path) -> None:
    files = []
    for width in (1, 2):
        column = Column(0, 2, width)
        spec = TensorSpec("w", (512,), "float16", {}, (PartSpec("values", "uint8", (1024,), 1024, 2, (column,)),))
        data = (np.tile if width == 2 else np.repeat)(np.array([0, 1], np.uint8), 512)  # one shuffle apart
        with Writer(tmp_path / f"{width}.qfmt", [spec], compress="all") as writer:
            writer.write("w", "values", 0, data)
        files.append(open_file(tmp_path / f"{width}.qfmt"))
    one, other = files

    records = [file.table(file.tensors["w"]).records.tobytes() for file in files]
    assert records[0] == records[1]
    assert not is_same_part(one, one.tensors["w"], other, other.tensors["w"], "values")
    assert is_same_part(one, one.tensors["w"], one, one.tensors["w"], "values")


def test_values_are_never_taken_from_digests_whose_bytes_are_damaged(tmp_path: Path) -> None:
    a, b = (written(tmp_path / f"{n}.qfmt", w=f32(1, 2, 1234.5)) for n in "ab")
    damaged(b, f32(1234.5).tobytes())

    assert compared(a, b).is_same  # the digests are: nobody looked at the bytes
    with pytest.raises(FileError, match=r"b\.qfmt: tensor 'w' .*BLAKE3"):
        compared(a, b, values_only=True)


def test_bytes_that_are_read_are_checked(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.qfmt", w=f32(1, 2, 3)), written(tmp_path / "b.qfmt", w=f32(1, 2, 1234.5))
    damaged(b, f32(1234.5).tobytes())

    with pytest.raises(FileError, match=r"b\.qfmt: tensor 'w' .*BLAKE3"):
        compared(a, b)


def test_equal_bytes_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (gguf(tmp_path / f"{n}.gguf", {"w": ([32], 2, BLOCK)}) for n in "ab")
    monkeypatch.setattr("qformat.tensor.PackedTensor.codes", None)

    assert only(compared(a, b)).equal


def test_structure_reads_no_payload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = (gguf(tmp_path / n, {"w": ([32], 2, raw)}) for n, raw in (("a.gguf", BLOCK), ("b.gguf", FLIPPED)))
    monkeypatch.setattr("qformat.arrays.View.read", None)

    assert compared(a, b, depth="structure").is_same


def test_a_qfmt_file_of_a_gguf_file_is_the_same(tmp_path: Path) -> None:
    pairs = [made.kv("n", made.U8, 7), made.kv_array("tokens", made.STR, ["a", "b"])]
    a = gguf(tmp_path / "a.gguf", {"w": ([32], 2, BLOCK), "n": ([8], 0, made.EIGHT)}, pairs)
    qconvert.convert(a, tmp_path / "a.qfmt")

    found = compared(a, tmp_path / "a.qfmt")

    assert (found.is_same, found.metadata.compared) == (True, ("key-values",))


# two pairs of a key, and what is said of them
PAIRS = {
    "another value": (made.kv("k", made.U32, 1), made.kv("k", made.U32, 2), ("u32 1", "u32 2")),
    "another type": (made.kv("k", made.U32, 1), made.kv("k", made.I32, 1), ("u32 1", "i32 1")),
    "zeros of two signs": (made.kv("k", made.F32, 0.0), made.kv("k", made.F32, -0.0), ("f32 0.0", "f32 -0.0")),
    "text": (made.kv("k", made.STR, "a\n"), made.kv("k", made.STR, "b"), (r"str 'a\n'", "str 'b'")),
    "an element": (
        made.kv_array("k", made.STR, ["a", "b"]), made.kv_array("k", made.STR, ["a", "c"]),
        ("[str] of 2, [1] is 'b'", "[str] of 2, [1] is 'c'"),
    ),
    "an element more": (
        made.kv_array("k", made.I8, [1]), made.kv_array("k", made.I8, [1, 2]),
        ("[i8] of 1, [1] is None", "[i8] of 2, [1] is 2"),
    ),
    "elements that are no text": (
        made.kv_array("k", made.STR, [b"\xff"]), made.kv_array("k", made.STR, [b"\xfe"]), ("[str] of 1", "[str] of 1"),
    ),
    "an array in place of a value": (
        made.kv_array("k", made.U8, [3]), made.kv("k", made.U8, 3), ("[u8] of 1", "u8 3"),
    ),
    "elements of another type": (
        made.kv_array("k", made.I8, [1]), made.kv_array("k", made.U8, [1]), ("[i8] of 1", "[u8] of 1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PAIRS)
def test_key_values_differ_by_type_and_bytes(case: str, tmp_path: Path) -> None:
    mine, theirs, texts = PAIRS[case]
    a, b = (gguf(tmp_path / n, {"w": ([32], 2, BLOCK)}, [pair]) for n, pair in (("a.gguf", mine), ("b.gguf", theirs)))

    found = compared(a, b)

    assert [(c.key, c.one, c.other) for c in found.metadata.changed] == [("k", *texts)]
    assert not found.is_same
    assert compared(a, b, values_only=True).is_same


def test_keys_of_one_side_are_named(tmp_path: Path) -> None:
    pairs = [made.kv("x", made.U8, 1)], [made.kv("y", made.U8, 1)]
    a, b = (gguf(tmp_path / f"{n}.gguf", {"w": ([32], 2, BLOCK)}, kvs) for n, kvs in zip("ab", pairs, strict=True))

    found = compared(a, b).metadata

    assert (found.only_one, found.only_other, found.changed) == (("x",), ("y",), ())


def folder(path: Path, config: str, **files: str) -> Path:
    path.mkdir()
    save_file({"w": f32(1)}, path / "model.safetensors", {"format": "pt"})
    for name, text in {"config": config, **files}.items():
        (path / f"{name}.json").write_text(text)
    return path


def test_a_config_differs_by_key_and_another_file_as_a_whole(tmp_path: Path) -> None:
    mine = '{"a": {"bits": 4, "x": {}}, "n": 1, "t": true, "l": [{"p": 1, "q": 2}], "gone": null, "empty": {}}'
    theirs = '{"l": [{"q": 2, "p": 1}], "t": 1, "n": 1.0, "a": {"x": {}, "bits": 8}, "new": ""}'
    a = folder(tmp_path / "a", mine, tokenizer="{}", generation_config="{}")
    b = folder(tmp_path / "b", theirs, tokenizer="{ }", generation_config="{}")

    found = compared(a, b).metadata

    assert {c.key: (c.one, c.other) for c in found.changed} == {
        "config.json: a.bits": ("4", "8"), "config.json: n": ("1", "1.0"), "config.json: t": ("true", "1"),
        "tokenizer.json": ("2 bytes", "3 bytes"),
    }  # fmt: skip
    assert (found.only_one, found.only_other) == (("config.json: gone", "config.json: empty"), ("config.json: new",))


def test_key_values_and_config_are_never_compared(tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf", {"w": ([1], 0, f32(1).tobytes())})

    found = compared(tmp_path / "a.gguf", folder(tmp_path / "b", "{}"))

    assert found.is_same
    assert "key-values and config.json say the same in other words" in found.metadata.notices[0]


def test_files_are_not_compared_where_one_side_is_a_file(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", '{"n": 1}')
    save_file({"w": f32(1)}, tmp_path / "b.safetensors", {"format": "pt"})

    found = compared(a, tmp_path / "b.safetensors")

    assert found.is_same
    assert "files beside the weights are not compared" in found.metadata.notices[0]


@pytest.mark.parametrize("text", ["", "=", "a", "a=", "=b", "a*=b**", "a**=b*", "a=b*"])
def test_what_is_no_rename_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected OLD=NEW"):
        parse_rename(text)


RENAMES = [
    ("a=b", "a", "b"), ("a=b", "aa", None), ("m.*=*", "m.x.y", "x.y"), ("*=m.*", "x", "m.x"),
    ("*.w=*.weight", "l.1.w", "l.1.weight"),
    ("ab*ba=*", "aba", None), ("ab*ba=*", "abba", ""), ("a*=b", "ax", "b"), ("[a]*=b*", "ax", None), ("a==b", "a", "=b"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "name", "expected"), RENAMES)
def test_a_star_stands_for_the_same_in_both_names(text: str, name: str, expected: str | None) -> None:
    assert parse_rename(text).apply(name) == expected


def test_the_first_rename_that_means_a_name_counts() -> None:
    pairs, rest = pair_names(["a.1", "a.2", "c"], ["x", "b.2", "d"], [Rename("a.1", "x"), Rename("a.*", "b.*")])

    assert (pairs, rest) == ({"a.1": "x", "a.2": "b.2", "c": "c"}, ["d"])


def test_two_names_may_be_exchanged() -> None:
    assert pair_names(["a", "b"], ["a", "b"], [Rename("a", "b"), Rename("b", "a")]) == ({"a": "b", "b": "a"}, [])


def test_a_rename_that_no_tensor_is_meant_by_is_refused() -> None:
    with pytest.raises(UsageError, match="--map 'b': there is no such tensor among 1"):
        pair_names(["a"], ["a"], [Rename("b", "a")])


def test_two_tensors_that_come_to_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="tensor 'b': --map: 'a' comes to 'b' as well"):
        pair_names(["a", "b"], ["b"], [Rename("a", "b")])


def test_renamed_tensors_are_compared(tmp_path: Path) -> None:
    save_file({"old.w": f32(1), "b": f32(2)}, tmp_path / "a.safetensors")
    save_file({"new.w": f32(1), "b": f32(2)}, tmp_path / "b.safetensors")

    found = compared(tmp_path / "a.safetensors", tmp_path / "b.safetensors", renames=(Rename("old.*", "new.*"),))

    assert {(t.a.name, t.b.name) for t in found.tensors if t.a and t.b} == {("old.w", "new.w"), ("b", "b")}
    assert found.is_same


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let files of each family be told by container, and a GGUF file be seen with its one name and its rows turned around."""

    def see(model: Model, family: str, with_tokenizer: bool) -> View:
        assert (model.container, family) == ("gguf", "hf")
        turned = from_array(model["blk.0.w"].dequantize()[::-1])
        names = {"layers.0.w": turned}
        return View(replace(model, names=names, load=names.__getitem__), {"layers.0.w": Origin(("blk.0.w",), "turned")})

    def use(missing: str) -> None:
        monkeypatch.setattr(architectures, "family_of", lambda model: "gguf" if model.container == "gguf" else "hf")
        monkeypatch.setattr(architectures, "view", (lambda m, family, **_: View(m, missing=missing)) if missing else see)

    return use


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    rows = np.arange(64, dtype=F32).reshape(2, 32)
    a = gguf(tmp_path / "a.gguf", {"blk.0.w": ([32, 2], 0, rows.tobytes())})
    save_file({"layers.0.w": rows[::-1].copy()}, tmp_path / "b.safetensors")
    return a, tmp_path / "b.safetensors"


@pytest.mark.parametrize("order", [1, -1], ids=["gguf first", "gguf second"])
def test_a_gguf_file_is_seen_under_the_other_sides_names(
    order: int, families: Callable[[str], None], both: tuple[Path, Path]
) -> None:
    families("")

    found = compared(*both[::order])

    assert [(t.name, t.equal) for t in found.tensors] == [("layers.0.w", True)]
    assert found.notices == (f"{both[0]} is seen under HF names",)


def test_names_that_match_as_they_are_are_not_translated(families: Callable[[str], None], both: tuple[Path, Path]) -> None:
    families("")

    found = compared(*both, renames=(Rename("blk.*", "layers.*"),))

    assert [(t.a.name, t.equal) for t in found.tensors if t.a] == [("blk.0.w", False)]  # rows as they lie


def test_renames_are_of_the_names_that_are_seen(families: Callable[[str], None], both: tuple[Path, Path]) -> None:
    families("")
    save_file({"model.w": np.arange(64, dtype=F32).reshape(2, 32)[::-1].copy()}, both[1])

    assert only(compared(*both, renames=(Rename("layers.0.*", "model.*"),))).equal


def test_why_names_are_not_translated_is_said(families: Callable[[str], None], both: tuple[Path, Path]) -> None:
    families("architecture 'x' is unknown")

    found = compared(*both)

    assert [t.status for t in found.tensors] == ["only_a", "only_b"]
    assert found.notices == ("names are compared as they are: architecture 'x' is unknown",)


LLAMA = MODELS["llama"]
INV_FREQ = "model.layers.0.self_attn.rotary_emb.inv_freq"


def tied(tmp_path: Path, output: NDArray[Any]) -> tuple[Path, Path]:
    """Write a model whose config ties its output, and which has one all the same; the GGUF file has none."""
    hf = LLAMA.hf | {"lm_head.weight": output, INV_FREQ: f32(1, 2, 3, 4, 5, 6, 7, 8)}
    hand = replace(LLAMA, hf=hf, config=LLAMA.config | {"tie_word_embeddings": True})
    there = replace(LLAMA, gguf={name: array for name, array in LLAMA.gguf.items() if name != "output.weight"})
    return hand.folder(tmp_path / "model"), there.file(tmp_path / "a.gguf")


@pytest.mark.parametrize("order", [1, -1], ids=["folder first", "gguf first"])
def test_what_a_gguf_file_leaves_out_on_purpose_is_no_difference(order: int, tmp_path: Path) -> None:
    found = compared(*tied(tmp_path, LLAMA.hf["model.embed_tokens.weight"])[::order], values_only=True)

    assert found.is_same
    assert len(found.tensors) == len(LLAMA.hf) - 1
    assert any(said == "not compared: 2 tensors that a gguf file leaves out, as 'lm_head.weight'" for said in found.notices)


def test_an_output_that_is_not_the_embedding_is_a_difference(tmp_path: Path) -> None:
    found = compared(*tied(tmp_path, LLAMA.hf["lm_head.weight"]), values_only=True)

    assert [(t.name, t.status) for t in found.tensors if t.status != "same"] == [("lm_head.weight", "only_a")]
