"""Key-values of a GGUF header: read with bounds only, decoded when asked, written back as the bytes they were.

Decides what a well-formed key-value is and how its value maps to Python. Arrays stay views on the file: a tokenizer's
vocabulary costs one walk over its string lengths at open and no Python objects. Must not know tensors, nor what any
key means. Standard library alone; NumPy is imported by the one method that gives a NumPy array.

Source: ggml-org/ggml: src/gguf.cpp (gguf_init_from_file_impl), 0.26.0.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qconvert.containers.cursor import Cursor, text_of
from qconvert.containers.gguf_types import ARRAY, BOOL, STRING, VALUE_TYPES
from qformat.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

ByteOrder: TypeAlias = Literal["<", ">"]
Scalar: TypeAlias = int | float | bool | str

MAX_KEY_BYTES = 65535
MAX_COUNT = 1 << 30  # ggml refuses longer strings and arrays
MAX_DEPTH = 4  # of arrays in arrays; the format's description sets no limit, ggml reads none
MIN_ARRAY_BYTES = 12  # element type and count
MIN_KEY_VALUE_BYTES = 8 + 1 + 4 + 1  # length, one byte of key, type, one byte of value


@dataclass(frozen=True, slots=True)
class GGUFArray:
    """An array value, not decoded: its elements' bytes as the file holds them.

    raw        : the elements back to back (strings each with their length), read-only
    byte_offset: of `raw` in the file, for error messages
    """

    element_type: int
    n_values: int
    raw: memoryview
    byte_order: ByteOrder
    path: str | None = None
    field: str | None = None
    byte_offset: int = 0

    def __len__(self) -> int:
        return self.n_values

    def values(self) -> list[Any]:
        """Decode every element: int, float, bool or str; a list for each inner array.

        Raises FileError for a string that is not UTF-8; bounds were checked when the file was opened.
        """
        if self.element_type == ARRAY:
            return [inner.values() for inner in self.arrays()]
        if self.element_type == STRING:
            cursor = Cursor(self.raw, self.byte_order, self.path, base=self.byte_offset)
            return [cursor.string(self.field or "array", MAX_COUNT) for _ in range(self.n_values)]
        if self.element_type == BOOL:
            return [byte != 0 for byte in self.raw]
        code = VALUE_TYPES[self.element_type].code
        return list(struct.unpack(f"{self.byte_order}{self.n_values}{code}", self.raw))

    def arrays(self) -> list[GGUFArray]:
        """Give the inner arrays of an array of arrays, not decoded."""
        cursor = Cursor(self.raw, self.byte_order, self.path, base=self.byte_offset)
        return [_read_array(cursor, self.field or "array", self.byte_order) for _ in range(self.n_values)]

    def head(self, count: int) -> GGUFArray:
        """Give the first elements, at most `count`, as an array of their own; nothing is decoded."""
        n_values, n_bytes = min(count, self.n_values), VALUE_TYPES[self.element_type].n_bytes
        return replace(self, n_values=n_values, raw=self.raw[: n_values * n_bytes] if n_bytes else self.raw)

    def numpy(self) -> NDArray[Any]:
        """View the elements of a numeric array without copying, in the file's byte order; bool as a copy.

        Raises UsageError for an array of strings or of arrays.
        """
        import numpy as np

        if self.element_type in (STRING, ARRAY):
            kind = VALUE_TYPES[self.element_type].name
            raise UsageError(f"an array of {kind}s has no NumPy form; use values()", path=self.path, field=self.field)
        elements: NDArray[Any]
        if self.element_type == BOOL:
            elements = np.frombuffer(self.raw, np.uint8) != 0
            return elements
        dtype = np.dtype(VALUE_TYPES[self.element_type].name).newbyteorder(self.byte_order)
        elements = np.frombuffer(self.raw, dtype)
        return elements


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One typed pair.

    value       : int, float, bool, str, or a GGUFArray that decodes on demand
    element_type: of an array, else None
    raw         : the value's bytes as they stand after the value type; what is written back
    byte_offset : of `raw` in the file it was read from, 0 for a pair made by `key_value`
    """

    key: str
    value_type: int
    element_type: int | None
    value: Scalar | GGUFArray
    raw: memoryview
    byte_order: ByteOrder
    byte_offset: int = 0

    def encode(self, byte_order: ByteOrder) -> list[bytes | memoryview]:
        """Give the pair's bytes in parts: key, type and value, the value verbatim unless the byte order changes."""
        key = self.key.encode()
        head = struct.pack(f"{byte_order}Q", len(key)) + key + struct.pack(f"{byte_order}I", self.value_type)
        return [head, self.raw if byte_order == self.byte_order else self._swapped(byte_order)]

    def _swapped(self, byte_order: ByteOrder) -> bytes:
        if not isinstance(self.value, GGUFArray):
            return _swap(self.value_type, 1, self.raw, self.byte_order, byte_order)
        return _swap_array(self.value, byte_order)


