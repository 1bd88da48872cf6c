"""The GGUF writer: against the gguf package's reader and writer, and back to the bytes that were read."""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf as peer
import handmade_gguf as made
import numpy as np
import pytest
from handmade_gguf import ARCH, ARR, BOOL, EIGHT, F32, F64, I8, I16, I32, I64, STR, U8, U16, U32, U64
from qconvert.containers.gguf import GGUFFile, Recipe, open_gguf
from qconvert.containers.gguf_plan import PlannedTensor, plan_from_recipe, plan_gguf
from qconvert.containers.gguf_types import GGML_TYPES
from qconvert.containers.gguf_values import KeyValue, key_value
from qconvert.containers.gguf_write import write_gguf

from qformat.errors import FileError, UsageError

SAVE = Callable[[bytes], Path]

VALUES: list[tuple[str, int, Any, int | None]] = [
    ("t.u8", U8, 255, None),
    ("t.i8", I8, -128, None),
    ("t.u16", U16, 65535, None),
    ("t.i16", I16, -32768, None),
    ("t.u32", U32, 2**32 - 1, None),
    ("t.i32", I32, -(2**31), None),
    ("t.f32", F32, 0.5, None),
    ("t.bool", BOOL, True, None),
    ("t.str", STR, "a\0é", None),
    ("t.u64", U64, 2**64 - 1, None),
    ("t.i64", I64, -(2**63), None),
    ("t.f64", F64, 0.1, None),
    ("a.u8", ARR, [0, 255], U8),
    ("a.i16", ARR, [-1, 1], I16),
    ("a.f32", ARR, [0.5, -0.25], F32),
    ("a.bool", ARR, [True, False], BOOL),
    ("a.str", ARR, ["", "x", "é"], STR),
    ("a.u64", ARR, [2**64 - 1], U64),
    ("a.f64", ARR, [0.1], F64),
]
every_value = pytest.mark.parametrize(("key", "kind", "value", "element"), VALUES, ids=[v[0] for v in VALUES])


def by_hand(key: str, kind: int, value: Any, element: int | None, order: str) -> bytes:
    if element is None:
        return made.kv(key, kind, value, order)
    return made.kv_array(key, element, value, order=order)


def planned(file: GGUFFile) -> list[PlannedTensor]:
    return [(info.name, info.dims, info.type_id, info.n_bytes) for info in file.tensors.values()]


def write_all(path: Path, plan: Any, payloads: Sequence[Any]) -> bytes:
    with write_gguf(path, plan) as writer:
        for index, data in enumerate(payloads):
            writer.write(index, 0, data)
    return path.read_bytes()


@pytest.fixture
def save(tmp_path: Path) -> SAVE:
    def write(content: bytes) -> Path:
        path = tmp_path / "source.gguf"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("order", ["<", ">"], ids=["little", "big"])
@every_value
def test_pair_is_encoded_as_by_hand(key: str, kind: int, value: Any, element: int | None, order: Any) -> None:
    pair = key_value(key, kind, value, element, order)
    assert b"".join(pair.encode(order)) == by_hand(key, kind, value, element, order)


@pytest.mark.parametrize(("old", "new"), ["<>", "><"], ids=["to big", "to little"])
@every_value
def test_pair_goes_into_the_other_byte_order(
    save: SAVE, key: str, kind: int, value: Any, element: int | None, old: str, new: Any
) -> None:
    with open_gguf(save(made.gguf([by_hand(key, kind, value, element, old)], order=old))) as file:
        assert b"".join(file.key_values[key].encode(new)) == by_hand(key, kind, value, element, new)


@every_value
def test_value_is_read_by_the_gguf_package(tmp_path: Path, key: str, kind: int, value: Any, element: int | None) -> None:
    path = tmp_path / "out.gguf"
    pairs = [key_value("general.architecture", STR, "llama"), key_value(key, kind, value, element)]
    write_all(path, plan_gguf(pairs, []), [])
    field = peer.GGUFReader(path).fields[key]
    assert [int(t) for t in field.types] == ([kind] if element is None else [kind, element])
    assert field.contents() == value


