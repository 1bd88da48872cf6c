"""The GGUF reader against bytes made by hand and against the gguf package."""

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as peer
import handmade_gguf as made
import numpy as np
import pytest
from handmade_gguf import ARCH, ARR, BOOL, EIGHT, F32, F64, I8, I16, I32, I64, STR, U8, U16, U32, U64
from hypothesis import given
from hypothesis import strategies as st
from qconvert.containers.gguf import open_gguf
from qconvert.containers.gguf_header import parse_header
from qconvert.containers.gguf_types import GGML_TYPES, REMOVED_TYPES
from qconvert.containers.gguf_values import GGUFArray

from qformat.errors import FileError, UsageError

SAVE = Callable[[bytes], Path]
U64_MAX = 2**64 - 1

# Two tensors whose data ends in padding: 12 bytes, 20 of padding, 24 bytes, 8 of padding.
TWO = made.gguf(
    [ARCH, made.kv_array("t.s", STR, ["a", "", "é"]), made.kv("t.f", F64, 0.5)],
    [made.info("a", [3], 0, 0), made.info("b", [2, 3], 0, 32)],
    struct.pack("<3f", 1, 2, 3) + bytes(20) + struct.pack("<6f", *range(6)) + bytes(8),
)
TWO_DATA_END = len(TWO) - 8

SCALARS = [
    ("uint8", U8, 255),
    ("int8", I8, -128),
    ("uint16", U16, 65535),
    ("int16", I16, -32768),
    ("uint32", U32, 2**32 - 1),
    ("int32", I32, -(2**31)),
    ("float32", F32, 1.5),
    ("bool", BOOL, True),
    ("string", STR, "a\0é"),
    ("uint64", U64, U64_MAX),
    ("int64", I64, -(2**63)),
    ("float64", F64, float("-inf")),
]
every_scalar = pytest.mark.parametrize(("kind", "value"), [c[1:] for c in SCALARS], ids=[c[0] for c in SCALARS])
both_orders = pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])


@pytest.fixture
def save(tmp_path: Path) -> SAVE:
    def write(content: bytes) -> Path:
        path = tmp_path / "f.gguf"
        path.write_bytes(content)
        return path

    return write


@both_orders
@pytest.mark.parametrize("version", [2, 3])
def test_header_is_read_in_either_byte_order(save: SAVE, order: str, version: int) -> None:
    pairs = [made.kv("a", U16, 258, order), made.kv_array("s", STR, ["x", "yz"], order=order)]
    path = save(made.gguf(pairs, [made.info("w", [4, 2], 0, 0, order=order)], EIGHT, version=version, order=order))
    with open_gguf(path) as file:
        strings = file.metadata["s"]
        assert isinstance(strings, GGUFArray)
        assert (file.byte_order, file.version, file.alignment) == (order, version, 32)
        assert (file.metadata["a"], strings.values()) == (258, ["x", "yz"])
        assert (file.tensors["w"].dims, file.tensors["w"].shape) == ((4, 2), (2, 4))
        assert bytes(file.data(file.tensors["w"])) == EIGHT


@both_orders
@every_scalar
def test_scalar_keeps_its_type_and_value(save: SAVE, kind: int, value: object, order: str) -> None:
    with open_gguf(save(made.gguf([made.kv("k", kind, value, order)], order=order))) as file:
        pair = file.key_values["k"]
        assert (pair.value_type, pair.element_type, pair.value, type(pair.value)) == (kind, None, value, type(value))
        assert bytes(pair.raw) == made.plain(kind, value, order)


@both_orders
@every_scalar
def test_array_keeps_its_type_and_decodes_on_demand(save: SAVE, kind: int, value: Any, order: str) -> None:
    path = save(made.gguf([made.kv_array("k", kind, [value, value], order=order)], order=order))
    with open_gguf(path) as file:
        pair = file.key_values["k"]
        assert isinstance(pair.value, GGUFArray)
        assert (pair.value_type, pair.element_type, len(pair.value)) == (ARR, kind, 2)
        assert pair.value.values() == [value, value]


