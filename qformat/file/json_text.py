"""Strict JSON: what `.qfmt` documents may hold.

Decides which texts are one JSON value (spec/qfmt.md, "JSON") and how a value is written. Knows nothing of what a
document is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from math import isinf
from typing import Any

from qformat.errors import FileError, UsageError
from qformat.file.records import MAX_DOCUMENT_BYTES

MAX_DEPTH = 64
# Strings are matched whole, so that brackets inside them do not count.
TOKENS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]')


def parse(data: bytes, field: str) -> Any:
    """Read one JSON value from UTF-8 text.

    Raises FileError when the text is not strict JSON, or beyond the limits of nesting and length.
    """
    try:
        text = data.decode("utf-8")
        check_depth(text)
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant, parse_float=finite_float)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise FileError(f"not strict JSON: {error}", field=field, expected="strict JSON") from error
    return value


def dump(value: object, field: str, sort_keys: bool = True) -> bytes:
    """Write a JSON value as UTF-8 text without spaces.

    Raises UsageError when the value is not JSON, or beyond the limits of nesting and length.
    """
    try:
        text = json.dumps(value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8")
        # What cannot be read back must not be written: keys that become equal as text, nesting beyond the limit.
        parse(data, field)
    except (ValueError, TypeError, RecursionError, FileError) as error:
        raise UsageError(f"not JSON: {error}", field=field, expected="a JSON value") from error
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UsageError(
            f"{len(data)} bytes of JSON, expected at most {MAX_DOCUMENT_BYTES}",
            field=field,
            expected=MAX_DOCUMENT_BYTES,
            found=len(data),
        )
    return data


def check_depth(text: str) -> None:
    """Raise ValueError when arrays and objects nest deeper than MAX_DEPTH."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for token in TOKENS.finditer(text):
        first = text[token.start()]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested deeper than {MAX_DEPTH}")
        elif first != '"':
            depth -= 1


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object, raising ValueError for a key given twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} twice")
        result[key] = value
    return result


def refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and Infinity, which Python would take."""
    raise ValueError(f"{name} is not JSON")


def finite_float(text: str) -> float:
    """Read a number, raising ValueError when it is beyond float64."""
    value = float(text)
    if isinf(value):
        raise ValueError(f"number {text[:20]} is beyond float64")
    return value