def key_value(
    key: str,
    value_type: int,
    value: Scalar | Sequence[Scalar],
    element_type: int | None = None,
    byte_order: ByteOrder = "<",
) -> KeyValue:
    """Make a typed pair from Python values.

    value       : a scalar, or for value type 9 a sequence of scalars of `element_type`
    Raises UsageError when the type does not exist, or does not hold the value.

    >>> bytes(key_value("a.b", 2, 258).raw)
    b'\\x02\\x01'
    """
    _pack(key, STRING, key, byte_order)
    if value_type == ARRAY:
        if element_type not in VALUE_TYPES or element_type == ARRAY:
            raise UsageError(f"element type {element_type}, expected 0 to 12 except 9 (array)", field=key)
        if isinstance(value, (int, float, str)):
            raise UsageError(f"found {type(value).__name__}, expected a sequence of values", field=key)
        elements = b"".join(_pack(key, element_type, item, byte_order) for item in value)
        raw = memoryview(struct.pack(f"{byte_order}IQ", element_type, len(value)) + elements)
        lazy = GGUFArray(element_type, len(value), raw[12:], byte_order, field=key)
        return KeyValue(key, value_type, element_type, lazy, raw, byte_order)
    if value_type not in VALUE_TYPES:
        raise UsageError(f"value type {value_type}, expected 0 to 12", field=key)
    raw = memoryview(_pack(key, value_type, value, byte_order))
    return KeyValue(key, value_type, None, _scalar(value_type, raw, byte_order), raw, byte_order)


def read_key_value(cursor: Cursor, byte_order: ByteOrder) -> KeyValue:
    """Read one pair at the cursor; arrays are walked for their bounds and left where they are.

    Raises FileError for an empty or overlong key, text that is not UTF-8, a type that does not exist, arrays
    nested deeper than 4, and anything that does not fit in the bytes left.
    """
    start = cursor.pos
    key = cursor.string("key", MAX_KEY_BYTES)
    if not key:
        raise cursor.error("empty key, expected at least one byte", "key", start)
    at = cursor.pos
    value_type = cursor.u32(key)
    if value_type not in VALUE_TYPES:
        raise cursor.error(f"value type {value_type} does not exist, expected 0 to 12", key, at)
    start = cursor.pos
    if value_type == ARRAY:
        value: Scalar | GGUFArray = _read_array(cursor, key, byte_order)
    elif value_type == STRING:
        value = cursor.string(key, MAX_COUNT)
    else:
        raw = cursor.take(VALUE_TYPES[value_type].n_bytes, key)
        value = _scalar(value_type, raw, byte_order)
    element_type = value.element_type if isinstance(value, GGUFArray) else None
    raw = cursor.data[start : cursor.pos]
    return KeyValue(key, value_type, element_type, value, raw, byte_order, cursor.base + start)


def odd_bool(pair: KeyValue) -> tuple[int, int] | None:
    """Find the first bool byte other than 0 and 1: its byte offset and value. ggml reads any such byte as true."""
    if isinstance(pair.value, GGUFArray):
        return _odd_bool_of(pair.value)
    return _other_than_bool(pair.raw, pair.byte_offset) if pair.value_type == BOOL else None


