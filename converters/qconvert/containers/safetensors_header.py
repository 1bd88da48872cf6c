"""The safetensors header: which tensors lie where, as JSON text and as values.

It decides what a legal header is, reading it and writing it in the reference writer's order and spelling. Stricter
than the reference reader where readers could disagree: no name twice, `{` first, at most MAX_RANK dimensions, and
every shape is one that an array can have. White space after the JSON text is allowed, as there.
It must not know of open files, arrays or what the tensors mean.

Source: huggingface/safetensors 0.8.0: README.md ("Format"), safetensors/src/tensor.rs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache, partial
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Never, TypeAlias

from qconvert.containers.strict_json import json_kind, parse_json
from qformat.errors import FileError, show

MAX_HEADER_BYTES = 100_000_000
MAX_RANK = 64
MAX_TENSOR_BITS = 2**66  # 2**63 bytes: what the indices of every array library reach

#: (name in the header, our name, bits of one element), in the order in which the reference ranks its dtypes.
DTYPES = (
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
)
BITS = {dtype: bits for _, dtype, bits in DTYPES}
_DTYPE_OF = {code: dtype for code, dtype, _ in DTYPES}
CODE_OF = {dtype: code for code, dtype, _ in DTYPES}
RANK_OF = {dtype: rank for rank, (_, dtype, _) in enumerate(DTYPES)}

METADATA = "__metadata__"
_NUMBER = "(?:0|[1-9][0-9]{0,19}+)"


class _Spelling:
    """Entries as a writer spells them that puts this gap, empty or a space, after colons and commas; see `_read_plain`."""

    def __init__(self, gap: str) -> None:
        self.entry = re.compile(
            rf'"([^"\\\x00-\x1f]*+)":{gap}\{{"dtype":{gap}"([A-Z0-9_]++)",{gap}'
            rf'"shape":{gap}\[((?:{_NUMBER}(?:,{gap}{_NUMBER})*+)?)\],{gap}'
            rf'"data_offsets":{gap}\[({_NUMBER}),{gap}({_NUMBER})\]\}}(?:,{gap}(?=")|\Z)'
        )
        self.metadata = re.compile(rf'"__metadata__":{gap}(\{{(?:"(?:[^"\\]++|\\.)*+"(?:[:,]{gap})?+)*+\}})(,{gap})?+')
        self.n_between = len(f",{gap}")
        self.n_around = len('"":{"dtype":"","shape":[],"data_offsets":[,]}') + 7 * len(gap) + self.n_between


#: name, dtype in the header's spelling, shape, begin and end in the data buffer
Row: TypeAlias = tuple[str, str, tuple[int, ...], int, int]


class TensorInfo(NamedTuple):  # a tuple: files hold a hundred thousand, and it is made in a third of a dataclass's time
    """One tensor of a safetensors file.

    dtype       : our name ("bfloat16", "float8_e4m3fn", ...)
    shape       : logical elements, row-major, also for dtypes of less than a byte
    byte_offset : where its bytes begin, from the start of the file
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    byte_offset: int
    n_bytes: int


def header_length(data: bytes | memoryview, n_file_bytes: int, path: str | Path) -> int:
    """Give the bytes from the start of the file to its data buffer.

    data: the file's first 9 bytes or more, or all there are

    Raises FileError when the length field or the first character is not that of a header.
    """
    if len(data) < 8:
        message = f"the file ends after {len(data)} bytes, expected 8 bytes of header length"
        raise FileError(message, path=path, offset=0, expected=8, found=len(data))
    n = int.from_bytes(data[:8], "little")
    if n > MAX_HEADER_BYTES:
        message = f"the header is {n} bytes long by its length field, expected at most {MAX_HEADER_BYTES}"
        raise FileError(message, path=path, offset=0, expected=MAX_HEADER_BYTES, found=n)
    if n > n_file_bytes - 8:
        message = f"the header is {n} bytes long by its length field, but the file holds {n_file_bytes - 8} after it"
        raise FileError(message, path=path, offset=0, expected=n, found=n_file_bytes - 8)
    if n == 0 or data[8:9] != b"{":
        found = "nothing" if n == 0 else f"the byte {data[8]:#04x}"
        raise FileError(f"the header begins with {found}, expected '{{'", path=path, offset=8, expected="{", found=found)
    return 8 + n