@pytest.mark.parametrize("alignment", [32, 64])
def test_file_is_read_by_the_gguf_package(tmp_path: Path, alignment: int) -> None:
    rng = np.random.default_rng(3)
    types = [type_id for type_id in GGML_TYPES if type_id not in (9, 42)]  # the package sizes 9 otherwise, lacks 42
    kinds = [GGML_TYPES[type_id] for type_id in types]
    payloads = [rng.integers(0, 256, 3 * kind.n_bytes, dtype=np.uint8) for kind in kinds]
    tensors = [(kind.name, [kind.n_weights, 3], i, 3 * kind.n_bytes) for i, kind in zip(types, kinds, strict=True)]
    path = tmp_path / "out.gguf"
    pairs = [key_value("general.architecture", STR, "llama")]
    write_all(path, plan_gguf(pairs, tensors, alignment), payloads)
    reader = peer.GGUFReader(path)
    assert reader.alignment == alignment
    assert [(t.name, int(t.tensor_type), t.shape.tolist()) for t in reader.tensors] == [
        (name, type_id, dims) for name, dims, type_id, _ in tensors
    ]
    assert [t.data.tobytes() for t in reader.tensors] == [p.tobytes() for p in payloads]


def test_file_is_the_one_that_the_gguf_package_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((5, 3)).astype("f4"), rng.integers(0, 256, (4, 36), dtype=np.uint8)
    theirs = tmp_path / "theirs.gguf"
    writer = peer.GGUFWriter(theirs, "llama")
    writer.add_array("t.tokens", ["a", "b", "ccc"])
    writer.add_bool("t.flag", True)
    writer.add_tensor("a", a)
    writer.add_tensor("b", b, raw_dtype=peer.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    pairs = [
        key_value("general.architecture", STR, "llama"),
        key_value("t.tokens", ARR, ["a", "b", "ccc"], STR),
        key_value("t.flag", BOOL, True),
    ]
    plan = plan_gguf(pairs, [("a", [3, 5], 0, 60), ("b", [64, 4], 2, 144)])
    assert write_all(tmp_path / "ours.gguf", plan, [a, b]) == theirs.read_bytes()


def odd(content: bytes, at: dict[int, int]) -> bytes:
    """Change bytes at places counted from the end."""
    changed = bytearray(content)
    for back, value in at.items():
        changed[-back] = value
    return bytes(changed)


TWO = made.gguf(
    [ARCH, made.kv("t.f", F64, 0.5)],
    [made.info("a", [3], 0, 0), made.info("b", [2, 3], 0, 32)],
    EIGHT[:12] + bytes(20) + EIGHT[:24] + bytes(8),
)
SIGNALING = made.text("k") + struct.pack("<II", F32, 0x7F800001)
FILES = [
    ("plain", TWO),
    ("version 2", made.gguf([ARCH], [made.info("w", [8], 0, 0)], EIGHT, version=2)),
    ("big-endian", made.gguf([made.kv("k", U16, 1, ">")], [made.info("w", [8], 0, 0, order=">")], EIGHT, order=">")),
    ("vocabulary alone", made.gguf([ARCH, made.kv_array("t", STR, ["a", "b"])])),
    ("vocabulary with padding", made.gguf([ARCH]) + b"\1" + bytes(26)),
    ("bool 2", made.gguf([made.kv("k", BOOL, 2), made.kv_array("l", BOOL, [1, 255])])),
    ("signaling NaN", made.gguf([SIGNALING])),
    ("bad text in an array", made.gguf([made.kv_array("k", STR, [b"\xff"])])),
    ("no padding at the end", TWO[:-8]),
    ("half the padding at the end", TWO[:-3]),
    ("padding at the end not zero", odd(TWO, {1: 7})),
    ("half the padding, not zero", odd(TWO, {5: 7})[:-3]),
    ("padding between not zero", odd(TWO, {33: 7, 52: 9})),
    ("padding after the header not zero", made.gguf([ARCH], [made.info("w", [8], 0, 0)], EIGHT, fill=b"\7")),
    ("empty tensor at the end", made.gguf([], [made.info("w", [3], 0, 0), made.info("e", [0], 0, 32)], EIGHT[:12])),
    ("only an empty tensor, header cut", made.gguf([], [made.info("e", [0], 0, 0)])[:-3]),
    ("unknown type", made.gguf([], [made.info("n", [5], 99, 0), made.info("w", [8], 0, 64)], bytes(64) + EIGHT)),
    ("unknown type at the end", made.gguf([], [made.info("n", [5], 99, 0)], b"tail!")),
    ("alignment 8", made.gguf([made.kv("general.alignment", U32, 8)], [made.info("w", [8], 0, 0)], EIGHT, alignment=8)),
]
every_file = pytest.mark.parametrize("content", [f[1] for f in FILES], ids=[f[0] for f in FILES])


@every_file
def test_file_written_again_from_its_recipe_is_the_same(save: SAVE, tmp_path: Path, content: bytes) -> None:
    with open_gguf(save(content)) as file:
        payloads = [file.data(info) for info in file.tensors.values()]
        recipe = file.recipe()
        assert write_all(tmp_path / "out.gguf", plan_from_recipe(recipe), payloads) == content
    assert len(recipe.blob) <= len(content)


PLAIN = ("plain", "version 2", "vocabulary alone", "bool 2", "signaling NaN", "bad text in an array", "alignment 8")
MADE_ANEW = [f for f in FILES if f[0] in (*PLAIN, "unknown type", "unknown type at the end")]


@pytest.mark.parametrize("content", [f[1] for f in MADE_ANEW], ids=[f[0] for f in MADE_ANEW])
def test_canonical_file_planned_anew_is_the_same(save: SAVE, tmp_path: Path, content: bytes) -> None:
    with open_gguf(save(content)) as file:
        plan = plan_gguf(file.key_values.values(), planned(file), version=file.version)
        payloads = [file.data(info) for info in file.tensors.values()]
        assert write_all(tmp_path / "out.gguf", plan, payloads) == content


def test_data_comes_in_any_order_and_in_pieces(save: SAVE, tmp_path: Path) -> None:
    with open_gguf(save(TWO)) as file:
        plan = plan_from_recipe(file.recipe())
    path = tmp_path / "out.gguf"
    with write_gguf(path, plan) as writer:
        assert [info.byte_offset for info in writer.tensors.values()] == [len(TWO) - 64, len(TWO) - 32]
        writer.write(1, 10, memoryview(EIGHT)[10:24])
        writer.write(0, 0, np.frombuffer(EIGHT[:12], "<f4"))
        writer.write(1, 0, bytearray(EIGHT[:10]))
        writer.write(1, 24, np.empty((0, 2), "f4"))
    assert path.read_bytes() == TWO


def test_alignment_other_than_32_adds_its_key(tmp_path: Path) -> None:
    write_all(tmp_path / "out.gguf", plan_gguf([], [("w", [8], 0, 32)], 64), [EIGHT])
    with open_gguf(tmp_path / "out.gguf") as file:
        pair = file.key_values["general.alignment"]
        assert (pair.value_type, pair.value, file.alignment) == (U32, 64, 64)


def test_file_mode_follows_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_all(tmp_path / "out.gguf", plan_gguf([], []), [])
    finally:
        os.umask(old)
    assert (tmp_path / "out.gguf").stat().st_mode & 0o777 == 0o640


def test_descriptor_is_written_and_closed(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "out.gguf", os.O_CREAT | os.O_WRONLY)
    with write_gguf(fd, plan_gguf([], [("w", [8], 0, 32)])) as writer:
        writer.write(0, 0, EIGHT)
    assert (tmp_path / "out.gguf").read_bytes()[-32:] == EIGHT
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="cannot be created: file exists"):
        write_gguf(path, plan_gguf([], []))
    assert path.read_bytes() == b"precious"


