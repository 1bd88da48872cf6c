"""Metadata values as a person types them: names of types, text to a typed value, and a type for text without one.

Decides which texts a type takes, and that nothing is rounded into range or cut: a number that its type does not hold is
refused with the range. Must not know files, nor what a key means.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence

from qconvert.containers.gguf_types import ARRAY, BOOL, STRING, UINT32, VALUE_TYPES
from qconvert.containers.gguf_values import ByteOrder, KeyValue, Scalar, key_value
from qconvert.containers.strict_json import json_kind, parse_json
from qformat.errors import FileError, UsageError, show
from qformat.file.metadata import INTEGERS

INT32, FLOAT32, UINT64, INT64 = 5, 6, 10, 11
SHORT = {"int": "i", "uint": "u", "float": "f"}

_INTEGER = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,99})|0[xX][0-9a-fA-F]{1,64}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_TRUTH = {"true": True, "false": False}


def short_name(value_type: int, element_type: int | None = None) -> str:
    """Give a type's short name.

    >>> short_name(4), short_name(8), short_name(9, 8)
    ('u32', 'str', '[str]')
    """
    if value_type == ARRAY and element_type is not None:
        return f"[{short_name(element_type)}]"
    name = VALUE_TYPES[value_type].name
    stem = name.rstrip("0123456789")
    return {"string": "str", "array": "arr"}.get(name, SHORT.get(stem, stem) + name[len(stem) :])


TYPES = {
    spelling: type_id
    for type_id, kind in VALUE_TYPES.items()
    for spelling in (short_name(type_id), kind.name)
    if type_id != ARRAY
}


def find_type(text: str) -> tuple[int, int | None]:
    """Read a type's name: "u32", "uint32", "str", "[f32]"; give its value type and element type.

    Raises UsageError for any other.
    """
    name = text.strip().lower()
    inner = name[1:-1].strip() if name.startswith("[") and name.endswith("]") else None
    found = TYPES.get(name if inner is None else inner)
    if found is None:
        known = ", ".join(short_name(type_id) for type_id in VALUE_TYPES if type_id != ARRAY)
        raise UsageError(f"unknown type {show(text, quote=True, limit=60)}: expected one of {known}, or [str] and the like")
    return (found, None) if inner is None else (ARRAY, found)


def guess_type(text: str) -> int:
    """Choose a type for text that has none: those that GGUF's writers choose.

    returns: uint32 or int32 for an integer, 64 bits if it needs them; float32 for a number with a point or an exponent;
             bool for true and false; else string
    """
    if _INTEGER.fullmatch(text):
        value = int(text, 0)
        kinds = (UINT32, INT32, UINT64, INT64)
        fitting = [kind for kind in kinds if value in _range(kind)]
        return fitting[0] if fitting else STRING
    if _FLOAT.fullmatch(text) and not text.lstrip("+-").isdigit():
        return FLOAT32
    return BOOL if text in _TRUTH else STRING


def parse_pair(key: str, text: str, value_type: int, element_type: int | None = None, byte_order: ByteOrder = "<") -> KeyValue:
    """Make a typed pair from text: a string as it is, of others without the white space around it; arrays are JSON lists.

    Raises UsageError, with the range, for text that is not a value of the type.
    """
    if value_type != ARRAY:
        return key_value(
            key, value_type, text if value_type == STRING else _scalar(key, text.strip(), value_type), byte_order=byte_order
        )
    if element_type is None or element_type == ARRAY:
        raise UsageError("arrays of arrays cannot be set, expected an array of scalars or strings", field=key)
    return key_value(key, ARRAY, _list(key, text, element_type), element_type, byte_order)


def _list(key: str, text: str, element_type: int) -> Sequence[Scalar]:
    try:
        items = parse_json(text.encode("utf-8", "surrogateescape"), path="", what="value")
    except FileError as err:
        raise UsageError(f"{err.message}; expected a JSON list", field=key, found=text) from err
    if not isinstance(items, list):
        raise UsageError(f"the value is {json_kind(items)}, expected a JSON list", field=key, found=items)
    return [_item(f"{key}[{i}]", item, element_type) for i, item in enumerate(items)]


def _item(key: str, item: object, element_type: int) -> Scalar:
    """Read an element: a string where the type is one, else what JSON holds or the text of it."""
    if isinstance(item, str):
        return _scalar(key, item, element_type)
    if element_type == STRING or not isinstance(item, (bool, int, float)):
        raise _refuse(key, json_kind(item), element_type)
    return _scalar(key, repr(item).lower(), element_type)


def _scalar(key: str, text: str, value_type: int) -> Scalar:
    name = VALUE_TYPES[value_type].name
    if value_type == STRING:
        return text
    if value_type == BOOL:
        if text.lower() not in _TRUTH:
            raise _refuse(key, text, value_type, "true or false")
        return _TRUTH[text.lower()]
    if name in INTEGERS:
        low, high = INTEGERS[name]
        if not _INTEGER.fullmatch(text) or not low <= int(text, 0) <= high:
            raise _refuse(key, text, value_type, f"an integer from {low} to {high}")
        return int(text, 0)
    if not _FLOAT.fullmatch(text) and not _SPECIAL.fullmatch(text):
        raise _refuse(key, text, value_type, "a number")
    value = float(text)
    if math.isfinite(value) == bool(_SPECIAL.fullmatch(text)) or (value_type == FLOAT32 and not _in_float32(value)):
        highest = "3.4028234663852886e+38" if value_type == FLOAT32 else "1.7976931348623157e+308"
        raise _refuse(key, text, value_type, f"a number from -{highest} to {highest}")
    return value


def _in_float32(value: float) -> bool:
    """Tell whether a value rounds to a float32 without overflow."""
    try:
        struct.pack("<f", value)
    except OverflowError:
        return False
    return True


def _range(value_type: int) -> range:
    low, high = INTEGERS[VALUE_TYPES[value_type].name]
    return range(low, high + 1)


def _refuse(key: str, found: str, value_type: int, expected: str = "") -> UsageError:
    kind = short_name(value_type)
    expected = f"{expected} ({kind})" if expected else kind
    return UsageError(f"found {show(found, quote=True, limit=80)}, expected {expected}", field=key, expected=kind, found=found)