def parse_header(
    header: bytes, n_file_bytes: int | None, path: str | Path
) -> tuple[dict[str, TensorInfo], dict[str, str] | None]:
    """Read a header into its tensors, in its own order, and its metadata (None when it has none).

    header      : the length field and the whole text, as header_length measures it
    n_file_bytes: length of the file, all of which the tensors must fill; None when there is no file yet

    Raises FileError when anything in it breaks the format.
    """
    plain = _read_plain(header, path)
    metadata, rows = _read_any(header, path) if plain is None else plain
    n_header = len(header)
    known: dict[tuple[str, tuple[int, ...]], tuple[str, int]] = {}
    tensors: dict[str, TensorInfo] = {}
    make = partial(tuple.__new__, TensorInfo)
    at = 0
    in_order = True
    for name, code, shape, begin, end in rows:
        kind = known.get((code, shape))
        if kind is None:
            kind = known[code, shape] = _dtype_and_n_bytes(name, code, shape, path)
        if end - begin != kind[1]:
            _refuse_range(name, code, shape, kind[1], begin, end, path)
        if begin != at:
            in_order = False
        at = end
        tensors[name] = make((name, kind[0], shape, n_header + begin, kind[1]))
    n_data = None if n_file_bytes is None else n_file_bytes - n_header
    if not in_order or at != n_data:
        _check_cover(tensors.values(), n_header, n_data, path)
    return tensors, metadata


def tensor_n_bytes(dtype: str, shape: Sequence[int]) -> int | str:
    """Count the bytes of a tensor, or say in one clause why there is no such tensor."""
    if len(shape) > MAX_RANK:
        return f"the shape has {len(shape)} dimensions, expected at most {MAX_RANK}"
    if math.prod(n for n in shape if n) * BITS[dtype] >= MAX_TENSOR_BITS:
        return f"the shape {list(shape)} of {dtype} exceeds 2**63 bytes, more than an array can hold"
    n_bits = math.prod(shape) * BITS[dtype]
    if n_bits % 8:
        return f"{math.prod(shape)} elements of {dtype} are {n_bits} bits, expected a whole number of bytes"
    return n_bits // 8


@cache
def _spelling(gap: str) -> _Spelling:
    return _Spelling(gap)


def _read_plain(header: bytes, path: str | Path) -> tuple[dict[str, str] | None, Iterable[Row]] | None:
    """Read a header spelled as the reference writer spells it, or as Python's json module does; None for any other.

    An order of magnitude fewer objects than by way of the JSON parser: 100 000 tensors in a fraction of a second.
    """
    try:
        text = header[8:].decode("utf-8").rstrip(" ")
    except UnicodeDecodeError:
        return None
    metadata, at, end = None, 1, len(text) - 1
    spelling = _spelling(" " if text.startswith(": ", text.find('"', 2) + 1) else "")
    if found := spelling.metadata.match(text, 1):
        metadata = _metadata_of(parse_json(found[1].encode(), path=path, what=METADATA, byte_offset=8 + found.start(1)), path)
        at = found.end()
        if (at < end) != bool(found[2]):
            return None
    entries = spelling.entry.findall(text, at, end)
    n_matched = len(entries) * spelling.n_around - bool(entries) * spelling.n_between
    n_matched += len("".join(chain.from_iterable(entries)))
    if text[end:] != "}" or n_matched != end - at:
        return None
    names = set(map(itemgetter(0), entries))
    if len(names) != len(entries) or METADATA in names:
        return None
    shapes = {dims: tuple(map(int, dims.split(","))) if dims else () for dims in set(map(itemgetter(2), entries))}
    return metadata, ((name, code, shapes[dims], int(begin), int(end)) for name, code, dims, begin, end in entries)


