"""Each prohibition of spec/qfmt.md, "Ranges and illegal values", with every digest made right again."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from qfmt_samples import BLOCKS, dense_spec, patch, place, seal, seal_entry, write_sample

from qformat.errors import FileError
from qformat.file import File, Writer

HUGE = 2**64 - 1


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give the raw sample."""
    return write_sample(tmp_path_factory.mktemp("sample") / "a.qfmt")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Give the sample with compressed columns."""
    return write_sample(tmp_path_factory.mktemp("sample") / "a.qfmt", "all")


def refusal(data: bytes) -> FileError:
    """Open bytes that must be refused, and give the error."""
    with pytest.raises(FileError) as caught:
        File("bad.qfmt", memoryview(data))
    assert str(caught.value).startswith("bad.qfmt: ")
    assert "\n" not in str(caught.value)
    return caught.value


def test_the_sealing_of_an_unchanged_file_changes_nothing(sample: bytes, packed: bytes) -> None:
    assert seal_entry(sample, 0) == sample
    assert seal_entry(packed, 1) == packed


@pytest.mark.parametrize(
    ("byte", "form", "value", "words"),
    [
        (0, "B", 0x88, "field 'magic' at 0x0: begins with 88 51 46 4d 54 0d 0a 1a, expected 89 51"),
        (8, "H", 2, "field 'major' at 0x8: 2, expected 1"),
        (12, "I", 32, "field 'alignment' at 0xc: 32, expected a power of two from 64 to 65536"),
        (12, "I", 96, "field 'alignment' at 0xc: 96, expected a power of two"),
        (12, "I", 1 << 17, "field 'alignment' at 0xc: 131072, expected a power of two"),
        (12, "I", 0, "field 'alignment' at 0xc: 0, expected a power of two"),
        (12, "I", 4096, "planes record 0: is not where the planes before it put it"),
        (16, "Q", 1 << 7 | 1 << 40, "needs feature bit 7, bit 40, this reader knows bit 0 (zstd), bit 1 (columns)"),
        (16, "Q", 1, "field 'required' at 0x10: required features 0x1, the index uses 0x0"),
        (16, "Q", 2, "field 'required' at 0x10: required features 0x2, the index uses 0x0"),
        (32, "Q", 1000, "field 'file_bytes' at 0x20: 1000, expected 2215"),
        (32, "Q", HUGE, "expected 2215 (length of the file, which is truncated)"),
        (40, "Q", 129, "field 'table_offset' at 0x28: 0x81, expected a multiple of 64"),
        (40, "Q", 0, "field 'table_offset' at 0x28: 0x0, expected a multiple of 64 from 128"),
        (40, "Q", 128, "beyond the chunk table"),
        (40, "Q", HUGE - 63, "field 'table_offset' at 0x28: 0xffffffffffffffc0, expected"),
        (48, "Q", HUGE - 63, "field 'index_offset' at 0x30: 0xffffffffffffffc0, expected a multiple of 64 within"),
        (48, "Q", 833, "field 'index_offset' at 0x30: 0x341, expected a multiple of 64"),
        (48, "Q", 896, "field 'index_bytes' at 0x38: 1383, expected 1319"),
        (56, "Q", 0, "field 'index_bytes' at 0x38: 0, expected 1383"),
        (56, "Q", HUGE, "field 'index_bytes' at 0x38: 18446744073709551615, expected 1383"),
    ],
)
def test_a_header_field_out_of_range_is_refused(sample: bytes, byte: int, form: str, value: int, words: str) -> None:
    assert words in str(refusal(patch(sample, "header", 0, byte, form, value)))


def test_a_header_that_disagrees_with_its_digest_is_refused(sample: bytes) -> None:
    data = bytearray(sample)
    data[24] ^= 1
    assert "field 'header_digest' at 0x60" in str(refusal(bytes(data)))


def test_an_index_that_disagrees_with_its_digest_is_refused(sample: bytes) -> None:
    data = bytearray(sample)
    data[-1] ^= 1
    assert "field 'index_digest' at 0x340: BLAKE3 of the index is" in str(refusal(bytes(data)))


def test_an_unfinished_file_is_refused(sample: bytes) -> None:
    assert "unfinished .qfmt file" in str(refusal(bytes(128) + sample[128:]))


def test_a_file_shorter_than_a_header_is_refused(sample: bytes) -> None:
    assert "127 bytes, expected at least the 128 of a header" in str(refusal(sample[:127]))


@pytest.mark.parametrize(("byte", "form", "value"), [(10, "H", 9), (24, "Q", 1 << 63)])
def test_a_later_minor_or_an_unknown_optional_feature_is_accepted(sample: bytes, byte: int, form: str, value: int) -> None:
    File("later.qfmt", memoryview(patch(sample, "header", 0, byte, form, value))).verify()


@pytest.mark.parametrize("byte", range(0, 80, 8))
@pytest.mark.parametrize("value", [0, 1 << 20, 1 << 40, 1 << 63, HUGE])
def test_a_count_that_is_not_so_is_refused(sample: bytes, byte: int, value: int) -> None:
    assert refusal(patch(sample, "head", 0, byte, "Q", value)).offset is not None


@pytest.mark.parametrize(
    ("section", "number", "byte", "form", "value", "words"),
    [
        ("entries", 1, 0, "I", 8, "entries record 1: name_offset is not where the record before ends"),
        ("entries", 0, 0, "I", 2**32 - 1, "entries record 0: name_offset or its length is beyond"),
        ("entries", 0, 4, "I", 2**32 - 1, "records ask for"),
        ("entries", 4, 8, "I", 5, "entries record 4: form does not exist"),
        ("entries", 1, 12, "I", 2, "entries record 1: first_plane is not where the record before ends"),
        ("entries", 0, 16, "I", 1, "entries record 0: first_chunk is not where the record before ends"),
        ("entries", 2, 20, "I", 1, "entries record 2: n_chunks is not that of its form"),
        ("planes", 0, 0, "Q", 192, "planes record 0: is not where the planes before it put it"),
        ("planes", 1, 0, "Q", 128, "planes record 1: is not where the planes before it put it"),
        ("planes", 1, 0, "Q", HUGE - 63, "planes record 1: beyond the chunk table"),
        ("planes", 0, 8, "Q", HUGE, "planes record 0: stored_bytes is more than its column holds"),
        ("planes", 0, 8, "Q", 319, "planes record 0: stored_bytes is not what its column holds"),
        ("forms", 0, 0, "I", 6, "forms record 0: descriptor does not exist"),
        ("forms", 1, 4, "I", 0, "forms record 1: first_dim is not where the record before ends"),
        ("forms", 1, 8, "I", 0, "forms record 1: first_part is not where the record before ends"),
        ("forms", 0, 12, "H", 0, "forms record 0: no parts"),
        ("forms", 0, 12, "H", 65535, "first_part or its length is beyond 6"),
        ("forms", 0, 14, "H", 8, "forms record 0: dtype does not exist"),
        ("forms", 0, 16, "B", 9, "forms record 0: rank above 8"),
        ("forms", 4, 16, "B", 0, "parts record 0: first_dim is not where the record before ends"),
        ("forms", 0, 16, "B", 8, "forms record 1: first_dim is not where the record before ends"),
        ("forms", 3, 17, "B", 1, "forms record 3: reserved bytes are not zero"),
        ("forms", 3, 23, "B", 128, "forms record 3: reserved bytes are not zero"),
        ("parts", 0, 0, "Q", 321, "parts record 0: n_bytes is not a multiple of block_bytes"),
        ("parts", 0, 0, "Q", 340, "parts record 0: n_bytes is not a multiple of row_bytes"),
        ("parts", 0, 0, "Q", 640, "parts record 0: n_bytes is not shape times width of the dtype"),
        ("parts", 0, 0, "Q", 1 << 60, "parts record 0: longer than 281474976710656 bytes"),
        ("parts", 0, 8, "Q", 0, "parts record 0: row_bytes is 0"),
        ("parts", 0, 8, "Q", 41, "parts record 0: n_bytes is not a multiple of row_bytes"),
        ("parts", 1, 16, "I", 0, "parts record 1: first_dim is not where the record before ends"),
        ("parts", 1, 20, "I", 0, "parts record 1: first_column is not where the record before ends"),
        ("parts", 1, 24, "H", 8, "parts record 1: role does not exist"),
        ("parts", 1, 26, "H", 65535, "parts record 1: dtype does not exist"),
        ("parts", 0, 28, "H", 0, "parts record 0: block_bytes is 0"),
        ("parts", 0, 28, "H", 7, "parts record 0: n_bytes is not a multiple of block_bytes"),
        ("parts", 0, 28, "H", 40, "parts record 0: columns do not end where the block ends"),
        ("parts", 1, 30, "B", 9, "parts record 1: rank above 8"),
        ("parts", 1, 31, "B", 0, "parts record 1: no columns"),
        ("parts", 1, 31, "B", 2, "parts record 2: first_column is not where the record before ends"),
        ("columns", 0, 0, "H", 1, "columns record 0: does not begin where the one before ends"),
        ("columns", 0, 2, "H", 0, "columns record 0: ends where it begins, or before"),
        ("columns", 0, 2, "H", 21, "parts record 0: columns do not end where the block ends"),
        ("columns", 0, 4, "B", 0, "columns record 0: element_bytes is 0"),
        ("columns", 0, 4, "B", 3, "columns record 0: element_bytes does not divide its width"),
        ("columns", 0, 5, "B", 2, "columns record 0: unknown encoding"),
        ("columns", 0, 5, "B", 1, "required features 0x0, the index uses 0x1"),
        ("columns", 0, 6, "B", 2, "columns record 0: unknown flag"),
        ("columns", 5, 7, "B", 1, "columns record 5: reserved byte is not zero"),
        ("dims", 0, 0, "Q", 9, ""),
        ("dims", 0, 0, "Q", 1 << 47, "forms record 0: more than 281474976710656 elements"),
        ("dims", 0, 0, "Q", HUGE, "dims record 0: beyond 281474976710656"),
        ("dims", 8, 0, "Q", 9, "parts record 0: n_bytes is not shape times width of the dtype"),
        ("dims", 8, 0, "Q", (1 << 61) + 8, "dims record 8: beyond"),
        ("symbols", 0, 0, "I", 0, "symbols record 0: offset is not where the record before ends"),
        ("symbols", 0, 4, "I", 2**32 - 1, "records ask for"),
        ("documents", 0, 0, "Q", 1, "documents record 0: offset is not where the record before ends"),
        ("documents", 0, 8, "Q", HUGE, "records ask for"),
        ("documents", 1, 8, "Q", 1, "records ask for"),
        ("text", 0, 0, "B", 0xFF, "text is not UTF-8"),
        ("text", 0, 91, "B", 1, "padding after text is not zero"),
    ],
)
def test_a_record_that_contradicts_the_others_is_refused(
    sample: bytes, section: str, number: int, byte: int, form: str, value: int, words: str
) -> None:
    data = patch(sample, section, number, byte, form, value)
    if words:
        assert words in str(refusal(data))
    else:
        File("legal.qfmt", memoryview(data)).verify()


def test_a_name_that_begins_inside_a_character_is_refused(sample: bytes) -> None:
    data = patch(sample, "entries", 0, 4, "I", 1)
    data = patch(patch(data, "entries", 1, 0, "I", 1), "entries", 1, 4, "I", 9)
    assert "entries record 1: name begins inside a UTF-8 character" in str(refusal(data))


def test_one_document_is_not_enough() -> None:
    assert "1 documents, expected at least 2: metadata and recipe" in str(refusal(with_documents(b"{}")))


def test_a_plane_of_a_zstd_column_larger_than_the_column_is_refused(packed: bytes) -> None:
    data = patch(packed, "planes", 0, 8, "Q", 33)
    assert "planes record 0: stored_bytes is more than its column holds" in str(refusal(data))


def test_a_compressed_column_must_follow_the_one_before(packed: bytes) -> None:
    data = patch(packed, "columns", 1, 0, "H", 0)
    assert "columns record 1: does not begin where the one before ends" in str(refusal(data))


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    with Writer(tmp_path / "a.qfmt", [dense_spec("one", (0,)), dense_spec("two", (0,))]):
        pass
    data = (tmp_path / "a.qfmt").read_bytes().replace(b"onetwo", b"oneone")
    file = File("twice.qfmt", memoryview(seal(data)))
    with pytest.raises(FileError, match=r"twice\.qfmt: tensor 'one': name given twice"):
        file.tensors["one"]
    with pytest.raises(FileError, match="name given twice"):
        list(file.tensors)
    with pytest.raises(FileError, match="name given twice"):
        file.verify()


def test_two_parts_of_one_role_are_refused(sample: bytes) -> None:
    file = File("bad.qfmt", memoryview(patch(sample, "parts", 2, 24, "H", 4)))
    with pytest.raises(FileError, match=r"tensor 'b' field 'codes': two parts of this role"):
        file.tensors["b"]


@pytest.mark.parametrize(
    "name", [b"../etc/pass", b"/etc/passwd", b"a//b/c/d/ef", b"a\\b\\c\\d\\efg", b"C:/win.json", b"a/b/./c.jsn"]
)
def test_an_asset_name_that_leaves_its_folder_is_refused(sample: bytes, name: bytes) -> None:
    file = File("bad.qfmt", memoryview(seal(sample.replace(b"config.json", name))))
    with pytest.raises(FileError, match=r"expected a relative path"):
        list(file.assets)
    with pytest.raises(FileError, match=r"expected a relative path"):
        file.verify()


def test_an_asset_of_another_shape_is_refused(sample: bytes) -> None:
    file = File("bad.qfmt", memoryview(patch(sample, "parts", 4, 24, "H", 4)))
    with pytest.raises(FileError, match=r"asset 'config\.json' has parts .*expected one of role 'asset'"):
        file.asset("config.json")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'{"scheme":"int4"}', b'{"scheme":"int4"]', "not strict JSON"),
        (b'{"scheme":"int4"}', b'["scheme","int4"]', "descriptor is list, expected an object"),
        (b'{"scheme":"int4"}', b'{"scheme":     1}', ""),
        (b'{"scheme":"int4"}', b'{"scheme":   NaN}', "NaN is not JSON"),
        (b'{"scheme":"int4"}', b'{"scheme":  1e999', "not strict JSON"),
        (b'{"scheme":"int4"}', b'{"scheme": 1e999}', "beyond float64"),
        (b'{"scheme":"int4"}', b'{"a":1,"a":"int"}', "key 'a' twice"),
        (b'{"scheme":"int4"}', b'{"s":"\\ud800\\t"} ', "not strict JSON"),
        (b'{"scheme":"int4"}', b'{"scheme":"\xff\xff\xff4"}', "not strict JSON"),
    ],
)
def test_a_descriptor_that_is_not_a_strict_json_object_is_refused(sample: bytes, old: bytes, new: bytes, words: str) -> None:
    file = File("bad.qfmt", memoryview(seal(sample.replace(old, new[: len(old)].ljust(len(old))))))
    if words:
        with pytest.raises(FileError, match=words):
            file.tensors["b"]
    else:
        assert file.tensors["b"].descriptor == {"scheme": 1}


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b"[" * 65 + b"]" * 65, b'{"a":' * 65 + b"1" + b"}" * 65, b"9" * 5000, b"", b"\xef\xbb\xbf1"],
    ids=["open brackets", "65 arrays", "65 objects", "5000 digits", "empty", "byte-order mark"],
)
def test_a_recipe_that_is_not_strict_json_is_refused(text: bytes) -> None:
    with pytest.raises(FileError, match="field 'document 1': not strict JSON"):
        _ = File("bad.qfmt", memoryview(with_documents(b"{}", text))).recipe


def test_a_recipe_nested_64_deep_is_accepted() -> None:
    value = File("deep.qfmt", memoryview(with_documents(b"{}", b"[" * 64 + b"]" * 64 + b" "))).recipe
    assert isinstance(value, list)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[]", "metadata is list, expected a JSON object"),
        (b'{"k":1}', 'field \'k\': expected an object of "type" and "value"'),
        (b'{"k":{"type":"uint8","value":256}}', "256 is not a uint8"),
        (b'{"k":{"type":"int8","value":true}}', "True is not a int8"),
        (b'{"k":{"type":"int64","value":"9223372036854775808"}}', "is not a int64"),
        (b'{"k":{"type":"int64","value":"012"}}', "'012' is not a int64"),
        (b'{"k":{"type":"float32","value":0.1}}', "0.1 is not a float32"),
        (b'{"k":{"type":"float64","value":"nan"}}', "'nan' is not a float64"),
        (b'{"k":{"type":"bool","value":0}}', "0 is not a bool"),
        (b'{"k":{"type":"string","value":null}}', "None is not a string"),
        (b'{"k":{"type":"int7","value":0}}', "type 'int7', expected one of"),
        (b'{"k":{"type":["int8"],"value":0}}', "expected a string"),
        (b'{"k":{"type":"string","value":"","items":"int8"}}', "expected only for arrays"),
        (b'{"k":{"type":"array","value":[]}}', 'expected "items"'),
        (b'{"k":{"type":"array","items":["int8"],"value":[]}}', 'expected "items"'),
        (b'{"k":{"type":"array","items":"int8","value":{}}}', 'expected "items"'),
        (b'{"k":{"type":"array","items":"int8","value":[1,300]}}', "300 is not a int8"),
        (b'{"k":{"type":"array","items":"array","value":[1]}}', 'expected "items"'),
        (b'{"k":{"type":"int8","value":0,"x":0}}', "expected an object of"),
    ],
)
def test_metadata_that_is_not_typed_is_refused(text: bytes, words: str) -> None:
    file = File("bad.qfmt", memoryview(with_documents(text, b"null")))
    with pytest.raises(FileError) as caught:
        _ = file.metadata
    assert words in str(caught.value)
    with pytest.raises(FileError):
        file.verify()


@pytest.mark.parametrize(
    ("byte", "form", "value", "words"),
    [
        (4, "B", 1, "record of chunk 0: 320 bytes of encoding 1, expected 320 raw"),
        (4, "B", 9, "320 bytes of encoding 9"),
        (0, "I", 319, "319 bytes of encoding 0, expected 320 raw"),
        (0, "I", 2**32 - 1, "4294967295 bytes of encoding 0, expected 320 raw"),
        (5, "B", 1, "record of chunk 0"),
        (7, "B", 1, "record of chunk 0"),
        (8, "B", 0, "field 'blocks' at 0x80: chunk 0 of 1 (320 bytes, part bytes from 0): BLAKE3 is"),
    ],
)
def test_a_chunk_record_that_contradicts_its_form_is_refused(
    sample: bytes, byte: int, form: str, value: int, words: str
) -> None:
    data = bytearray(sample)
    struct.pack_into("<" + form, data, place(data, "table", 0, byte), value)
    file = File("bad.qfmt", memoryview(seal_entry(data, 0)))
    with pytest.raises(FileError) as caught:
        file.read(file.tensors["ü.weight"], "blocks")
    assert words in str(caught.value)
    assert str(caught.value).startswith("bad.qfmt: tensor 'ü.weight' ")
    with pytest.raises(FileError):
        file.verify()


def test_chunk_records_that_disagree_with_the_digest_of_their_entry_are_refused(sample: bytes) -> None:
    file = File("bad.qfmt", memoryview(patch(sample, "entries", 1, 24, "B", 0)))
    with pytest.raises(FileError, match=r"tensor 'b' field 'chunk table' at .*BLAKE3 of its 2 chunk records is"):
        file.read(file.tensors["b"], "codes")


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"\x28\xb5\x2f\xfd\x20\x21", "frame declares 33 bytes, expected 32"),
        (b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 6 + b"\x7f\0", "frame declares"),
        (b"\x28\xb5\x2f\xfd\x00\x58", "frame declares"),
        (b"\x28\xb5\x2f\xfd\x20\x20\xff\xff\xff", "damaged zstd frame"),
        (b"\x27\xb5\x2f\xfd", "damaged zstd frame"),
        (b"\x50\x2a\x4d\x18\x0c\0\0\0", "expected 32"),
        (zstandard.compress(bytes(32)), "damaged zstd frame"),
    ],
    ids=["size", "huge size", "no size", "block", "magic", "skippable", "trailing bytes"],
)
def test_a_frame_that_is_not_its_chunk_is_refused(packed: bytes, frame: bytes, words: str) -> None:
    data = bytearray(packed)
    assert struct.unpack_from("<IB", data, place(data, "table")) == (20, 1)
    assert len(frame) < 20
    data[128 : 128 + 20] = frame + data[128 + len(frame) : 128 + 20]
    digest = place(data, "table", 0, 8)
    data[digest : digest + 32] = blake3(bytes(data[128:148])).digest()
    file = File("bad.qfmt", memoryview(seal_entry(data, 0)))
    with pytest.raises(FileError) as caught:
        file.read(file.tensors["ü.weight"], "blocks")
    assert words in str(caught.value)
    assert "field 'blocks[0:2]' at 0x80" in str(caught.value)
    with pytest.raises(FileError, match=r"blocks\[0:2\]"):
        file.verify()


def test_padding_that_is_not_zero_is_refused_by_verify_alone(sample: bytes) -> None:
    data = bytearray(sample)
    data[128 + BLOCKS.nbytes + 40] = 1
    file = File("bad.qfmt", memoryview(bytes(data)))
    assert file.read(file.tensors["ü.weight"], "blocks").tobytes() == BLOCKS.tobytes()
    with pytest.raises(FileError, match=r"field 'padding' at 0x1e8: padding byte is 0x01, expected 0"):
        file.verify()


def test_a_million_random_bytes_of_index_are_refused(sample: bytes) -> None:
    index = np.random.default_rng(seed=3).integers(0, 256, 1_000_000, np.uint8).tobytes()
    data = bytearray(sample[:832] + index)
    struct.pack_into("<Q", data, 32, len(data))
    struct.pack_into("<Q", data, 56, len(index))
    assert refusal(seal(data)).offset == 832


def with_documents(*documents: bytes) -> bytes:
    """Give a file without tensors that holds these documents."""
    lengths = [len(document) for document in documents]
    spans = [(sum(lengths[:k]), n_bytes) for k, n_bytes in enumerate(lengths)]
    index = struct.pack("<10Q", *[0] * 9, len(documents))
    index += b"".join(struct.pack("<2Q", *span) for span in spans) + b"".join(documents)
    header = struct.pack("<8s2HI6Q", b"\x89QFMT\r\n\x1a", 1, 0, 64, 0, 0, 128 + len(index), 128, 128, len(index))
    return seal(header + bytes(64) + index)