@both_orders
def test_numeric_array_is_a_numpy_view(save: SAVE, order: str) -> None:
    values = [1, -2, 32767]
    with open_gguf(save(made.gguf([made.kv_array("k", I16, values, order=order)], order=order))) as file:
        array = file.metadata["k"]
        assert isinstance(array, GGUFArray)
        assert array.numpy().tolist() == values
        assert array.numpy().base is not None


def test_array_of_strings_has_no_numpy_form(save: SAVE) -> None:
    with open_gguf(save(made.gguf([made.kv_array("k", STR, ["x"])]))) as file:
        array = file.metadata["k"]
        assert isinstance(array, GGUFArray)
        with pytest.raises(UsageError, match="array of strings"):
            array.numpy()


def test_bad_text_in_an_array_is_named_when_it_is_asked_for(save: SAVE) -> None:
    with open_gguf(save(made.gguf([made.kv_array("k", STR, ["ab", b"c\xff"])]))) as file:
        array = file.metadata["k"]
        assert isinstance(array, GGUFArray)
        with pytest.raises(FileError, match=r"field 'k' at 0x44: byte 0xff is not UTF-8"):
            array.values()


@pytest.mark.parametrize("type_id", GGML_TYPES, ids=[t.name for t in GGML_TYPES.values()])
def test_block_size_is_that_of_the_gguf_package(type_id: int) -> None:
    if type_id == 42:  # the package ends at 41; ggml-common.h has block_q2_0 as one half and 16 bytes
        expected = (64, 18, "q2_0")
    elif type_id == 9:  # the package counts two floats; ggml-common.h has block_q8_1 as two halves and 32 bytes
        expected = (32, 36, "q8_1")
    else:
        name = peer.GGMLQuantizationType(type_id)
        expected = (*peer.GGML_QUANT_SIZES[name], name.name.lower())
    kind = GGML_TYPES[type_id]
    assert (kind.n_weights, kind.n_bytes, kind.name) == expected


def test_every_type_of_the_gguf_package_is_known() -> None:
    assert {int(kind) for kind in peer.GGMLQuantizationType} | {42} == set(GGML_TYPES)