def test_tensor_left_unwritten_is_told_at_the_end(tmp_path: Path) -> None:
    writer = write_gguf(tmp_path / "out.gguf", plan_gguf([], [("w", [8], 0, 32)]))
    writer.write(0, 0, EIGHT[:12])
    with pytest.raises(UsageError, match="12 bytes of tensors were written, expected 32"):
        writer.close()


@pytest.mark.parametrize(
    ("byte_offset", "data", "words"),
    [
        (-1, EIGHT, "bytes -1 to 31 were given, expected 0 to 32"),
        (1, EIGHT, "bytes 1 to 33 were given"),
        (0, np.zeros((4, 8), "f4")[:, 0], "not contiguous"),
        (0, 3, "cannot be read as bytes"),
    ],
    ids=["before", "after", "strided", "no bytes"],
)
def test_data_that_does_not_fit_is_refused(tmp_path: Path, byte_offset: int, data: Any, words: str) -> None:
    with (
        pytest.raises(UsageError, match=f"tensor 'w'.*{words}"),
        write_gguf(tmp_path / "out.gguf", plan_gguf([], [("w", [8], 0, 32)])) as writer,
    ):
        writer.write(0, byte_offset, data)


ARCHITECTURE = key_value("general.architecture", STR, "llama")
W = ("w", [8], 0, 32)
UNPLANNABLE: list[tuple[str, list[KeyValue], list[PlannedTensor], dict[str, Any], str]] = [
    ("one name twice", [], [W, W], {}, "tensor 'w' field 'name'.* the name stands twice"),
    ("one key twice", [ARCHITECTURE, ARCHITECTURE], [], {}, "'general.architecture'.* the key stands twice"),
    ("long name", [], [("n" * 64, [8], 0, 32)], {}, "a name of 64 bytes, expected at most 63"),
    ("surrogate", [], [("\ud800", [8], 0, 32)], {}, "unpaired surrogate"),
    ("five dimensions", [], [("w", [8, 1, 1, 1, 1], 0, 32)], {}, "5 dimensions, expected at most 4"),
    ("negative dimension", [], [("w", [-8], 0, 32)], {}, "w: 1, -8, 0, 0 do not fit in a header"),
    ("row of 33", [], [("w", [33], 2, 18)], {}, r"33 weights per row, expected a multiple of 32 \(q4_0 block\)"),
    ("removed type", [], [("w", [8], 4, 32)], {}, "tensor type 4 was removed"),
    ("wrong length", [], [("w", [8], 0, 31)], {}, r"tensor 'w': 31 bytes were planned, expected 32 \(f32\)"),
    ("opaque in the middle", [], [("n", [8], 99, 30), W], {}, r"30 bytes were planned, expected 32 \(type_99\)"),
    ("version 1", [], [], {"version": 1}, "version 1, expected 2 or 3"),
    ("alignment 3", [], [], {"alignment": 3}, "alignment 3, expected a power of two"),
    ("alignment 0", [], [], {"alignment": 0}, "alignment 0, expected a power of two"),
    ("key says 64", [key_value("general.alignment", U32, 64)], [], {"alignment": 32}, "alignment 32, expected 64"),
    ("key is u64", [key_value("general.alignment", U64, 64)], [], {}, "stored as uint64, expected uint32"),
]


