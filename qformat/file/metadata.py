"""Typed metadata values and their JSON form.

Decides how a value keeps its type through JSON (spec/qfmt.md, "JSON"). Knows nothing of what keys mean.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qformat.errors import FileError, QFormatError, UsageError

INTEGERS: Mapping[str, tuple[int, int]] = {
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
}
TYPES = (*INTEGERS, "float32", "float64", "bool", "string", "array")
EXACT = 2**53
INTEGER_TEXT = re.compile("-?[1-9][0-9]{0,19}")
SPECIALS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, slots=True)
class Typed:
    """A metadata value with its type.

    type : "uint8" ... "int64", "float32", "float64", "bool", "string" or "array"
    value: int, float, bool or str; for an array a tuple of these, or of Typed arrays
    items: type of every element of an array
    """

    type: str
    value: Any
    items: str | None = None


def encode(metadata: Mapping[str, Typed]) -> dict[str, Any]:
    """Give metadata as a JSON object.

    Raises UsageError when a value is not of its type.
    """
    result = {}
    for key, typed in metadata.items():
        if not isinstance(typed, Typed):
            raise UsageError(f"{typed!r} has no type, expected Typed(type, value)", field=key, found=typed)
        result[key] = encode_value(typed, key)
    return result


def decode(document: Any) -> dict[str, Typed]:
    """Read metadata from its JSON object.

    Raises FileError when a value is not typed as spec/qfmt.md says.
    """
    if not isinstance(document, dict):
        raise FileError(f"metadata is {type(document).__name__}, expected a JSON object", field="metadata")
    return {key: decode_value(value, key) for key, value in document.items()}


def encode_value(typed: Typed, key: str) -> dict[str, Any]:
    """Give one typed value as JSON."""
    if typed.type != "array":
        return {"type": typed.type, "value": encode_scalar(typed.type, typed.value, key)}
    return {"type": "array", **encode_array(typed, key)}


def encode_array(typed: Typed, key: str) -> dict[str, Any]:
    """Give an array as JSON, its own type left out."""
    items = typed.items
    if items == "array":
        return {"items": items, "value": [encode_array(item, key) for item in typed.value]}
    return {"items": items, "value": [encode_scalar(items, item, key) for item in typed.value]}


def encode_scalar(kind: str | None, value: Any, key: str) -> Any:
    """Give a scalar as JSON, checked against its type."""
    check_scalar(kind, value, key, UsageError)
    if kind in INTEGERS and abs(value) > EXACT:
        return str(value)
    if kind in ("float32", "float64") and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode_value(value: Any, key: str) -> Typed:
    """Read one typed value."""
    if not isinstance(value, dict) or not {"type", "value"} <= value.keys() <= {"type", "value", "items"}:
        raise FileError('expected an object of "type" and "value"', field=key, found=value)
    if not isinstance(value["type"], str):
        raise FileError(f"type {value['type']!r}, expected a string", field=key, found=value["type"])
    if value["type"] == "array":
        return decode_array(value, key)
    if "items" in value:
        raise FileError(f'"items" beside type {value["type"]!r}, expected only for arrays', field=key)
    return Typed(value["type"], decode_scalar(value["type"], value["value"], key))


def decode_array(value: Any, key: str) -> Typed:
    """Read an array; its elements have no type of their own."""
    items = value.get("items") if isinstance(value, dict) else None
    if items not in TYPES or not isinstance(value.get("value"), list):
        raise FileError(f'expected "items" of {", ".join(TYPES)} and a list as "value"', field=key, found=items)
    if items == "array":
        return Typed("array", tuple(decode_array(item, key) for item in value["value"]), items)
    return Typed("array", tuple(decode_scalar(items, item, key) for item in value["value"]), items)


def decode_scalar(kind: Any, value: Any, key: str) -> Any:
    """Read a scalar, checked against its type."""
    if kind in INTEGERS and isinstance(value, str) and INTEGER_TEXT.fullmatch(value):
        value = int(value)
    elif kind in ("float32", "float64"):
        if isinstance(value, str):
            value = SPECIALS.get(value, value)
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) <= EXACT:
            value = float(value)
    check_scalar(kind, value, key, FileError)
    return value


def check_scalar(kind: Any, value: Any, key: str, error: type[QFormatError]) -> None:
    """Raise `error` when a scalar is not of its type."""
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    elif kind == "float32":
        good = isinstance(value, float) and is_float32(value)
    elif kind == "float64":
        good = isinstance(value, float)
    elif kind == "bool":
        good = isinstance(value, bool)
    elif kind == "string":
        good = isinstance(value, str)
    else:
        raise error(f"type {kind!r}, expected one of {', '.join(TYPES)}", field=key, expected=TYPES, found=kind)
    if not good:
        raise error(f"{value!r} is not a {kind}", field=key, expected=kind, found=value)


def is_float32(value: float) -> bool:
    """Tell whether float32 holds the value, NaN included."""
    try:
        return math.isnan(value) or struct.unpack("<f", struct.pack("<f", value))[0] == value
    except OverflowError:
        return False
