"""The safetensors container against bytes made by hand and against the reference implementation."""

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from qconvert.containers.safetensors import open_safetensors
from qconvert.containers.safetensors_header import DTYPES, TensorInfo
from qconvert.containers.safetensors_write import plan_header, write_safetensors

from qformat.errors import FileError, UsageError

PAIR = struct.pack("<2f", 1.0, -2.0)
ENTRY = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
GOOD = f'{{"w":{ENTRY}}}'
SAVE = Callable[[bytes], Path]

# name in the file, our name, bits: written out from the format's README, in the order of its dtype enumeration
ALL_DTYPES = [
    ("BOOL", "bool", 8),
    ("F4", "float4_e2m1fn", 4),
    ("F6_E2M3", "float6_e2m3fn", 6),
    ("F6_E3M2", "float6_e3m2fn", 6),
    ("U8", "uint8", 8),
    ("I8", "int8", 8),
    ("F8_E5M2", "float8_e5m2", 8),
    ("F8_E4M3", "float8_e4m3fn", 8),
    ("F8_E8M0", "float8_e8m0fnu", 8),
    ("F8_E4M3FNUZ", "float8_e4m3fnuz", 8),
    ("F8_E5M2FNUZ", "float8_e5m2fnuz", 8),
    ("I16", "int16", 16),
    ("U16", "uint16", 16),
    ("F16", "float16", 16),
    ("BF16", "bfloat16", 16),
    ("I32", "int32", 32),
    ("U32", "uint32", 32),
    ("F32", "float32", 32),
    ("C64", "complex64", 64),
    ("F64", "float64", 64),
    ("I64", "int64", 64),
    ("U64", "uint64", 64),
]
every_dtype = pytest.mark.parametrize(("code", "dtype", "bits"), ALL_DTYPES, ids=[d[0] for d in ALL_DTYPES])


def st_bytes(header: str | bytes, data: bytes = PAIR, n_header: int | None = None) -> bytes:
    """Make a file by hand; `n_header` overrides the true length."""
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text) if n_header is None else n_header) + text + data


def entry(dtype: Any, shape: Any, begin: Any, end: Any) -> str:
    return json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}})


@pytest.fixture
def save(tmp_path: Path) -> SAVE:
    def write(data: bytes) -> Path:
        path = tmp_path / "odd.safetensors"
        path.write_bytes(data)
        return path

    return write


def two(a: list[int], b: list[int], n_bytes: int) -> bytes:
    """Make a file of two uint8 tensors at the ranges given."""
    entries = {n: {"dtype": "U8", "shape": [r[1] - r[0]], "data_offsets": r} for n, r in (("a", a), ("b", b))}
    return st_bytes(json.dumps(entries), bytes(n_bytes))