def _read_any(header: bytes, path: str | Path) -> tuple[dict[str, str] | None, Iterable[Row]]:
    """Read a header by way of the JSON parser; the errors are made here."""
    members = parse_json(header[8:], path=path, what="header", byte_offset=8)
    if not isinstance(members, dict):
        raise FileError(f"the header is {json_kind(members)}, expected an object", path=path, offset=8)
    metadata = _metadata_of(members[METADATA], path) if METADATA in members else None
    rows: list[Row] = []
    for name, entry in members.items():
        if name == METADATA:
            continue
        if not isinstance(entry, dict):
            raise FileError(f"the entry is {json_kind(entry)}, expected an object", path=path, tensor=name)
        for field in ("dtype", "shape", "data_offsets"):
            if field not in entry:
                raise FileError(f"{field} is missing from the entry", path=path, tensor=name, field=field)
        if not isinstance(entry["dtype"], str):
            message = f"dtype is {json_kind(entry['dtype'])}, expected a string"
            raise FileError(message, path=path, tensor=name, field="dtype", expected="string", found=entry["dtype"])
        shape = _counts(entry["shape"], name, "shape", path)
        offsets = _counts(entry["data_offsets"], name, "data_offsets", path)
        if len(offsets) != 2:
            message = f"data_offsets holds {len(offsets)} numbers, expected 2"
            raise FileError(message, path=path, tensor=name, field="data_offsets", expected=2, found=len(offsets))
        rows.append((name, entry["dtype"], shape, offsets[0], offsets[1]))
    return metadata, rows


def _metadata_of(value: object, path: str | Path) -> dict[str, str]:
    if not isinstance(value, dict):
        message = f"the metadata is {json_kind(value)}, expected an object of strings"
        raise FileError(message, path=path, field=METADATA)
    for key, text in value.items():
        if not isinstance(text, str):
            message = f"the metadata's {show(key, quote=True, limit=100)} is {json_kind(text)}, expected a string"
            raise FileError(message, path=path, field=METADATA)
    return value


def _counts(value: object, name: str, field: str, path: str | Path) -> tuple[int, ...]:
    """Check a list of integers that are 0 or more."""
    if not isinstance(value, list):
        message = f"{field} is {json_kind(value)}, expected a list of integers"
        raise FileError(message, path=path, tensor=name, field=field, expected="list", found=value)
    for number in value:
        if type(number) is not int or number < 0:
            found = number if type(number) in (int, float) else json_kind(number)
            message = f"{field} holds {found}, expected integers of 0 or more"
            raise FileError(message, path=path, tensor=name, field=field, expected="integer", found=number)
    return tuple(value)


def _dtype_and_n_bytes(name: str, code: str, shape: tuple[int, ...], path: str | Path) -> tuple[str, int]:
    dtype = _DTYPE_OF.get(code)
    if dtype is None:
        known = ", ".join(code for code, _, _ in DTYPES)
        message = f"unknown dtype {show(code, quote=True, limit=60)}: expected one of {known}"
        raise FileError(message, path=path, tensor=name, field="dtype", expected=known, found=code)
    n_bytes = tensor_n_bytes(dtype, shape)
    if isinstance(n_bytes, str):
        raise FileError(n_bytes, path=path, tensor=name, field="shape", found=shape)
    return dtype, n_bytes


def _refuse_range(name: str, code: str, shape: tuple[int, ...], n_bytes: int, begin: int, end: int, path: str | Path) -> Never:
    found = f"end at {end} before they begin at {begin}" if end < begin else f"span {end - begin} bytes"
    message = f"data_offsets {found}, expected {n_bytes} bytes for {code} {list(shape)}"
    raise FileError(message, path=path, tensor=name, field="data_offsets", expected=n_bytes, found=end - begin)


def _check_cover(tensors: Iterable[TensorInfo], n_header: int, n_data: int | None, path: str | Path) -> None:
    """Refuse holes, overlaps, and bytes missing or left over at the end."""
    at = 0
    for info in sorted(tensors, key=itemgetter(3, 4)):
        begin = info.byte_offset - n_header
        if begin != at:
            what = f"overlaps {at - begin} bytes before it" if begin < at else f"leaves {begin - at} bytes unused before it"
            message = f"data begins at {begin} and {what}, expected {at}"
            raise FileError(message, path=path, tensor=info.name, field="data_offsets", expected=at, found=begin)
        at += info.n_bytes
    if n_data is not None and at > n_data:
        message = f"the file is truncated: the tensors span {at} bytes, it holds {n_data} after the header"
        raise FileError(message, path=path, expected=at, found=n_data)
    if n_data is not None and at < n_data:
        message = f"the tensors span {at} bytes of the {n_data} that follow the header, expected all of them"
        raise FileError(message, path=path, expected=at, found=n_data)
