"""Metadata of one file, edited: against files made by hand, gguf's reader and safetensors' own."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as peer
import handmade_gguf as made
import numpy as np
import pytest
from handmade_gguf import ARCH, ARR, BOOL, EIGHT, F32, F64, I8, I16, I32, I64, STR, U8, U16, U32, U64
from qconvert import meta
from qconvert.containers.gguf import open_gguf
from qconvert.conversion import convert
from qfmt.__main__ import main
from safetensors import SafetensorError, safe_open

from qformat.errors import FileError, QFormatError, UsageError

RUN = Callable[..., tuple[int, str, str]]
NAME = made.kv("general.name", STR, "abcd")
INFO = made.info("w", [8], 0, 0)
TWO = [INFO, made.info("v", [3], 0, 32)]
TWO_DATA = EIGHT + struct.pack("<3f", 1, 2, 3) + bytes(20)
WHOLE = made.gguf([ARCH, NAME], TWO, TWO_DATA)

KINDS: list[tuple[str, str, int, Any]] = [
    ("u8", "255", U8, 255),
    ("i8", "-128", I8, -128),
    ("u16", "0xffff", U16, 65535),
    ("i16", "-32768", I16, -32768),
    ("u32", "4294967295", U32, 2**32 - 1),
    ("int32", "-2147483648", I32, -(2**31)),
    ("f32", "0.5", F32, 0.5),
    ("f32", "-inf", F32, float("-inf")),
    ("bool", "true", BOOL, True),
    ("str", "", STR, ""),
    ("string", " {'a': \"b\"}\n\t\0\U0001f600é", STR, " {'a': \"b\"}\n\t\0\U0001f600é"),
    ("u64", "18446744073709551615", U64, 2**64 - 1),
    ("i64", "-9223372036854775808", I64, -(2**63)),
    ("f64", "0.1", F64, 0.1),
]
LISTS: list[tuple[str, str, int, list[Any]]] = [
    ("[str]", '["a", "", "\\u00e9"]', STR, ["a", "", "é"]),
    ("[u8]", "[0, 255]", U8, [0, 255]),
    ("[bool]", "[true, false]", BOOL, [True, False]),
    ("[f32]", "[1, 0.5, -2e3]", F32, [1.0, 0.5, -2000.0]),
    ("[i64]", "[-9223372036854775808]", I64, [-(2**63)]),
    ("[u32]", "[]", U32, []),
]
GUESSES = [
    ("0", U32, 0),
    ("4294967296", U64, 2**32),
    ("-1", I32, -1),
    ("-2147483649", I64, -(2**31) - 1),
    ("1e-05", F32, np.float32(1e-05)),
    ("2.5", F32, 2.5),
    ("true", BOOL, True),
    ("True", STR, "True"),
    ("007", STR, "007"),
    ("18446744073709551616", STR, "18446744073709551616"),
    ("nan", STR, "nan"),
    ("1_000", STR, "1_000"),
    ("", STR, ""),
]

REFUSED = [
    (("set", "n", "256", "--type", "u8"), ["'n'", "'256'", "0 to 255", "(u8)"]),
    (("set", "n", "-1", "--type", "u64"), ["'-1'", "0 to 18446744073709551615"]),
    (("set", "n", "1.5", "--type", "i32"), ["'1.5'", "-2147483648 to 2147483647"]),
    (("set", "n", "1e39", "--type", "f32"), ["'1e39'", "3.4028234663852886e+38"]),
    (("set", "n", "1e999", "--type", "f64"), ["'1e999'", "1.7976931348623157e+308"]),
    (("set", "n", "yes", "--type", "bool"), ["'yes'", "true or false"]),
    (("set", "n", "1", "--type", "u128"), ["unknown type 'u128'", "u64", "[str]"]),
    (("set", "n", "1", "--type", "[[u8]]"), ["unknown type '[[u8]]'"]),
    (("set", "n", "[1, 300]", "--type", "[u8]"), ["'n[1]'", "'300'", "0 to 255"]),
    (("set", "n", "[1,", "--type", "[u8]"), ["'n'", "JSON list"]),
    (("set", "n", "[[1]]", "--type", "[u8]"), ["'n[0]'", "a list", "u8"]),
    (("set", "n", "[1]", "--type", "[str]"), ["'n[0]'", "a number", "str"]),
    (("set", "n", "9" * 2000, "--type", "u64"), ["2000 characters", "18446744073709551615"]),
    (("set", "", "1"), ["empty key"]),
    (("set", "k" * 65536, "1"), ["65536 bytes", "65535"]),
    (("set", "general.alignment", "48"), ["'general.alignment'", "48", "power of two"]),
    (("set", "general.alignment", "64", "--type", "u64"), ["'general.alignment'", "uint64", "uint32"]),
    (("set", "general.alignment", "big", "--type", "str"), ["'general.alignment'", "str", "u32"]),
    (("set", "general.alignment", "2147483648"), ["'general.alignment'", "2147483648", "1048576"]),
    (("rm", "general.nam"), ["'general.nam'", "among 2", "general.name"]),
    (("get", "nothing"), ["'nothing'", "among 2"]),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(WHOLE)
    return path


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(st_file('"__metadata__":{"format":"pt","a":"b"},'))
    return path


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes]) -> RUN:
    def call(*args: object) -> tuple[int, str, str]:
        code = main(["meta", *map(str, args)])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return call


def st_file(first: str, pad: int = 0) -> bytes:
    text = f'{{{first}"w":{{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}}}'.encode()
    text += b" " * (pad or -len(text) % 8)
    return struct.pack("<Q", len(text)) + text + EIGHT


def contents(path: Path, key: str) -> Any:
    return peer.GGUFReader(path).fields[key].contents()


def alone(path: Path) -> bool:
    return sorted(p.name for p in path.parent.iterdir()) == [path.name]


# --- GGUF: what is written


def test_a_value_of_equal_length_is_written_in_place(model: Path) -> None:
    inode = model.stat().st_ino
    edit = meta.set_value(model, "general.name", "wxyz")
    assert (edit.how, model.stat().st_ino) == ("in place", inode)
    assert model.read_bytes() == made.gguf([ARCH, made.kv("general.name", STR, "wxyz")], TWO, TWO_DATA)
    assert alone(model)


def test_a_header_that_grows_into_its_padding_is_written_in_place(model: Path) -> None:
    with open_gguf(model) as file:
        room = file.data_start - len(WHOLE[: file.data_start].rstrip(b"\0"))
    text = "abcd" + "x" * (room % 32 - 8)
    edit = meta.set_value(model, "general.name", text)
    expected = made.gguf([ARCH, made.kv("general.name", STR, text)], TWO, TWO_DATA)
    assert (edit.how, len(expected)) == ("in place", len(WHOLE))
    assert model.read_bytes() == expected


def test_a_header_that_outgrows_its_padding_is_written_by_copy(model: Path) -> None:
    edit = meta.set_value(model, "general.name", "long " * 100)
    assert edit.how == "by copy"
    assert model.read_bytes() == made.gguf([ARCH, made.kv("general.name", STR, "long " * 100)], TWO, TWO_DATA)
    assert alone(model)


def test_removing_a_key_leaves_all_others(model: Path) -> None:
    meta.remove(model, ["general.name"])
    assert model.read_bytes() == made.gguf([ARCH], TWO, TWO_DATA)


def test_an_edit_and_its_opposite_give_the_same_file(model: Path) -> None:
    meta.set_value(model, "general.tags", '["a"]', "[str]")
    meta.remove(model, ["general.tags"])
    assert model.read_bytes() == WHOLE


def test_setting_what_is_there_writes_nothing(model: Path) -> None:
    os.utime(model, ns=(5, 5))
    assert meta.set_value(model, "general.name", "abcd").how == "unchanged"
    assert (model.stat().st_mtime_ns, model.read_bytes()) == (5, WHOLE)


@pytest.mark.parametrize(("kind", "text", "number", "value"), KINDS)
def test_value_of_every_type_is_read_by_the_gguf_package(model: Path, kind: str, text: str, number: int, value: Any) -> None:
    meta.set_value(model, "new.key", text, kind)
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv("new.key", number, value)], TWO, TWO_DATA)
    assert contents(model, "new.key") == value


@pytest.mark.parametrize(("kind", "text", "number", "values"), LISTS)
def test_array_of_every_kind_is_written_as_by_hand(model: Path, kind: str, text: str, number: int, values: list[Any]) -> None:
    meta.set_value(model, "new.key", text, kind)
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv_array("new.key", number, values)], TWO, TWO_DATA)


@pytest.mark.parametrize(("text", "number", "value"), GUESSES)
def test_a_key_without_a_type_gets_one_that_is_told(model: Path, text: str, number: int, value: Any) -> None:
    edit = meta.set_value(model, "new.key", text)
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv("new.key", number, value)], TWO, TWO_DATA)
    _, entry = edit.changes[0]
    assert entry is not None
    assert edit.notices == (f"'new.key' is new and stored as {entry.kind}; --type chooses another",)


@pytest.mark.parametrize(("kind", "number"), [("u8", U8), ("i64", I64), ("f64", F64), ("str", STR)])
def test_a_key_keeps_its_type(model: Path, kind: str, number: int) -> None:
    meta.set_value(model, "new.key", "1", kind)
    edit = meta.set_value(model, "new.key", "2")
    value = {STR: "2", F64: 2.0}.get(number, 2)
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv("new.key", number, value)], TWO, TWO_DATA)
    assert edit.notices == ()


def test_an_array_keeps_its_type(model: Path) -> None:
    meta.set_value(model, "new.key", "[1]", "[i16]")
    meta.set_value(model, "new.key", "[-5, 6]")
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv_array("new.key", I16, [-5, 6])], TWO, TWO_DATA)


@pytest.mark.parametrize("version", [2, 3])
def test_a_big_endian_file_stays_one(tmp_path: Path, version: int) -> None:
    def whole(number: int, text: str) -> bytes:
        pairs = [made.kv("a", U32, number, ">"), made.kv_array("l", U16, [1, 2], order=">"), made.kv("s", STR, text, ">")]
        infos = [made.info("w", [8], 0, 0, order=">")]
        return made.gguf(pairs, infos, struct.pack(">8f", *range(8)), order=">", version=version)

    path = tmp_path / "big.gguf"
    path.write_bytes(whole(1, "x"))
    meta.set_value(path, "a", "258")
    meta.set_value(path, "s", "y" * 99)
    assert path.read_bytes() == whole(258, "y" * 99)


def test_values_that_no_reader_asks_for_stay_the_bytes_they_are(tmp_path: Path) -> None:
    nested = made.text("nest") + struct.pack("<IIQIQ", ARR, ARR, 1, U8, 2) + b"\7\7"
    odd = made.text("odd") + struct.pack("<I", BOOL) + b"\2"
    strings = made.text("bad") + struct.pack("<IIQ", ARR, STR, 1) + made.text(b"\xff\xfe")
    infos = [made.info("w", [8], 0, 0), made.info("x", [4], 77, 32)]
    data = EIGHT + b"opaque bytes, 23 of it."
    path = tmp_path / "odd.gguf"
    path.write_bytes(made.gguf([nested, odd, NAME, strings], infos, data, fill=b"\x55"))
    meta.set_value(path, "general.name", "n" * 200)
    longer = made.kv("general.name", STR, "n" * 200)
    assert path.read_bytes() == made.gguf([nested, odd, longer, strings], infos, data)


def test_padding_between_tensors_stays_and_missing_padding_stays_missing(tmp_path: Path) -> None:
    data = EIGHT + struct.pack("<3f", 1, 2, 3) + b"\xee" * 20 + struct.pack("<f", 9)
    infos = [*TWO, made.info("u", [1], 0, 64)]
    path = tmp_path / "odd.gguf"
    path.write_bytes(made.gguf([NAME], infos, data))
    meta.set_value(path, "general.name", "n" * 200)
    assert path.read_bytes() == made.gguf([made.kv("general.name", STR, "n" * 200)], infos, data)


@pytest.mark.parametrize("n_padding", [0, 4])
def test_a_file_of_key_values_alone_is_edited(tmp_path: Path, n_padding: int) -> None:
    path = tmp_path / "vocab.gguf"
    path.write_bytes(made.gguf([NAME]) + bytes(n_padding))
    meta.set_value(path, "general.name", "some longer name")
    expected = made.gguf([made.kv("general.name", STR, "some longer name")])
    assert path.read_bytes() == expected + bytes(-len(expected) % 32 if n_padding else 0)


def test_tensors_without_weights_past_the_end_are_kept(tmp_path: Path) -> None:
    infos = [made.info("none", [0], 0, 0)]
    path = tmp_path / "none.gguf"
    path.write_bytes(made.gguf([NAME], infos, alignment=1))
    meta.set_value(path, "general.name", "x" * 40)
    with open_gguf(path) as file:
        assert (list(file.tensors), file.metadata["general.name"]) == (["none"], "x" * 40)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_another_alignment_lays_the_tensors_out_anew(model: Path, alignment: int) -> None:
    meta.set_value(model, "general.alignment", str(alignment))
    reader = peer.GGUFReader(model)
    assert reader.alignment == alignment
    assert [t.data.tolist() for t in reader.tensors] == [list(range(8)), [1, 2, 3]]
    meta.remove(model, ["general.alignment"])
    assert model.read_bytes() == WHOLE


def test_a_link_stays_a_link_and_the_mode_stays(model: Path) -> None:
    model.chmod(0o640)
    link = model.with_name("link.gguf")
    link.symlink_to(model.name)
    meta.set_value(link, "general.name", "n" * 100)
    assert (link.is_symlink(), model.stat().st_mode & 0o777) == (True, 0o640)
    assert contents(model, "general.name") == "n" * 100


@pytest.mark.parametrize(("text", "how"), [("wxyz", "in place"), ("long " * 100, "by copy")])
def test_a_name_as_long_as_names_may_be_is_no_hindrance(model: Path, text: str, how: str) -> None:
    path = model.rename(model.with_name("é" * 125 + ".gguf"))
    assert meta.set_value(path, "general.name", text).how == how
    assert (contents(path, "general.name"), alone(path)) == (text, True)


def test_an_output_leaves_the_file_alone(model: Path, run: RUN) -> None:
    copy = model.with_name("copy.gguf")
    code, out, err = run("set", model, "general.name", "wxyz", "-o", copy)
    assert (code, err, out.splitlines()[-1]) == (0, "", f"{copy}: 1 changed, by copy")
    assert model.read_bytes() == WHOLE
    assert copy.read_bytes() == made.gguf([ARCH, made.kv("general.name", STR, "wxyz")], TWO, TWO_DATA)
    code, _, err = run("rm", model, "general.name", "-o", copy)
    assert (code, err) == (1, f"qfmt: {copy}: destination exists; use --force to replace it\n")
    assert run("rm", model, "general.name", "-o", copy, "--force")[0] == 0
    assert copy.read_bytes() == made.gguf([ARCH], TWO, TWO_DATA)


def test_the_file_itself_is_no_output(model: Path, run: RUN) -> None:
    code, _, err = run("set", model, "general.name", "wxyz", "-o", model)
    assert (code, err) == (1, f"qfmt: {model}: destination is the source\n")


# --- GGUF: copying keys


def test_the_file_whose_keys_are_copied_is_no_output(model: Path, tmp_path: Path, run: RUN) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(model.read_bytes())
    before = other.read_bytes()
    code, _, err = run("cp", other, model, "-o", other, "--force")
    assert (code, other.read_bytes() == before) == (1, True)
    assert "other.gguf: destination is the source" in err


def test_copied_keys_replace_where_they_stand_and_others_follow(model: Path) -> None:
    other = model.with_name("other.gguf")
    theirs = [made.kv("n", U8, 7), made.kv("general.name", STR, "other"), made.kv_array("l", STR, ["a", "é"])]
    other.write_bytes(made.gguf(theirs))
    meta.copy(other, model)
    assert model.read_bytes() == made.gguf([ARCH, theirs[1], theirs[0], theirs[2]], TWO, TWO_DATA)
    assert other.read_bytes() == made.gguf(theirs)


def test_copied_keys_go_into_the_byte_order_of_the_file(model: Path) -> None:
    other = model.with_name("big.gguf")
    other.write_bytes(made.gguf([made.kv("n", U32, 7, ">"), made.kv_array("l", I16, [1, -2], order=">")], order=">"))
    meta.copy(other, model)
    both = [made.kv("n", U32, 7), made.kv_array("l", I16, [1, -2])]
    assert model.read_bytes() == made.gguf([ARCH, NAME, *both], TWO, TWO_DATA)


def test_what_a_file_says_of_itself_is_copied_only_by_name(model: Path) -> None:
    other = model.with_name("other.gguf")
    own = [made.kv("general.alignment", U32, 64), made.kv("split.no", U16, 0), made.kv("split.count", U16, 1)]
    other.write_bytes(made.gguf([*own, made.kv("general.size", STR, "s")]))
    meta.copy(other, model, ["*"])
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv("general.size", STR, "s")], TWO, TWO_DATA)
    meta.copy(other, model, ["general.alignment"])
    assert peer.GGUFReader(model).alignment == 64


def test_include_chooses_the_keys_to_copy(model: Path, run: RUN) -> None:
    other = model.with_name("other.gguf")
    other.write_bytes(made.gguf([made.kv("a.x", U8, 1), made.kv("b.x", U8, 2), made.kv("c.y", U8, 3)]))
    assert run("cp", other, model, "--include", "a.*", "--include", "c.*")[0] == 0
    assert model.read_bytes() == made.gguf([ARCH, NAME, made.kv("a.x", U8, 1), made.kv("c.y", U8, 3)], TWO, TWO_DATA)
    code, _, err = run("cp", other, model, "--include", "d.*")
    assert (code, err) == (1, f"qfmt: {other}: no key matches 'd.*' among 3\n")


def test_keys_are_copied_between_containers_where_they_are_strings(model: Path, tensors: Path) -> None:
    meta.copy(tensors, model)
    assert (contents(model, "format"), contents(model, "a")) == ("pt", "b")
    meta.copy(model, tensors, ["general.*"])
    with safe_open(tensors, "np") as file:
        assert file.metadata() == {"format": "pt", "a": "b", "general.architecture": "llama", "general.name": "abcd"}


def test_a_number_is_not_copied_into_strings(model: Path, tensors: Path, run: RUN) -> None:
    before = tensors.read_bytes()
    meta.set_value(model, "n", "1", "u8")
    code, _, err = run("cp", model, tensors)
    assert (code, err) == (1, f"qfmt: {tensors}: field 'n': is u8, expected str: safetensors holds strings alone\n")
    assert tensors.read_bytes() == before


# --- safetensors


def test_metadata_that_fits_is_written_in_place_and_filled_with_spaces(tensors: Path) -> None:
    inode = tensors.stat().st_ino
    n_header = tensors.stat().st_size - len(EIGHT)
    edit = meta.set_value(tensors, "a", "")
    assert (edit.how, tensors.stat().st_ino) == ("in place", inode)
    text = b'{"__metadata__":{"format":"pt","a":""},"w":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}'
    assert tensors.read_bytes() == struct.pack("<Q", n_header - 8) + text.ljust(n_header - 8) + EIGHT


def test_metadata_that_does_not_fit_is_written_by_copy(tensors: Path) -> None:
    edit = meta.set_value(tensors, "ключ", "значение 😀\n")
    assert edit.how == "by copy"
    assert tensors.read_bytes() == st_file('"__metadata__":{"format":"pt","a":"b","ключ":"значение 😀\\n"},')
    with safe_open(tensors, "np") as file:
        assert file.metadata() == {"format": "pt", "a": "b", "ключ": "значение 😀\n"}
        assert file.get_tensor("w").tobytes() == EIGHT


def test_metadata_is_added_where_there_is_none(tensors: Path) -> None:
    tensors.write_bytes(st_file(""))
    meta.set_value(tensors, "format", "pt")
    assert tensors.read_bytes() == st_file('"__metadata__":{"format":"pt"},')


def test_the_last_key_takes_the_metadata_with_it(tensors: Path) -> None:
    n_text = tensors.stat().st_size - len(EIGHT) - 8
    meta.remove(tensors, ["format", "a"])
    text = b'{"w":{"dtype":"F32","shape":[8],"data_offsets":[0,32]}}'
    assert tensors.read_bytes() == struct.pack("<Q", n_text) + text.ljust(n_text) + EIGHT
    with safe_open(tensors, "np") as file:
        assert file.metadata() is None


def test_a_header_of_odd_spelling_keeps_its_members(tensors: Path) -> None:
    entry = b'{"shape":[8], "dtype":"F32", "data_offsets":[0,32], "note":{"x":[1.5,null]}}'
    text = b'{ "w" : ' + entry + rb', "__metadata__":{"\u0061":"b"} }'
    tensors.write_bytes(struct.pack("<Q", len(text) + 1) + text + b"\n" + EIGHT)
    meta.set_value(tensors, "a", "c" * 60)
    data = tensors.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    assert list(json.loads(data[8 : 8 + n_header]).items()) == [
        ("w", {"shape": [8], "dtype": "F32", "data_offsets": [0, 32], "note": {"x": [1.5, None]}}),
        ("__metadata__", {"a": "c" * 60}),
    ]
    assert data[8 + n_header :] == EIGHT


def test_safetensors_hold_strings_alone(tensors: Path, run: RUN) -> None:
    assert run("set", tensors, "n", "1")[0] == 0
    with safe_open(tensors, "np") as file:
        assert file.metadata() == {"format": "pt", "a": "b", "n": "1"}
    code, _, err = run("set", tensors, "n", "1", "--type", "u8")
    assert (code, err) == (1, f"qfmt: {tensors}: field 'n': is u8, expected str: safetensors holds strings alone\n")


def test_metadata_without_format_is_told(tensors: Path) -> None:
    edit = meta.remove(tensors, ["format"])
    assert edit.notices == ("metadata without 'format': transformers loads such a file only with format set to pt",)


# --- notices


def test_one_file_of_several_is_told(model: Path, tensors: Path) -> None:
    shard = tensors.rename(tensors.with_name("model-00002-of-00003.safetensors"))
    assert meta.set_value(shard, "a", "c").notices == ("this is file 2 of 3; the others are left as they are",)
    split = [made.kv("split.no", U16, 1), made.kv("split.count", U16, 4), made.kv("split.tensors.count", I32, 9)]
    model.write_bytes(made.gguf([*split, NAME]))
    assert meta.set_value(model, "general.name", "x").notices == (
        "this is one of 4 files of a split model; the others are left as they are",
    )
    assert "'split.no' must agree with the other files of a split model" in meta.set_value(model, "split.no", "2").notices


def test_another_architecture_is_told(model: Path) -> None:
    notices = meta.set_value(model, "general.architecture", "qwen2").notices
    assert notices == ("runtimes choose the graph, and the keys and tensors they look for, by 'general.architecture'",)


# --- the command line


def test_list_shows_types_and_the_beginning_of_arrays(model: Path, run: RUN) -> None:
    meta.set_value(model, "l", json.dumps([str(i) for i in range(1000)]), "[str]")
    meta.set_value(model, "e", "1e-05")
    assert run("list", model) == (
        0,
        "key                   type   value\n"
        "general.architecture  str    'llama'\n"
        "general.name          str    'abcd'\n"
        'l                     [str]  1000 values: ["0", "1", "2", "3"]\n'
        "e                     f32    1e-05\n",
        "",
    )


def test_list_goes_on_past_text_that_is_not_utf_8(model: Path, run: RUN) -> None:
    model.write_bytes(made.gguf([made.text("bad") + struct.pack("<IIQ", ARR, STR, 1) + made.text(b"\xff"), NAME]))
    code, out, _ = run("list", model)
    assert (code, "not UTF-8" in out, "'abcd'" in out) == (0, True, True)


def test_json_holds_every_value_with_its_type(model: Path, run: RUN) -> None:
    meta.set_value(model, "n", "[0.5]", "[f32]")
    meta.set_value(model, "f", "nan", "f64")
    found = json.loads(run("list", model, "--json")[1])
    assert found == {
        "schema": "qfmt.meta/1",
        "entries": [
            {"key": "general.architecture", "type": "str", "value": "llama"},
            {"key": "general.name", "type": "str", "value": "abcd"},
            {"key": "n", "type": "[f32]", "value": [0.5]},
            {"key": "f", "type": "f64", "value": "NaN"},
        ],
    }
    assert json.loads(run("get", model, "n", "--json")[1]) == {
        "schema": "qfmt.meta/1",
        "key": "n",
        "type": "[f32]",
        "value": [0.5],
    }


@pytest.mark.parametrize(("kind", "text", "number", "value"), [case for case in KINDS if case[0] != "string"])
def test_get_prints_what_set_reads(model: Path, run: RUN, kind: str, text: str, number: int, value: Any) -> None:
    meta.set_value(model, "k", text, kind)
    code, out, _ = run("get", model, "k")
    meta.set_value(model, "again", out[:-1], kind)
    assert (code, contents(model, "again")) == (0, value)


def test_a_value_may_come_from_a_file(model: Path, tmp_path: Path, run: RUN) -> None:
    template = "{% for m in messages %}\r\n{{ m }}é\n{% endfor %}\n"
    (tmp_path / "template").write_bytes(template.encode())
    assert run("set", model, "tokenizer.chat_template", "--from-file", tmp_path / "template")[0] == 0
    assert contents(model, "tokenizer.chat_template") == template
    assert run("get", model, "tokenizer.chat_template") == (0, template + "\n", "")


def test_a_number_from_a_file_may_end_its_line(model: Path, tmp_path: Path, run: RUN) -> None:
    (tmp_path / "n").write_text(" 7\n")
    assert run("set", model, "n", "--from-file", tmp_path / "n", "--type", "u16")[0] == 0
    assert contents(model, "n") == 7


def test_a_file_that_is_not_text_is_no_value(model: Path, tmp_path: Path, run: RUN) -> None:
    (tmp_path / "n").write_bytes(b"ab\xff")
    code, _, err = run("set", model, "n", "--from-file", tmp_path / "n")
    assert (code, err.count("\n"), "0xff is not UTF-8" in err, "at 0x2" in err) == (1, 1, True, True)


@pytest.mark.parametrize("args", [("a",), ("a", "1", "--from-file", "x"), ("a", "1", "2"), ("a", "1", "--tipe", "u8")])
def test_a_line_that_asks_for_nothing_clear_is_usage(model: Path, run: RUN, args: tuple[str, ...]) -> None:
    model.with_name("x").write_text("")
    args = tuple(str(model.with_name("x")) if arg == "x" else arg for arg in args)
    assert run("set", model, *args)[0] == 2
    assert model.read_bytes() == WHOLE


@pytest.mark.parametrize(("args", "words"), REFUSED, ids=[" ".join(a)[:40] for a, _ in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(model: Path, run: RUN, args: tuple[str, ...], words: list[str]) -> None:
    code, out, err = run(args[0], model, *args[1:])
    assert (code, out, err.count("\n"), err.startswith(f"qfmt: {model}: ")) == (1, "", 1, True)
    assert [word for word in words if word not in err] == []
    assert model.read_bytes() == WHOLE
    assert alone(model)


def test_a_key_that_utf_8_cannot_hold_is_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="string"):
        meta.set_value(model, "a\udcff", "1")
    with pytest.raises(UsageError, match="string"):
        meta.set_value(model, "a", "\udcff", "str")


@pytest.mark.parametrize("content", [b"", b"GGUF", b"lmgg0000", b"\0" * 64, WHOLE[:-21], b"<html>"])
def test_what_is_no_such_file_is_refused_in_one_line(model: Path, run: RUN, content: bytes) -> None:
    model.write_bytes(content)
    code, _, err = run("set", model, "a", "1")
    assert (code, err.count("\n"), err.startswith(f"qfmt: {model}: ")) == (1, 1, True)
    assert model.read_bytes() == content


def test_a_folder_and_an_index_are_several_files(tensors: Path, run: RUN) -> None:
    index = tensors.with_name("model.safetensors.index.json")
    index.write_text('{"weight_map": {"w": "model.safetensors"}}')
    assert run("set", index, "a", "1")[2] == f"qfmt: {index}: found an index, expected one file: name the shard\n"
    assert run("list", tensors.parent)[2] == f"qfmt: {tensors.parent}: a folder, expected a regular file\n"


@pytest.mark.parametrize("source", ["model", "tensors"])
def test_a_qfmt_file_is_read_and_not_edited(request: pytest.FixtureRequest, source: str, run: RUN) -> None:
    path: Path = request.getfixturevalue(source)
    packed = path.with_suffix(".qfmt")
    convert(path, packed)
    before = packed.read_bytes()
    assert run("list", packed, "--json")[1] == run("list", path, "--json")[1]
    refusal = f"qfmt: {packed}: the metadata of a .qfmt file lies under its digests: edit its source and convert that again\n"
    assert run("set", packed, "a", "1") == (1, "", refusal)
    assert run("rm", packed, "a") == (1, "", refusal)
    assert run("cp", path, packed) == (1, "", refusal)
    assert packed.read_bytes() == before


def test_listing_loads_nothing_heavy(model: Path) -> None:
    code = "import sys; from qfmt.__main__ import main; main(['meta', 'list', sys.argv[1]]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=True)
    assert {"gguf", "ml_dtypes", "numba", "rich", "zstandard"} & set(done.stdout.split()) == set()


# --- interruption


class CutOffError(BaseException):
    """Ends a run as a kill does, as far as one process can show it."""


def failing(monkeypatch: pytest.MonkeyPatch, name: str, call: int, error: BaseException, for_good: bool = False) -> None:
    """Make one call of an `os` function fail, or it and every one after it."""
    real, count = getattr(os, name), iter(range(1000))

    def fail(*args: Any) -> Any:
        number = next(count)
        if number == call or (for_good and number > call):
            raise error
        return real(*args)

    monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize(("name", "call"), [*(("pwrite", i) for i in range(4)), *(("fsync", i) for i in range(5))])
def test_a_disk_that_fails_once_in_place_leaves_the_old_file(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    failing(monkeypatch, name, call, OSError(28, "No space left on device"))
    with pytest.raises(FileError) as caught:
        meta.set_value(model, "general.name", "wxyz")
    assert str(caught.value) == f"{model}: cannot be written: no space left on device"
    assert (model.read_bytes(), alone(model)) == (WHOLE, True)


@pytest.mark.parametrize(("name", "call"), [("pwrite", 0), ("pwrite", 1), ("fsync", 0), ("replace", 0)])
def test_a_disk_that_fails_in_a_copy_leaves_the_old_file(
    model: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: int
) -> None:
    failing(monkeypatch, name, call, OSError(28, "No space left on device"))
    with pytest.raises(FileError) as caught:
        meta.set_value(model, "general.name", "long " * 100)
    assert str(caught.value) == f"{model}: cannot be written: no space left on device"
    assert (model.read_bytes(), alone(model)) == (WHOLE, True)


def test_a_disk_that_fails_for_good_is_told_with_the_place_of_the_old_header(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "pwrite", 2, OSError(5, "Input/output error"), for_good=True)
    with pytest.raises(FileError, match=r"input/output error; the header it had is kept in '\.model\.gguf\.header'"):
        meta.set_value(model, "general.name", "wxyz")


@pytest.mark.parametrize("call", [2, 3], ids=["before the header", "before its first bytes"])
def test_a_run_cut_off_in_place_leaves_a_file_that_says_so(
    model: Path, monkeypatch: pytest.MonkeyPatch, run: RUN, call: int
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, "pwrite", call, CutOffError(), for_good=True)
        with pytest.raises(CutOffError):
            meta.set_value(model, "general.name", "wxyz")
    code, _, err = run("list", model)
    assert (code, err.count("\n"), "cat .NAME.header 1<> NAME" in err) == (1, 1, True)
    with pytest.raises(ValueError, match="magic"):
        peer.GGUFReader(model)
    kept = model.with_name(".model.gguf.header")
    with model.open("r+b") as file:
        file.write(kept.read_bytes())
    assert model.read_bytes() == WHOLE


def test_a_safetensors_file_cut_off_in_place_is_none(tensors: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "pwrite", 3, CutOffError(), for_good=True)
    with pytest.raises(CutOffError):
        meta.set_value(tensors, "a", "c")
    with pytest.raises(SafetensorError, match="header too large"):
        safe_open(tensors, "np")
    with pytest.raises(FileError, match="header was cut off"):
        meta.read_entries(tensors)


def test_a_header_kept_from_an_earlier_edit_is_not_written_over(model: Path) -> None:
    model.with_name(".model.gguf.header").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"'\.model\.gguf\.header' lies beside it"):
        meta.set_value(model, "general.name", "wxyz")
    assert model.read_bytes() == WHOLE


def test_a_file_that_changed_meanwhile_is_left_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pread", lambda fd, n_bytes, at: b"something else")
    with pytest.raises(UsageError, match="changed while it was being edited"):
        meta.set_value(model, "general.name", "wxyz")
    assert (model.read_bytes(), alone(model)) == (WHOLE, True)


def test_a_file_that_may_not_be_written_is_not_replaced(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the user may be one who may write anything
    with pytest.raises(QFormatError, match="permission denied"):
        meta.set_value(model, "general.name", "long " * 100)
    assert model.read_bytes() == WHOLE


def test_a_copy_with_a_flipped_bit_gets_no_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def flip(fd: int, data: Any, at: int) -> int:
        raw = bytearray(bytes(data))
        raw[-30] ^= 1
        return real(fd, raw, at)

    monkeypatch.setattr(os, "pwrite", flip)
    with pytest.raises(QFormatError, match=r"were written|not its source's"):
        meta.set_value(model, "general.name", "long " * 100)
    assert (model.read_bytes(), alone(model)) == (WHOLE, True)