REFUSED: list[tuple[str, bytes, str]] = [
    ("empty file", b"", "empty"),
    ("seven bytes", b"\x10" + bytes(6), "ends after 7 bytes, expected 8"),
    ("header of no bytes", bytes(8), "zeros"),
    ("header of no bytes before data", bytes(8) + b"\1" * 80, "begins with nothing, expected '{'"),
    ("header past the end", st_bytes("{}", b"", 3), "3 bytes long by its length field, but the file holds 2 after it"),
    ("length 2**64 - 1", st_bytes(GOOD, PAIR, 2**64 - 1), "18446744073709551615 bytes long"),
    ("length 2**64 - 8", st_bytes(GOOD, PAIR, 2**64 - 8), "18446744073709551608 bytes long"),
    ("length 2**63", st_bytes(GOOD, PAIR, 2**63), "expected at most 100000000"),
    ("length over the cap", st_bytes(GOOD, PAIR, 100_000_001), "expected at most 100000000"),
    ("length cuts the text", st_bytes(GOOD, PAIR, len(GOOD) - 5), "not JSON"),
    ("length eats data", st_bytes(GOOD, PAIR, len(GOOD) + 1), "not JSON"),
    ("trailing byte", st_bytes(GOOD, PAIR + b"\0"), "span 8 bytes of the 9"),
    ("data without tensors", st_bytes("{}", bytes(16)), "span 0 bytes of the 16"),
    ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n", "git-lfs pointer"),
    ("web page", b"<!DOCTYPE html>\n<html><title>404</title></html>\n", "HTML page"),
    ("archive", b"PK\x03\x04" + bytes(90), "ZIP archive"),
    ("gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "found a GGUF file, expected a safetensors file"),
    ("list", st_bytes("[1, 2]"), "begins with the byte 0x5b, expected '{'"),
    ("leading space", st_bytes(" " + GOOD), "begins with the byte 0x20"),
    ("byte order mark", st_bytes("\ufeff" + GOOD), "begins with the byte 0xef"),
    ("UTF-16", st_bytes(GOOD.encode("utf-16-le")), "not JSON"),
    ("text after", st_bytes(GOOD + "{}"), "extra data"),
    ("NUL padding", st_bytes(GOOD + "\0" * 6), "extra data"),
    ("not UTF-8", st_bytes(GOOD.encode().replace(b"w", b"\xff")), "the byte 0xff, expected UTF-8"),
    ("overlong UTF-8", st_bytes(GOOD.encode().replace(b"w", b"\xc0\xaf")), "the byte 0xc0, expected UTF-8"),
    ("encoded surrogate", st_bytes(GOOD.encode().replace(b"w", b"\xed\xa0\x80")), "expected UTF-8"),
    ("lone surrogate", st_bytes(GOOD.replace("w", "\\ud800")), "unpaired surrogate"),
    ("comment", st_bytes(GOOD[:-1] + "/* x */}"), "not JSON"),
    ("single quotes", st_bytes(GOOD.replace('"', "'")), "not JSON"),
    ("trailing comma", st_bytes(GOOD[:-1] + ",}"), "not JSON"),
    ("comma after metadata alone", st_bytes('{"__metadata__":{},}', b""), "not JSON"),
    ("no comma after metadata", st_bytes('{"__metadata__":{}' + GOOD[1:]), "not JSON"),
    ("NaN", st_bytes(GOOD.replace("[2]", "[NaN]")), "holds NaN"),
    ("infinity", st_bytes(GOOD.replace("[2]", "[-Infinity]")), "holds -Infinity"),
    ("raw newline in a name", st_bytes(GOOD.replace("w", "w\n")), "not JSON: invalid control character"),
    ("deep lists", st_bytes('{"w":' + "[" * 100_000 + "]" * 100_000 + "}"), "nested deeper than 64"),
    ("deep objects", st_bytes('{"w":' * 50_000), "nested deeper than 64"),
    ("deep behind strings", st_bytes('{"w":[' + '"]",[' * 50_000 + "]" * 50_001 + "}"), "nested deeper than 64"),
    ("deep behind escapes", st_bytes('{"w":[' + r'"\\\"]",[' * 50_000 + "]" * 50_001 + "}"), "nested deeper than 64"),
    ("depth of 65", st_bytes(f'{{"w":{"[" * 64}{"]" * 64}}}'), "nested deeper than 64"),
    ("huge integer", st_bytes(GOOD.replace("[2]", f"[{'9' * 100_000}]")), "more than 1000 digits"),
    ("name twice", st_bytes(f'{{"w":{ENTRY},"w":{ENTRY}}}'), "holds 'w' twice"),
    ("name twice, once escaped", st_bytes(f'{{"w":{ENTRY},"\\u0077":{ENTRY}}}'), "holds 'w' twice"),
    ("dtype twice", st_bytes(GOOD.replace('"dtype"', '"dtype":"U8","dtype"')), "holds 'dtype' twice"),
    ("metadata twice", st_bytes(f'{{"__metadata__":{{}},"__metadata__":{{}},"w":{ENTRY}}}'), "'__metadata__' twice"),
    ("metadata key twice", st_bytes('{"__metadata__":{"a":"1","a":"2"}}', b""), "holds 'a' twice"),
    ("metadata of a number", st_bytes('{"__metadata__":{"a":1}}', b""), "'a' is a number, expected a string"),
    ("metadata of an object", st_bytes('{"__metadata__":{"a":{}}}', b""), "'a' is an object, expected a string"),
    ("metadata null", st_bytes('{"__metadata__":null}', b""), "the metadata is null"),
    ("metadata string", st_bytes('{"__metadata__":"a"}', b""), "the metadata is a string"),
    ("entry list", st_bytes('{"w":["F32",[2],[0,8]]}'), "entry is a list, expected an object"),
    ("entry null", st_bytes('{"w":null}'), "entry is null"),
    ("no dtype", st_bytes('{"w":{"shape":[2],"data_offsets":[0,8]}}'), "dtype is missing"),
    ("no shape", st_bytes('{"w":{"dtype":"F32","data_offsets":[0,8]}}'), "shape is missing"),
    ("no offsets", st_bytes('{"w":{"dtype":"F32","shape":[2]}}'), "data_offsets is missing"),
    ("unknown dtype", st_bytes(entry("Q4", [2], 0, 8)), "unknown dtype 'Q4'"),
    ("dtype in lower case", st_bytes(entry("f32", [2], 0, 8)), "unknown dtype 'f32'"),
    ("dtype a number", st_bytes(entry(32, [2], 0, 8)), "dtype is a number"),
    ("shape a number", st_bytes(entry("F32", 2, 0, 8)), "shape is a number, expected a list"),
    ("dimension -2", st_bytes(entry("F32", [-2], 0, 8)), "shape holds -2"),
    ("dimensions -1 and -2", st_bytes(entry("F32", [-1, -2], 0, 8)), "shape holds -1"),
    ("dimension -0", st_bytes(entry("F32", [0], 0, 0).replace("[0]", "[-0]"), b""), "shape holds -0.0"),
    ("dimension 2.0", st_bytes(entry("F32", [2.0], 0, 8)), "shape holds 2.0"),
    ("dimension a string", st_bytes(entry("F32", ["2"], 0, 8)), "shape holds a string"),
    ("dimension true", st_bytes(entry("F32", [2, True], 0, 8)), "shape holds a truth value"),
    ("dimension 2**64", st_bytes(entry("F32", [2**64], 0, 8)), "exceeds 2**63 bytes"),
    ("product 2**64", st_bytes(entry("U8", [2**32, 2**32], 0, 0), b""), "exceeds 2**63 bytes"),
    ("product 2**64 + 4", st_bytes(entry("U8", [2**62 + 1, 4], 0, 4), bytes(4)), "exceeds 2**63 bytes"),
    ("empty beyond any array", st_bytes(entry("F32", [0, 2**40, 2**40], 0, 0), b""), "exceeds 2**63 bytes"),
    ("a terabyte", st_bytes(entry("F32", [2**38], 0, 8)), "span 8 bytes, expected 1099511627776 bytes"),
    ("rank 65", st_bytes(entry("F32", [2] + [1] * 64, 0, 8)), "65 dimensions, expected at most 64"),
    ("offsets reversed", st_bytes(entry("F32", [2], 8, 0)), "end at 0 before they begin at 8"),
    ("offset -8", st_bytes(entry("F32", [2], -8, 0)), "data_offsets holds -8"),
    ("offset 0.0", st_bytes(entry("F32", [2], 0.0, 8.0)), "data_offsets holds 0.0"),
    ("one offset", st_bytes(GOOD.replace("[0,8]", "[8]")), "holds 1 numbers, expected 2"),
    ("three offsets", st_bytes(GOOD.replace("[0,8]", "[0,8,8]")), "holds 3 numbers, expected 2"),
    ("past the end", st_bytes(entry("F32", [4], 0, 16)), "truncated: the tensors span 16 bytes, it holds 8 after"),
    ("offset 2**64 - 8", st_bytes(entry("F32", [2], 2**64 - 8, 2**64)), "begins at 18446744073709551608"),
    ("too few bytes", st_bytes(entry("F32", [3], 0, 8)), "span 8 bytes, expected 12 bytes for F32 [3]"),
    ("too many bytes", st_bytes(entry("F32", [1], 0, 8)), "span 8 bytes, expected 4 bytes for F32 [1]"),
    ("three 4-bit elements", st_bytes(entry("F4", [3], 0, 2), bytes(2)), "12 bits, expected a whole number of bytes"),
    ("three 6-bit elements", st_bytes(entry("F6_E2M3", [3], 0, 3), bytes(3)), "18 bits, expected a whole number"),
    ("overlap", two([0, 8], [4, 12], 12), "begins at 4 and overlaps 4 bytes before it, expected 8"),
    ("alias", two([0, 8], [0, 8], 8), "begins at 0 and overlaps 8 bytes before it"),
    ("hole", two([0, 4], [8, 12], 12), "begins at 8 and leaves 4 bytes unused before it, expected 4"),
    ("hole at the start", st_bytes(entry("U8", [4], 4, 8)), "leaves 4 bytes unused before it, expected 0"),
    ("empty tensor outside", two([100, 100], [0, 4], 4), "begins at 100"),
    ("empty tensor inside another", two([2, 2], [0, 4], 4), "begins at 2 and overlaps"),
]


@pytest.mark.parametrize(("data", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_broken_file_is_refused_in_one_line_that_says_why(save: SAVE, data: bytes, words: str) -> None:
    path = save(data)

    with pytest.raises(FileError) as caught:
        open_safetensors(path)

    assert words in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", range(len(st_bytes(GOOD))))
def test_a_file_cut_at_any_byte_is_refused(save: SAVE, n: int) -> None:
    path = save(st_bytes(GOOD)[:n])

    with pytest.raises(FileError, match=r"empty|ends after|but the file holds \d+ after|truncated"):
        open_safetensors(path)


def test_an_error_carries_its_facts(save: SAVE) -> None:
    path = save(st_bytes(entry("F32", [3], 0, 8)))

    with pytest.raises(FileError) as caught:
        open_safetensors(path)

    error = caught.value
    facts = (error.path, error.tensor, error.field, error.expected, error.found)
    assert facts == (str(path), "w", "data_offsets", 12, 8)


def test_an_error_in_the_text_tells_its_offset_in_the_file(save: SAVE) -> None:
    with pytest.raises(FileError) as caught:
        open_safetensors(save(st_bytes('{"\u6743":x}', b"")))

    assert caught.value.offset == 8 + len('{"\u6743":'.encode())


ODD: list[tuple[str, bytes, dict[str, tuple[int, ...]]]] = [
    ("no tensors", st_bytes("{}", b""), {}),
    ("metadata alone", st_bytes('{"__metadata__":{"k":"v"}}   ', b""), {}),
    ("no padding", st_bytes(GOOD), {"w": (2,)}),
    ("much padding", st_bytes(GOOD + " " * 65536), {"w": (2,)}),
    ("newline at the end", st_bytes(GOOD + "\n"), {"w": (2,)}),
    ("spaces inside", st_bytes(json.dumps(json.loads(GOOD), indent=2)), {"w": (2,)}),
    ("fields in another order", st_bytes('{"w":{"data_offsets":[0,8],"shape":[2],"dtype":"F32"}}'), {"w": (2,)}),
    ("a field of the future", st_bytes(GOOD.replace('{"d', '{"x":[[[{"y":1e999}]]],"d')), {"w": (2,)}),
    ("scalar", st_bytes(entry("F64", [], 0, 8)), {"w": ()}),
    ("empty tensor", st_bytes(entry("F32", [5, 0, 7], 0, 0), b""), {"w": (5, 0, 7)}),
    ("two empty tensors at one place", two([0, 0], [0, 0], 0), {"a": (0,), "b": (0,)}),
    ("data in another order than the header", two([5, 8], [0, 5], 8), {"a": (3,), "b": (5,)}),
    ("rank 64", st_bytes(entry("F32", [2] + [1] * 63, 0, 8)), {"w": (2,) + (1,) * 63}),
    ("empty name", st_bytes(f'{{"":{ENTRY}}}'), {"": (2,)}),
    ("name like a path", st_bytes(f'{{"../../etc/passwd":{ENTRY}}}'), {"../../etc/passwd": (2,)}),
    ("escaped and foreign name", st_bytes(f'{{"\u6743\\u0062\\n\U0001f9e0":{ENTRY}}}'), {"\u6743b\n\U0001f9e0": (2,)}),
    ("surrogate pair", st_bytes(f'{{"\\ud83e\\udde0":{ENTRY}}}'), {"\U0001f9e0": (2,)}),
    ("brackets and quotes in a name", st_bytes(f'{{"[{{\\"]":{ENTRY}}}'), {'[{"]': (2,)}),
    ("long digits in a name", st_bytes(f'{{"{"7" * 5000}":{ENTRY}}}'), {"7" * 5000: (2,)}),
    ("metadata last", st_bytes(f'{{"w":{ENTRY},"__metadata__":{{"a":"}}"}}}}'), {"w": (2,)}),
]


@pytest.mark.parametrize(("data", "shapes"), [o[1:] for o in ODD], ids=[o[0] for o in ODD])
def test_an_odd_but_legal_file_opens(save: SAVE, data: bytes, shapes: dict[str, tuple[int, ...]]) -> None:
    with open_safetensors(save(data)) as file:
        assert {info.name: info.shape for info in file.tensors.values()} == shapes
        assert list(file.tensors) == list(shapes)


@pytest.mark.parametrize("data", [o[1] for o in ODD], ids=[o[0] for o in ODD])
def test_an_odd_but_legal_file_comes_back_byte_for_byte(save: SAVE, data: bytes, tmp_path: Path) -> None:
    copy = tmp_path / "copy"

    with open_safetensors(save(data)) as file:
        recipe = file.recipe()
        specs = [(info.name, info.dtype, info.shape) for info in file.tensors.values()]
        planned = (
            write_safetensors(copy, specs, file.metadata or None) if recipe is None else write_safetensors(copy, header=recipe)
        )
        with planned as writer:
            for info in file.tensors.values():
                writer.write(info.name, 0, file.data(info))

    assert copy.read_bytes() == data


@settings(max_examples=400, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(8, 200), new=st.binary(min_size=0, max_size=3), n_cut=st.integers(0, 3), plain=st.booleans())
def test_what_is_accepted_is_what_the_reference_reads(save: SAVE, at: int, new: bytes, n_cut: int, plain: bool) -> None:
    members = {
        "__metadata__": {"k": "{\u6743}"},
        "a": {"dtype": "F32", "shape": [2, 1], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [10], "data_offsets": [8, 18]},
    }
    text = json.dumps(members, ensure_ascii=False, separators=(",", ":") if plain else None).encode()
    at = min(at - 8, len(text))
    data = st_bytes(text[:at] + new + text[at + n_cut :], bytes(range(18)))
    try:
        with open_safetensors(save(data)) as file:
            ours = {n: (list(i.shape), i.dtype, bytes(file.data(i))) for n, i in file.tensors.items()}
    except FileError:
        return

    names = {code: dtype for code, dtype, _ in ALL_DTYPES}
    theirs = {n: (t["shape"], names[t["dtype"]], bytes(t["data"])) for n, t in safetensors.deserialize(data)}
    assert ours == theirs


@every_dtype
def test_every_dtype_is_handed_out_as_stored(save: SAVE, code: str, dtype: str, bits: int) -> None:
    payload = bytes(range(bits // 2))

    with open_safetensors(save(st_bytes(entry(code, [2, 2], 0, bits // 2), payload))) as file:
        info = file.tensors["w"]
        array = file.array(info)

    assert (info.dtype, info.shape, info.n_bytes) == (dtype, (2, 2), bits // 2)
    assert array.tobytes() == payload
    assert array.dtype.name == (dtype if bits >= 8 else "uint8")
    assert array.shape == ((2, 2) if bits >= 8 else (bits // 2,))
    assert not array.flags.writeable


def test_the_dtypes_are_those_of_the_format_in_its_order() -> None:
    assert list(DTYPES) == ALL_DTYPES


def test_an_aligned_tensor_is_a_view_of_the_map(save: SAVE) -> None:
    with open_safetensors(save(st_bytes(GOOD + " " * (-len(GOOD) % 8)))) as file:
        info = file.tensors["w"]
        assert np.shares_memory(file.array(info), np.frombuffer(file.data(info), np.uint8))


def test_an_unaligned_tensor_is_an_aligned_copy(save: SAVE) -> None:
    data = st_bytes(GOOD + " " * (-len(GOOD) % 8 + 1))

    with open_safetensors(save(data)) as file:
        array = file.array(file.tensors["w"])

    assert array.tolist() == [1.0, -2.0]
    assert array.flags.aligned
    assert not array.flags.writeable


def test_views_outlive_the_file(save: SAVE) -> None:
    with open_safetensors(save(st_bytes(GOOD + " " * (-len(GOOD) % 8)))) as file:
        array = file.array(file.tensors["w"])

    assert array.tolist() == [1.0, -2.0]


def test_a_hundred_thousand_tensors_open_in_a_fraction_of_a_second(save: SAVE) -> None:
    entries = {
        f"model.layers.{i // 1000}.mlp.experts.{i % 1000}.down_proj.weight": {
            "dtype": "U8",
            "shape": [1, 1],
            "data_offsets": [i, i + 1],
        }
        for i in range(100_000)
    }
    path = save(st_bytes(json.dumps(entries, separators=(",", ":")), bytes(100_000)))

    begun = time.process_time()
    with open_safetensors(path) as file:
        n = len(file.tensors)
    spent = time.process_time() - begun

    assert n == 100_000
    assert spent < 1.5  # a third of a second where nothing else runs


def test_hostile_headers_cost_no_more_than_their_length(save: SAVE) -> None:
    aliases = {f"t{i}": {"dtype": "U8", "shape": [4096], "data_offsets": [0, 4096]} for i in range(20_000)}
    path = save(st_bytes(json.dumps(aliases), bytes(4096)))

    begun = time.process_time()
    with pytest.raises(FileError, match=r"tensor 't1'.*overlaps 4096 bytes"):
        open_safetensors(path)

    assert time.process_time() - begun < 1.5


def test_reading_a_header_loads_neither_numpy_nor_ml_dtypes(save: SAVE) -> None:
    code = (
        "import sys; from qconvert.containers.safetensors import open_safetensors as o; o(sys.argv[1]).close(); "
        "print({'numpy', 'ml_dtypes', 'safetensors', 'zstandard', 'numba', 'gguf'} & set(sys.modules))"
    )

    seen = subprocess.run([sys.executable, "-c", code, save(st_bytes(GOOD))], capture_output=True, text=True, check=True)

    assert seen.stdout.strip() == "set()"


def write_all(path: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str] | None = None) -> None:
    specs = [(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    with write_safetensors(path, specs, metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, array.tobytes())


def mixed_arrays() -> dict[str, NDArray[Any]]:
    """Make arrays of every dtype that the reference's NumPy writer takes, values seeded with 7."""
    rng = np.random.default_rng(7)
    plain = ["bool", "float16", "float32", "float64", "complex64"]
    plain += [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    arrays = {f"z.{d}": rng.integers(0, 2, (3, 5)).astype(d) for d in plain}
    for d in ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"):
        arrays[f"a.{d}"] = rng.integers(0, 256, (7, np.dtype(getattr(ml_dtypes, d)).itemsize), np.uint8).view(d)[:, 0]
    arrays["scalar"] = np.array(3.5, np.float32)
    arrays["empty"] = np.zeros((4, 0, 2), np.int16)
    arrays['na"me\n\u6743\x01\x7f'] = np.arange(3, dtype=np.uint8)
    return arrays


METADATA: list[dict[str, str] | None] = [None, {}, {"format": "pt"}, {'k"\n\u6743\x01': "\u2028\\/"}]


@pytest.mark.parametrize("metadata", METADATA, ids=["none", "empty", "format", "odd"])
def test_a_written_file_equals_the_reference_writers(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    arrays = mixed_arrays()

    write_all(tmp_path / "ours", arrays, metadata)

    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save(arrays, metadata)


def test_a_file_of_no_tensors_equals_the_reference_writers(tmp_path: Path) -> None:
    write_all(tmp_path / "ours", {})

    assert (tmp_path / "ours").read_bytes() == safetensors.numpy.save({})


def test_the_reference_writers_file_needs_no_header_kept(save: SAVE) -> None:
    with open_safetensors(save(safetensors.numpy.save(mixed_arrays(), {"format": "pt"}))) as file:
        assert file.recipe() is None


@pytest.mark.parametrize("name", mixed_arrays())
def test_a_reference_file_gives_the_arrays_it_was_made_of(save: SAVE, name: str) -> None:
    arrays = mixed_arrays()

    with open_safetensors(save(safetensors.numpy.save(arrays))) as file:
        array = file.array(file.tensors[name])

    assert (array.dtype, array.shape) == (arrays[name].dtype, arrays[name].shape)
    assert array.tobytes() == arrays[name].tobytes()


@every_dtype
def test_the_reference_reads_every_dtype_we_write(tmp_path: Path, code: str, dtype: str, bits: int) -> None:
    path, payload = tmp_path / "w.safetensors", bytes(range(bits // 2))

    with write_safetensors(path, [("w", dtype, (4,)), ("v", dtype, (0, 3))], {"format": "pt"}) as writer:
        writer.write("w", 0, payload)

    stored = dict(safetensors.deserialize(path.read_bytes()))
    assert {n: (t["dtype"], t["shape"], bytes(t["data"])) for n, t in stored.items()} == {
        "w": (code, [4], payload),
        "v": (code, [0, 3], b""),
    }
    with safetensors.safe_open(path, "np") as opened:
        assert opened.metadata() == {"format": "pt"}
        assert opened.get_slice("w").get_dtype() == code
        assert opened.get_slice("w").get_shape() == [4]


def test_pieces_may_be_written_in_any_order(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.int16), "b": np.arange(4, dtype=np.float64)}

    with write_safetensors(tmp_path / "w", [("a", "int16", (6,)), ("b", "float64", (4,))]) as writer:
        writer.write("a", 8, arrays["a"][4:])
        writer.write("b", 0, arrays["b"])
        writer.write("a", 0, memoryview(arrays["a"][:4]))

    assert (tmp_path / "w").read_bytes() == safetensors.numpy.save(arrays)


def test_places_are_known_before_anything_is_written(tmp_path: Path) -> None:
    writer = write_safetensors(tmp_path / "w", [("b", "uint8", (3,)), ("a", "float32", (2,))])
    n_header = len(plan_header([("b", "uint8", (3,)), ("a", "float32", (2,))]))

    assert list(writer.tensors.values()) == [
        TensorInfo("a", "float32", (2,), n_header, 8),
        TensorInfo("b", "uint8", (3,), n_header + 8, 3),
    ]
    assert writer.n_bytes == n_header + 11
    with pytest.raises(UsageError, match="0 bytes of tensors were written, expected 11"):
        writer.close()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_files_mode_follows_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_all(tmp_path / "w", {"a": np.zeros(1, np.uint8)})
    finally:
        os.umask(before)

    assert (tmp_path / "w").stat().st_mode & 0o777 == mode


UNWRITABLE: list[tuple[str, list[tuple[str, str, Any]], dict[Any, Any] | None, str]] = [
    ("unknown dtype", [("w", "int4", (2,))], None, "cannot hold dtype 'int4': expected one of bool,"),
    ("name twice", [("w", "int8", (2,)), ("w", "int8", (2,))], None, "given twice"),
    ("name of the metadata", [("__metadata__", "int8", (2,))], None, "the metadata's name"),
    ("half a byte", [("w", "float4_e2m1fn", (3,))], None, "12 bits, expected a whole number of bytes"),
    ("negative dimension", [("w", "int8", (-1,))], None, "negative dimension"),
    ("rank 65", [("w", "int8", (1,) * 65)], None, "65 dimensions, expected at most 64"),
    ("too large", [("w", "int8", (2**62, 2))], None, "exceeds 2**63 bytes"),
    ("surrogate", [("\ud800", "int8", (2,))], None, "unpaired surrogate"),
    ("metadata of numbers", [], {"a": 1}, "map strings to strings"),
]


@pytest.mark.parametrize(("tensors", "metadata", "words"), [u[1:] for u in UNWRITABLE], ids=[u[0] for u in UNWRITABLE])
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, tensors: Any, metadata: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_safetensors(tmp_path / "w", tensors, metadata)

    assert words in str(caught.value)
    assert not (tmp_path / "w").exists()


MISUSED: list[tuple[str, str, int, Any, str]] = [
    ("unknown tensor", "x", 0, b"", "no such tensor"),
    ("beyond the end", "w", 4, bytes(8), "bytes 4 to 12 were given, expected 0 to 8 at most"),
    ("before the start", "w", -1, bytes(1), "bytes -1 to 0 were given"),
    ("strided array", "w", 0, np.zeros((4, 4), np.uint8)[:, :2], "not contiguous"),
    ("array without a buffer", "w", 0, np.zeros(4, ml_dtypes.bfloat16), "cannot be read as bytes"),
    ("no bytes at all", "w", 0, "text", "cannot be read as bytes"),
]


@pytest.mark.parametrize(("name", "at", "data", "words"), [m[1:] for m in MISUSED], ids=[m[0] for m in MISUSED])
def test_bytes_that_do_not_fit_are_refused(tmp_path: Path, name: str, at: int, data: Any, words: str) -> None:
    writer = write_safetensors(tmp_path / "w", [("w", "uint8", (8,))])

    with pytest.raises(UsageError) as caught:
        writer.write(name, at, data)

    assert words in str(caught.value)


def test_a_file_that_exists_is_not_written_over(save: SAVE) -> None:
    path = save(b"precious")

    with pytest.raises(UsageError, match="cannot be created: file exists"):
        write_safetensors(path, [])

    assert path.read_bytes() == b"precious"


def test_an_error_inside_the_block_is_not_hidden_by_missing_bytes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_safetensors(tmp_path / "w", [("w", "uint8", (8,))]):
        raise KeyError("from the caller")


def test_a_kept_header_must_be_a_whole_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="bytes follow the header"):
        write_safetensors(tmp_path / "w", header=st_bytes(GOOD))


def test_a_kept_header_takes_the_place_of_tensors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of the two"):
        write_safetensors(tmp_path / "w", [], header=st_bytes("{}", b""))