@pytest.mark.parametrize(
    ("pairs", "tensors", "options", "words"), [u[1:] for u in UNPLANNABLE], ids=[u[0] for u in UNPLANNABLE]
)
def test_file_that_would_not_be_opened_is_not_planned(
    pairs: list[KeyValue], tensors: list[PlannedTensor], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        plan_gguf(pairs, tensors, **options)


@pytest.mark.parametrize(
    ("kind", "value", "element", "words"),
    [
        (U8, 256, None, "found '256', expected a value that uint8 holds"),
        (U32, "1", None, "expected a value that uint32 holds"),
        (F32, 1e40, None, "expected a value that float32 holds"),
        (BOOL, 2, None, "expected a value that bool holds"),
        (STR, "\ud800", None, "expected a value that string holds"),
        (13, 1, None, "value type 13, expected 0 to 12"),
        (ARR, [1], ARR, "element type 9, expected 0 to 12 except 9"),
        (ARR, [1], None, "element type None"),
        (ARR, "ab", STR, "found str, expected a sequence"),
        (ARR, ["a", 1], STR, "expected a value that string holds"),
        (STR, ["a"], None, "expected a value that string holds"),
    ],
)
def test_value_that_its_type_does_not_hold_is_refused(kind: int, value: Any, element: int | None, words: str) -> None:
    with pytest.raises(UsageError, match=f"field 'k': .*{words}"):
        key_value("k", kind, value, element)


def recipe_of(**changes: Any) -> Recipe:
    """Make the recipe of a file with a header of 160 bytes and 20 odd bytes of padding at 172, then change facts."""
    header = made.gguf([ARCH], [made.info("a", [3], 0, 0), made.info("b", [8], 0, 32)])
    facts = {
        "n_bytes": len(header) + 64,
        "header_n_bytes": len(header),
        "paddings": [[len(header) + 12, 20]],
    }
    return Recipe({**facts, **changes}, header + b"\1" * 20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_bytes": None}, "field 'n_bytes': found None, expected a number of bytes"),
        ({"n_bytes": True}, "field 'n_bytes'"),
        ({"n_bytes": 100}, "past the end of the file"),
        ({"n_bytes": 1 << 40}, "after the end of the last tensor"),
        ({"header_n_bytes": 40}, "left in the file"),
        ({"header_n_bytes": 161}, "161 bytes of header, expected 160"),
        ({"paddings": 3}, "field 'paddings': found int, expected a list"),
        ({"paddings": [3]}, r"expected \[byte offset, n_bytes\]"),
        ({"paddings": [[[], 1]]}, r"expected \[byte offset, n_bytes\]"),
        ({"paddings": [[160, 12]]}, "at 0xa0: 12 bytes, expected a gap"),
        ({"paddings": [[172, 1 << 62]]}, "expected a gap between tensors"),
        ({"paddings": [[172, 20], [172, 20]]}, "each once and in order"),
        ({"paddings": []}, "header and paddings take 160 bytes, the recipe holds 180"),
    ],
)
def test_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(FileError, match=words):
        plan_from_recipe(recipe_of(**changes))
