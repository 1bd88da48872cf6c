"""Everything in a GGUF file before its data, checked against ggml's rules and the bytes that are there.

Decides whether a header is legal, where each tensor's bytes lie, and which ranges of the file belong to nobody
(padding). Works on a buffer and the length of the whole file, so that a header kept elsewhere is read the same way.
Must not know how a file is opened or written, nor what a block's bytes mean. Standard library alone.

ggml-org/ggml: src/gguf.cpp (gguf_init_from_file_impl), 0.26.0, refuses what is refused here, with three exceptions: bytes
of a bool other than 0 and 1, which it reads as true, and ids younger than this table are kept and reported; arrays of
arrays, which the format's description allows and ggml does not read, are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Literal

from qconvert.containers.cursor import Cursor
from qconvert.containers.gguf_tensors import MIN_TENSOR_BYTES, TensorInfo, align, place_tensors, read_records
from qconvert.containers.gguf_types import (
    ALIGNMENT_KEY,
    DEFAULT_ALIGNMENT,
    GGML_TYPES,
    MAGIC,
    UINT32,
    VALUE_TYPES,
    VERSIONS,
)
from qconvert.containers.gguf_values import MIN_KEY_VALUE_BYTES, ByteOrder, KeyValue, odd_bool, read_key_value
from qconvert.containers.mapped import explain_foreign
from qformat.errors import FileError

PREAMBLE_BYTES = 24


@dataclass(frozen=True, slots=True)
class Oddity:
    """Something a legal reader accepts and a person should hear of; an "error" is not a sound file."""

    level: Literal["error", "warning"]
    message: str
    byte_offset: int
    tensor: str | None = None
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """A header that keeps every rule.

    key_values, tensors: by name, in file order
    n_bytes            : of the whole file
    key_values_end     : where the tensor infos begin; the pairs begin at 24
    end                : where the tensor infos end
    data_start         : `end` rounded up to the alignment if there are tensors, else `end`
    oddities           : those that the header alone shows
    """

    version: int
    byte_order: ByteOrder
    alignment: int
    key_values: Mapping[str, KeyValue]
    tensors: Mapping[str, TensorInfo]
    n_bytes: int
    key_values_end: int
    end: int
    data_start: int
    oddities: tuple[Oddity, ...]

    def gaps(self) -> tuple[list[int], list[int]]:
        """List where the ranges after the header that no tensor owns begin, and where they end; empty ones left out."""
        starts, stops, pos, last = list[int](), list[int](), self.data_start, self.n_bytes
        for _, _, _, byte_offset, n_bytes in self.tensors.values():  # no tensor begins before the one before it ends
            if pos < byte_offset and pos < last:
                starts.append(pos)
                stops.append(byte_offset if byte_offset < last else last)
            pos = byte_offset + n_bytes
        return ([*starts, pos], [*stops, last]) if pos < last else (starts, stops)

    def padded_end(self) -> int:
        """Give the length of the file with its last tensor padded, as ggml writes it; an opaque one owns its padding."""
        if not self.tensors:
            return self.end
        *_, last = self.tensors.values()
        stop = last.byte_offset + last.n_bytes
        return align(stop, self.alignment) if last.type_id in GGML_TYPES else stop


def parse_header(data: memoryview, n_bytes: int, path: str | None = None) -> Header:
    """Read and check a header.

    data   : the file, or at least everything before its tensors' bytes
    n_bytes: of the whole file
    Raises FileError, naming field or tensor and offset, for whatever breaks a rule.
    """
    byte_order, version = _read_version(data, path)
    cursor = Cursor(data, byte_order, path, pos=8)
    n_tensors, n_pairs = cursor.u64("tensor_count"), cursor.u64("kv_count")
    _check_count(cursor, n_pairs, MIN_KEY_VALUE_BYTES, "kv_count", 16)
    _check_count(cursor, n_tensors, MIN_TENSOR_BYTES, "tensor_count", 8)
    pairs = _read_pairs(cursor, n_pairs, byte_order)
    key_values_end = cursor.pos
    alignment = _alignment(pairs, path)
    _check_split(pairs, path)
    _check_count(cursor, n_tensors, MIN_TENSOR_BYTES, "tensor_count", 8)
    records = read_records(cursor, n_tensors)
    data_start = align(cursor.pos, alignment) if records else cursor.pos
    tensors = place_tensors(records, data_start, alignment, n_bytes, path)
    header = Header(
        version=version,
        byte_order=byte_order,
        alignment=alignment,
        key_values=MappingProxyType(pairs),
        tensors=MappingProxyType(tensors),
        n_bytes=n_bytes,
        key_values_end=key_values_end,
        end=cursor.pos,
        data_start=data_start,
        oddities=(*_odd_bools(pairs), *_opaque_tensors(tensors)),
    )
    _check_end(header, path)
    return header


def _read_version(data: memoryview, path: str | None) -> tuple[ByteOrder, int]:
    if bytes(data[:4]) != MAGIC[: len(data)] or not len(data):
        found = explain_foreign(data) or f"a file that starts with {bytes(data[:4]).hex(' ')}"
        expected = f"a GGUF file, which starts with {MAGIC.hex(' ')}"
        raise FileError(f"expected {expected}, found {found}", path=path, field="magic", offset=0, found=found)
    if len(data) < PREAMBLE_BYTES:
        message = f"the file ends after {len(data)} bytes, expected at least {PREAMBLE_BYTES}"
        raise FileError(message, path=path, field="header", offset=len(data), expected=PREAMBLE_BYTES, found=len(data))
    byte_order: ByteOrder = "<"
    version = int.from_bytes(data[4:8], "little")
    if version & 0xFFFF == 0:  # ggml's own test for a file of the other byte order
        byte_order, version = ">", int.from_bytes(data[4:8], "big")
    if version not in VERSIONS:
        message = f"version {version}, expected 2 or 3"
        raise FileError(message, path=path, field="version", offset=4, expected=VERSIONS, found=version)
    return byte_order, version


def _check_count(cursor: Cursor, count: int, min_bytes: int, field: str, pos: int) -> None:
    """Refuse a count that the bytes left cannot hold, before anything loops over it."""
    if count * min_bytes > cursor.left():
        message = f"{count} entries need at least {count * min_bytes} bytes, {cursor.left()} left in the file"
        raise cursor.error(message, field, pos, expected=count * min_bytes, found=cursor.left())


def _read_pairs(cursor: Cursor, count: int, byte_order: ByteOrder) -> dict[str, KeyValue]:
    pairs: dict[str, KeyValue] = {}
    for _ in range(count):
        start = cursor.pos
        pair = read_key_value(cursor, byte_order)
        if pair.key in pairs:
            raise cursor.error("the key stands twice, expected unique keys", pair.key, start)
        pairs[pair.key] = pair
    return pairs


def _alignment(pairs: dict[str, KeyValue], path: str | None) -> int:
    pair = pairs.get(ALIGNMENT_KEY)
    if pair is None:
        return DEFAULT_ALIGNMENT
    value, kind = pair.value, VALUE_TYPES[pair.value_type].name
    if pair.value_type != UINT32 or not isinstance(value, int):
        message = f"stored as {kind}, expected uint32"
        raise FileError(message, path=path, field=ALIGNMENT_KEY, offset=pair.byte_offset, expected="uint32", found=kind)
    if value == 0 or value & (value - 1):
        message = f"alignment {value}, expected a power of two"
        raise FileError(message, path=path, field=ALIGNMENT_KEY, offset=pair.byte_offset, found=value)
    return value


def _check_split(pairs: dict[str, KeyValue], path: str | None) -> None:
    number, count = pairs.get("split.no"), pairs.get("split.count")
    if number is None or count is None or not (isinstance(number.value, int) and isinstance(count.value, int)):
        return
    if not 0 <= number.value < max(count.value, 1):
        message = f"shard {number.value} of {count.value}, expected a number below the count"
        raise FileError(message, path=path, field="split.no", offset=number.byte_offset, found=number.value)


def _check_end(header: Header, path: str | None) -> None:
    """Refuse bytes after the last tensor's padding. The padding itself may be missing: ggml never needs it."""
    stop = header.padded_end() if header.tensors else align(header.end, header.alignment)
    if header.n_bytes > stop:
        message = f"{header.n_bytes - stop} bytes after the end of the last tensor, expected the end of the file"
        raise FileError(message, path=path, field="data", offset=stop, expected=stop, found=header.n_bytes)


def _odd_bools(pairs: dict[str, KeyValue]) -> list[Oddity]:
    found = ((pair.key, odd_bool(pair)) for pair in pairs.values())
    return [Oddity("error", f"a bool stored as {at[1]}, expected 0 or 1", at[0], field=key) for key, at in found if at]


def _opaque_tensors(tensors: dict[str, TensorInfo]) -> list[Oddity]:
    if GGML_TYPES.keys() >= set(map(itemgetter(2), tensors.values())):
        return []
    return [
        Oddity("warning", f"tensor type {t.type_id} is not known; its bytes are opaque", t.byte_offset, t.name, "type")
        for t in tensors.values()
        if t.type_id not in GGML_TYPES
    ]