def _odd_bool_of(value: GGUFArray) -> tuple[int, int] | None:
    if value.element_type == ARRAY:
        return next((found for inner in value.arrays() if (found := _odd_bool_of(inner))), None)
    return _other_than_bool(value.raw, value.byte_offset) if value.element_type == BOOL else None


def _other_than_bool(raw: memoryview, start: int) -> tuple[int, int] | None:
    others = bytes(raw).translate(None, b"\0\1")
    return (start + bytes(raw).index(others[:1]), others[0]) if others else None


def _read_array(cursor: Cursor, key: str, byte_order: ByteOrder, depth: int = 1) -> GGUFArray:
    at = cursor.pos
    element_type, count = cursor.u32(key), cursor.u64(key)
    if element_type == ARRAY and depth == MAX_DEPTH:
        raise cursor.error(f"arrays nested deeper than {MAX_DEPTH}, expected scalars or strings", key, at)
    if element_type not in VALUE_TYPES:
        raise cursor.error(f"element type {element_type} does not exist, expected 0 to 12", key, at)
    if count > MAX_COUNT:
        raise cursor.error(f"an array of {count} values, expected at most {MAX_COUNT}", key, at + 4)
    start = cursor.pos
    if element_type == ARRAY:
        if count * MIN_ARRAY_BYTES > cursor.left():
            raise cursor.cut(count * MIN_ARRAY_BYTES, key)
        for _ in range(count):
            _read_array(cursor, key, byte_order, depth + 1)
    elif element_type == STRING:
        cursor.skip_strings(count, key)
    else:
        cursor.take(count * VALUE_TYPES[element_type].n_bytes, key)
    raw = cursor.data[start : cursor.pos]
    return GGUFArray(element_type, count, raw, byte_order, cursor.path, key, cursor.base + start)


def _scalar(value_type: int, raw: memoryview, byte_order: ByteOrder) -> Scalar:
    if value_type == STRING:
        return text_of(raw[8:])
    value: int | float = struct.unpack(byte_order + VALUE_TYPES[value_type].code, raw)[0]
    return value != 0 if value_type == BOOL else value


def _pack(key: str, value_type: int, value: object, byte_order: ByteOrder) -> bytes:
    kind = VALUE_TYPES[value_type]
    try:
        if value_type == STRING:
            text = value.encode() if isinstance(value, str) else None
            if text is None:
                raise TypeError(f"not {type(value).__name__}")
            return struct.pack(f"{byte_order}Q", len(text)) + text
        if value_type == BOOL and not isinstance(value, bool):
            raise TypeError(f"not {type(value).__name__}")
        return struct.pack(byte_order + kind.code, value)
    except (struct.error, OverflowError, TypeError, UnicodeEncodeError) as err:
        message = f"found {str(value)[:40]!r}, expected a value that {kind.name} holds"
        raise UsageError(message, field=key, found=value, expected=kind.name) from err


def _swap_array(value: GGUFArray, new: ByteOrder) -> bytes:
    """Turn an array, its head included, into the other byte order."""
    head = struct.pack(f"{new}IQ", value.element_type, value.n_values)
    if value.element_type == ARRAY:
        return head + b"".join(_swap_array(inner, new) for inner in value.arrays())
    return head + _swap(value.element_type, value.n_values, value.raw, value.byte_order, new)


def _swap(value_type: int, n_values: int, raw: memoryview, old: ByteOrder, new: ByteOrder) -> bytes:
    """Turn values of one type into the other byte order."""
    if value_type != STRING:
        n_bytes = VALUE_TYPES[value_type].n_bytes
        if n_bytes == 1:
            return bytes(raw)
        items = array({2: "H", 4: "I", 8: "Q"}[n_bytes], bytes(raw))
        items.byteswap()
        return items.tobytes()
    cursor, parts = Cursor(raw, old, None), []
    for _ in range(n_values):
        n_bytes = cursor.u64("string")
        parts += [struct.pack(f"{new}Q", n_bytes), bytes(cursor.take(n_bytes, "string"))]
    return b"".join(parts)
