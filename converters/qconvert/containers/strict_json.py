"""JSON text from files nobody vouches for: strict RFC 8259, linear cost, one typed error.

It decides what a JSON text may be: UTF-8, no name twice in one object, no NaN or Infinity, no unpaired surrogate,
at most MAX_DEPTH levels, no number of more than MAX_DIGITS digits in a row. Depth and digits are looked at before
the parser runs, so that no text exhausts the stack or makes an integer that is slow to convert.
It must not know what the text means: headers, indexes and configs are read by those who ask.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, Never

from qformat.errors import FileError, show

MAX_DEPTH = 64
MAX_DIGITS = 1000

_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_ALL_BYTES = bytes(range(256))
_NOT_BRACKETS = bytes(b for b in _ALL_BYTES if b not in b"[]{}")
_BRACKETS_AS_ONE = bytes.maketrans(b"{}", b"[]")
_TOO_DEEP = b"[" * (MAX_DEPTH + 1)
_TOO_SHALLOW = b"]" * (MAX_DEPTH + 1)
_DIGIT_MASK = bytes(b in b"0123456789" for b in _ALL_BYTES)


class _Refused(ValueError):
    """A rule json does not know was broken."""


def parse_json(data: bytes, *, path: str | Path, what: str, byte_offset: int = 0) -> object:
    """Parse one JSON text.

    data       : the whole text, at least one value and white space around it
    what       : the text's name in messages, for instance "header"
    byte_offset: where `data` begins in the file at `path`, for messages

    Raises FileError when the text breaks a rule of this module.
    """
    problem = _structure_problem(data)
    if problem:
        raise FileError(f"{what} {problem}", path=path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as err:
        at = byte_offset + err.start
        message = f"{what} holds the byte {data[err.start]:#04x}, expected UTF-8 text"
        raise FileError(message, path=path, offset=at, expected="UTF-8") from err
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_int=_integer, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as err:
        at = byte_offset + len(text[: err.pos].encode("utf-8"))
        raise FileError(f"{what} is not JSON: {err.msg.lower()}", path=path, offset=at) from err
    except UnicodeEncodeError as err:
        message = f"{what} holds an unpaired surrogate escape, expected whole characters"
        raise FileError(message, path=path) from err
    except _Refused as err:
        raise FileError(f"{what} {err}", path=path) from err
    return value


def json_kind(value: object) -> str:
    """Name what a parsed value is, for messages.

    >>> json_kind(None), json_kind([1]), json_kind(True)
    ('null', 'a list', 'a truth value')
    """
    kinds = {type(None): "null", bool: "a truth value", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")


def finite(value: Any) -> Any:
    """Replace what JSON cannot hold: NaN and infinities by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _structure_problem(data: bytes) -> str | None:
    """Say what in the text outside strings would overload a parser, if anything."""
    # A backslash outside a string is malformed: what precedes it is still cut correctly, and that is all the parser
    # gets to see before it stops.
    plain = _ESCAPE.sub(b"", data) if b"\\" in data else data
    outside = b"".join(plain.split(b'"')[::2])
    if b"\1" * (MAX_DIGITS + 1) in outside.translate(_DIGIT_MASK):
        return f"holds a number of more than {MAX_DIGITS} digits"
    nest = outside.translate(_BRACKETS_AS_ONE, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        if _TOO_DEEP in nest or _TOO_SHALLOW in nest:
            break
        nest = nest.replace(b"[]", b"")
    if _TOO_DEEP in nest or _TOO_SHALLOW in nest or b"[]" in nest:
        return f"is nested deeper than {MAX_DEPTH} levels, or its brackets do not match"
    return None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of its members, each name once."""
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Refused(f"holds {show(name, quote=True, limit=100)} twice in one object, expected once")
            seen.add(name)
    return members


def _refuse_constant(text: str) -> Never:
    raise _Refused(f"holds {text}, which is not JSON")


def _integer(text: str) -> int | float:
    return -0.0 if text == "-0" else int(text)  # an integer has no sign at zero: only a float keeps what was written