def test_file_of_the_gguf_package_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "peer.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    writer.add_array("t.tokens", ["a", "b", "ccc"])
    writer.add_array("t.scores", [0.5, -1.0])
    writer.add_float32("t.eps", 1e-5)
    rng = np.random.default_rng(7)
    writer.add_tensor("m", rng.standard_normal((5, 3)).astype("f4"))
    blocks = rng.integers(0, 256, (4, 36), dtype=np.uint8)
    writer.add_tensor("q", blocks, raw_dtype=peer.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with open_gguf(path) as file:
        reader = peer.GGUFReader(path)
        infos = file.tensors.values()
        assert [(t.name, t.data_offset, t.n_bytes, t.shape.tolist(), int(t.tensor_type)) for t in reader.tensors] == [
            (i.name, i.byte_offset, i.n_bytes, list(i.dims), i.type_id) for i in infos
        ]
        assert file.tensors["q"].shape == (4, 64)
        assert bytes(file.data(file.tensors["q"])) == blocks.tobytes()
        values = {k: v.values() if isinstance(v, GGUFArray) else v for k, v in file.metadata.items()}
        assert values == {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert (file.alignment, file.oddities) == (64, ())


def test_verbatim_parts_are_the_bytes_of_the_file(save: SAVE) -> None:
    pairs = [ARCH, made.kv("k", U8, 7)]
    content = made.gguf(pairs, [made.info("w", [8], 0, 0)], EIGHT)
    with open_gguf(save(content)) as file:
        assert bytes(file.header_bytes) == content[:-32]
        assert bytes(file.key_value_bytes) == b"".join(pairs)
        assert file.data(file.tensors["w"]).readonly


@pytest.mark.parametrize("n_bytes", [n for n in range(len(TWO)) if n < TWO_DATA_END])
def test_file_cut_anywhere_before_the_end_of_its_data_is_refused(save: SAVE, n_bytes: int) -> None:
    with pytest.raises(FileError, match=r"f\.gguf"):
        open_gguf(save(TWO[:n_bytes]))


@pytest.mark.parametrize("n_missing", range(1, 9))
def test_missing_padding_at_the_end_is_a_warning(save: SAVE, n_missing: int) -> None:
    with open_gguf(save(TWO[:-n_missing])) as file:
        (oddity,) = file.oddities
        assert (oddity.level, oddity.byte_offset) == ("warning", len(TWO) - n_missing)
        assert oddity.message == f"{n_missing} bytes of padding are missing at the end"


def test_padding_that_is_not_zero_is_a_warning_where_it_stands(save: SAVE) -> None:
    content = bytearray(TWO)
    gap = TWO_DATA_END - 24 - 20
    content[gap], content[-1], content[gap - 13] = 1, 2, 3  # between the tensors, at the end, after the header
    with open_gguf(save(bytes(content))) as file:
        odd = [(o.level, o.message) for o in file.oddities]
        assert odd == [
            ("warning", "padding after the header is not zero"),
            ("warning", "20 bytes of padding are not all zero"),
            ("warning", "8 bytes of padding are not all zero"),
        ]
        assert [(p.byte_offset, len(p.data)) for p in file.paddings()] == [(gap, 20), (TWO_DATA_END, 8)]


@pytest.mark.parametrize(
    ("pair", "at"), [(made.kv("k", BOOL, 2), 0x25), (made.kv_array("k", BOOL, [1, 0, 2]), 0x33)], ids=["scalar", "array"]
)
def test_bool_other_than_one_is_read_as_true_and_is_an_error_oddity(save: SAVE, pair: bytes, at: int) -> None:
    with open_gguf(save(made.gguf([pair]))) as file:
        (oddity,) = file.oddities
        assert (oddity.level, oddity.message) == ("error", "a bool stored as 2, expected 0 or 1")
        assert (oddity.field, oddity.byte_offset) == ("k", at)
        value = file.metadata["k"]
        assert (value.values() if isinstance(value, GGUFArray) else [value])[-1] is True


@pytest.mark.parametrize("type_id", [43, 255])
def test_type_younger_than_the_table_is_opaque_up_to_what_follows(save: SAVE, type_id: int) -> None:
    infos = [made.info("new", [5, 3], type_id, 0), made.info("w", [8], 0, 96), made.info("last", [7], type_id, 128)]
    content = made.gguf([ARCH], infos, bytes(range(96)) + EIGHT + b"tail!")
    with open_gguf(save(content)) as file:
        assert [i.n_bytes for i in file.tensors.values()] == [96, 32, 5]
        assert bytes(file.data(file.tensors["new"])) == bytes(range(96))
        assert bytes(file.data(file.tensors["last"])) == b"tail!"
        assert file.tensors["new"].type_name == f"type_{type_id}"
        message = f"tensor type {type_id} is not known; its bytes are opaque"
        assert [(o.level, o.tensor, o.message) for o in file.oddities] == [
            ("warning", "new", message),
            ("warning", "last", message),
        ]


@pytest.mark.parametrize("following", [0, 33, 1 << 40], ids=["none", "unaligned", "past the end"])
def test_opaque_type_whose_end_makes_no_sense_is_refused(save: SAVE, following: int) -> None:
    infos = [made.info("new", [8], 50, 0), made.info("w", [8], 0, following)]
    with pytest.raises(FileError, match=r"tensor '(new|w)' field '(offset|data)'"):
        open_gguf(save(made.gguf([ARCH], infos, EIGHT * 3)))


LEGAL = [
    ("nothing", made.gguf(), 0),
    ("pairs alone", made.gguf([ARCH]), 0),
    ("pairs alone, padded", made.gguf([ARCH]) + bytes(27), 0),
    ("a scalar", made.one([], 0, struct.pack("<f", 1) + bytes(28)), 4),
    ("an empty tensor", made.one([0, 4], 0, b""), 0),
    ("an empty tensor of blocks", made.one([0], 2, b""), 0),
    ("four dimensions", made.one([2, 2, 2, 1]), 32),
    ("a name of 63 bytes", made.gguf([], [made.info("n" * 63, [8], 0, 0)], EIGHT), 32),
    ("a name of nothing", made.gguf([], [made.info("", [8], 0, 0)], EIGHT), 32),
    ("a key of 65535 bytes", made.gguf([made.kv("k" * 65535, U8, 1)]), 0),
    ("terminal escapes", made.gguf([made.kv("k", STR, "\x1b[2J")], [made.info("\x1b[2J", [8], 0, 0)], EIGHT), 32),
    ("the first of two shards", made.gguf([made.kv("split.no", U16, 0), made.kv("split.count", U16, 2)]), 0),
    ("no sharding", made.gguf([made.kv("split.no", U16, 0), made.kv("split.count", U16, 0)]), 0),
]


@pytest.mark.parametrize(("content", "n_bytes"), [c[1:] for c in LEGAL], ids=[c[0] for c in LEGAL])
def test_legal_file_is_opened(save: SAVE, content: bytes, n_bytes: int) -> None:
    with open_gguf(save(content)) as file:
        assert sum(len(file.data(info)) for info in file.tensors.values()) == n_bytes
        assert file.oddities == ()


@pytest.mark.parametrize("alignment", [1, 8, 16, 64, 4096])
def test_alignment_is_counted_from_the_start_of_the_file(save: SAVE, alignment: int) -> None:
    pair = made.kv("general.alignment", U32, alignment)
    infos = [made.info("a", [1], 0, 0), made.info("b", [8], 0, -(-4 // alignment) * alignment)]
    data = b"abcd" + bytes(-4 % alignment) + EIGHT + bytes(-32 % alignment)
    with open_gguf(save(made.gguf([pair], infos, data, alignment=alignment))) as file:
        assert file.tensors["a"].byte_offset % alignment == 0
        assert bytes(file.data(file.tensors["b"])) == EIGHT
        assert file.oddities == ()


KEY = made.text("k")
EMPTY = struct.pack("<IQ", U8, 0)  # an inner array
HEADERS = [
    ("no bytes", b"", "empty file"),
    ("part of the magic", b"GGU", "field 'header' at 0x3: the file ends after 3 bytes, expected at least 24"),
    ("part of the counts", made.gguf()[:23], "at 0x17: the file ends after 23 bytes, expected at least 24"),
    ("wrong magic", b"gguf" + bytes(40), "field 'magic' at 0x0: .* found a file that starts with 67 67 75 66"),
    ("a git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("a web page", b"\n<!DOCTYPE html><html>", "an HTML page"),
    ("a pickle", b"\x80\x04\x95\x0a\0\0\0\0\0\0\0}", "a pickle"),
    ("a safetensors file", struct.pack("<Q", 2) + b"{}" + bytes(20), "a safetensors file"),
    ("version 0", made.gguf(version=0), "field 'version' at 0x4: version 0, expected 2 or 3"),
    ("version 1", made.gguf(version=1), "version 1, expected 2 or 3"),
    ("version 4", made.gguf(version=4), "version 4, expected 2 or 3"),
    ("big-endian version 1", made.gguf(version=1, order=">"), "version 1, expected 2 or 3"),
    ("version alone swapped", made.gguf([ARCH], version=3 << 24), f"field 'kv_count' at 0x10: {1 << 56} entries"),
    ("2^64-1 pairs", made.gguf([ARCH], n_pairs=U64_MAX), f"{U64_MAX} entries need .* 45 left in the file"),
    ("one pair too many", made.gguf([ARCH], n_pairs=2), "at 0x45: 8 bytes needed, 0 left"),
    ("2^63 tensors", made.gguf([ARCH], n_infos=2**63), "field 'tensor_count' at 0x8: 9223372036854775808 entries"),
    ("2^57 tensors", made.gguf([ARCH], n_infos=2**57), "field 'tensor_count'"),
]
VALUES = [
    ("key of 2^64-1 bytes", made.text("k", U64_MAX) + bytes(8), f"'key' at 0x18: text of {U64_MAX} bytes"),
    ("key past the end", made.text("k", 60) + bytes(8), "'key' at 0x20: 60 bytes needed, 9 left"),
    ("empty key", made.kv("", U32, 1), "'key' at 0x18: empty key"),
    ("key of 65536 bytes", made.kv("k" * 65536, U32, 1), "text of 65536 bytes, expected at most 65535"),
    ("key not UTF-8", made.kv(b"a\xff", U32, 1), "'key' at 0x21: byte 0xff is not UTF-8"),
    ("key of surrogates", made.kv(b"\xed\xa0\x80", U32, 1), "is not UTF-8"),
    ("value type 13", KEY + struct.pack("<I", 13) + bytes(8), "'k' at 0x21: value type 13 does not exist"),
    ("value type -1", KEY + struct.pack("<I", 2**32 - 1) + bytes(8), "value type 4294967295 does not exist"),
    ("value cut", KEY + struct.pack("<I", U64) + bytes(7), "'k' at 0x25: 8 bytes needed, 7 left"),
    ("string of 2^64-1", KEY + struct.pack("<I", STR) + made.text("x", U64_MAX), f"text of {U64_MAX} bytes"),
    ("string of 2^30", KEY + struct.pack("<I", STR) + made.text("x", 2**30), "1073741824 bytes needed, 1 left"),
    ("string not UTF-8", made.kv("k", STR, b"\xc3\x28"), "'k' at 0x2d: byte 0xc3 is not UTF-8"),
    ("array of type 13", KEY + struct.pack("<IIQ", ARR, 13, 0), "'k' at 0x25: element type 13 does not exist"),
    ("array of 2^64-1", made.kv_array("k", U8, [1], U64_MAX), f"'k' at 0x29: an array of {U64_MAX} values"),
    ("array of 2^30+1", made.kv_array("k", U8, [1], 2**30 + 1), "expected at most 1073741824"),
    ("one element too many", made.kv_array("k", U8, [1, 2, 3], 4), "'k' at 0x31: 4 bytes needed, 3 left"),
    ("2^30 strings", made.kv_array("k", STR, ["x"], 2**30), "'k' at 0x31: 8589934592 bytes needed, 9 left"),
    ("second string 2^64-1", made.kv_array("k", STR, ["x", ""])[:-8] + b"\xff" * 8, f"'k' at 0x42: {U64_MAX} bytes"),
    ("last string past the end", made.kv_array("k", STR, ["x"])[:-1], "'k' at 0x39: 1 bytes needed, 0 left"),
    ("arrays 5 deep", KEY + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 4 + EMPTY, "arrays nested deeper than 4"),
    ("arrays 5000 deep", KEY + struct.pack("<I", ARR) + struct.pack("<IQ", ARR, 1) * 5000, "'k' at 0x49: arrays nested"),
    ("2^30 inner arrays", KEY + struct.pack("<IIQ", ARR, ARR, 2**30) + EMPTY, "'k' at 0x31: 12884901888 bytes needed, 12"),
]
PAIRS = [
    ("key twice", [made.kv("k", U8, 1), made.kv("k", STR, "1")], "'k' at 0x26: the key stands twice"),
    ("alignment 0", [made.kv("general.alignment", U32, 0)], "alignment 0, expected a power of two"),
    ("alignment 33", [made.kv("general.alignment", U32, 33)], "alignment 33, expected a power of two"),
    ("alignment u64", [made.kv("general.alignment", U64, 32)], "'general.alignment' at 0x35: stored as uint64"),
    ("alignment string", [made.kv("general.alignment", STR, "32")], "stored as string, expected uint32"),
    ("alignment array", [made.kv_array("general.alignment", U32, [32])], "stored as array, expected uint32"),
    ("alignment 2^31", [made.kv("general.alignment", U32, 2**31)], "data end at 0x80000020, past the end of the file"),
    ("shard 5 of 2", [made.kv("split.no", U16, 5), made.kv("split.count", U16, 2)], "'split.no' .* shard 5 of 2"),
]
TENSORS = [
    ("name of 2^64-1", made.text("w", U64_MAX) + bytes(30), f"'tensor info 0' at 0x45: a name of {U64_MAX} bytes"),
    ("name of 64", made.info("n" * 64, [8], 0, 0), "a name of 64 bytes, expected at most 63"),
    ("name not UTF-8", made.info(b"a\xff", [8], 0, 0), "'tensor info 0' at 0x4e: the name is not UTF-8"),
    ("5 dimensions", made.info("w", [8, 1, 1, 1, 1], 0, 0), "'w' field 'n_dims' at 0x45: 5 dimensions"),
    ("2^32-1 dimensions", made.info("w", [8], 0, 0, 2**32 - 1), "4294967295 dimensions, expected at most 4"),
    ("dimension 2^63", made.info("w", [2**63], 0, 0), "dimensions 9223372036854775808, expected a product below 2"),
    ("product 2^64", made.info("w", [2**32, 2**32], 0, 0), "4294967296 x 4294967296, expected a product below 2"),
    ("negative twice", made.info("w", [2**64 - 2, 2**64 - 4], 0, 0), "expected a product below 2"),
    ("2^62 floats", made.info("w", [2**62], 0, 0), "18446744073709551616 bytes of data .* past the end of the file"),
    ("row of 33", made.info("w", [33, 32], 2, 0), r"33 weights per row, expected a multiple of 32 \(q4_0 block\)"),
    ("row of 32", made.info("w", [32, 8], 12, 0), r"32 weights per row, expected a multiple of 256 \(q4_k block\)"),
    ("scalar of blocks", made.info("w", [], 2, 0), r"1 weights per row, expected a multiple of 32 \(q4_0 block\)"),
    ("type 256", made.info("w", [8], 256, 0), "'w' field 'type' at 0x45: tensor type 256 does not exist"),
    ("type -1", made.info("w", [8], 2**32 - 1, 0), "tensor type 4294967295 does not exist"),
    ("offset 4", made.info("w", [8], 0, 4), "field 'offset' at 0x45: offset 0x4 .* expected 0x0"),
    ("offset 2^64-64", made.info("w", [8], 0, 2**64 - 64), "offset 0xffffffffffffffc0 .* expected 0x0"),
    ("4 KiB in 32 bytes", made.info("w", [1024], 0, 0), "4096 bytes of data end at 0x1080, past .* at 0xa0"),
]
PLACES = [
    ("name twice", "a", 32, EIGHT * 2, "tensor 'a' field 'name' at 0x66: the name stands twice"),
    ("same place", "b", 0, EIGHT * 2, "tensor 'b' field 'offset' at 0x66: offset 0x0 .* expected 0x20"),
    ("overlap", "b", 16, EIGHT * 2, "offset 0x10 from the data start, expected 0x20"),
    ("gap", "b", 64, EIGHT * 3, "offset 0x40 from the data start, expected 0x20"),
    ("something after the end", "b", 32, EIGHT * 2 + b"PK\3\4", "at 0xe0: 4 bytes after the end of the last tensor"),
]
TWO_INFOS = [made.info("a", [8], 0, 0)]
REFUSED = [
    *HEADERS,
    *((why, made.gguf([pair]), words) for why, pair, words in VALUES),
    *((why, made.gguf(pairs, TWO_INFOS, EIGHT), words) for why, pairs, words in PAIRS),
    *((why, made.gguf([ARCH], [record], EIGHT), words) for why, record, words in TENSORS),
    *(
        (why, made.gguf([ARCH], [*TWO_INFOS, made.info(name, [8], 0, offset)], data), words)
        for why, name, offset, data, words in PLACES
    ),
    *((f"type {i}", made.one([32], i), rf"type {i} was removed .* \({n}\)") for i, n in REMOVED_TYPES.items()),
]


@pytest.mark.parametrize(("content", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_file_that_breaks_a_rule_is_refused_with_the_facts(save: SAVE, content: bytes, words: str) -> None:
    path = save(content)
    with pytest.raises(FileError, match=words) as caught:
        open_gguf(path)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [c[1] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refusal_allocates_no_more_than_the_file_holds(save: SAVE, content: bytes) -> None:
    path = save(content)
    tracemalloc.start()
    try:
        with pytest.raises(FileError):
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 400_000 + 8 * len(content)
    finally:
        tracemalloc.stop()


@given(st.integers(0, len(TWO) - 1), st.integers(0, 255))
def test_any_byte_changed_is_read_or_refused(index: int, value: int) -> None:
    content = bytearray(TWO)
    content[index] = value
    try:
        header = parse_header(memoryview(content), len(content))
        ends = [info.byte_offset + info.n_bytes for info in header.tensors.values()]
        assert max(ends, default=0) <= len(content)
        arrays = [pair.value for pair in header.key_values.values() if isinstance(pair.value, GGUFArray)]
        assert all(len(array.values()) == len(array) for array in arrays)
    except FileError as err:
        refused = str(err)
        assert "\n" not in refused


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_read_or_refused(tail: bytes) -> None:
    content = b"GGUF\3\0\0\0" + tail
    try:
        assert parse_header(memoryview(content), len(content)).n_bytes == len(content)
    except FileError as err:
        refused = str(err)
        assert "\n" not in refused


def test_data_of_a_closed_file_is_refused_but_views_live_on(save: SAVE) -> None:
    with open_gguf(save(made.one([8]))) as file:
        view = file.data(file.tensors["w"])
    assert bytes(view) == EIGHT
    with pytest.raises(UsageError, match="the file is closed"):
        file.data(file.tensors["w"])


def test_vocabulary_of_150000_tokens_opens_at_once(save: SAVE) -> None:
    tokens = [f"token{i}" for i in range(150_000)]
    path = save(made.gguf([made.kv_array("tokens", STR, tokens), made.kv_array("scores", F32, [0.5] * 150_000)]))
    tracemalloc.start()
    try:
        with open_gguf(path) as file:
            opened = tracemalloc.get_traced_memory()[1]
            array = file.metadata["tokens"]
            assert isinstance(array, GGUFArray)
            assert array.values() == tokens
    finally:
        tracemalloc.stop()
    assert opened < 100_000
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        open_gguf(path).close()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1


def nested(order: str) -> bytes:
    """Make a pair of [[1, 2], [], ["a"], [[true]]], its types mixed as the format allows."""
    inner = [struct.pack(order + "IQHH", made.U16, 2, 1, 2), struct.pack(order + "IQ", U8, 0)]
    inner += [
        struct.pack(order + "IQ", STR, 1) + made.text("a", order=order),
        struct.pack(order + "IQIQB", ARR, 1, made.BOOL, 1, 1),
    ]
    return made.text("k", order=order) + struct.pack(order + "IIQ", ARR, ARR, 4) + b"".join(inner)


@pytest.mark.parametrize("order", ["<", ">"])
def test_arrays_of_arrays_are_read_and_turn_into_either_byte_order(order: Any, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(made.gguf([nested(order)], order=order))

    with open_gguf(tmp_path / "a.gguf") as file:
        pair = file.key_values["k"]
        assert isinstance(pair.value, GGUFArray)
        assert pair.value.values() == [[1, 2], [], ["a"], [[True]]]
        assert [b"".join(pair.encode(other)) for other in ("<", ">")] == [nested("<"), nested(">")]
        assert file.oddities == ()


def test_a_bool_of_2_inside_inner_arrays_is_an_error(tmp_path: Path) -> None:
    data = made.gguf([nested("<")[:-1] + b"\2"])
    (tmp_path / "a.gguf").write_bytes(data)

    with open_gguf(tmp_path / "a.gguf") as file:
        (oddity,) = file.oddities

    assert (oddity.level, oddity.message, oddity.byte_offset) == ("error", "a bool stored as 2, expected 0 or 1", len(data) - 1)
