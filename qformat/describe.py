"""Declarations as JSON and back: what a `.qfmt` file says of a tensor, so that a reader needs no catalogue.

A declaration becomes an object of its fields, tagged with its kind where several kinds could stand. Reading is strict:
unknown kinds, missing or extra fields and wrong types are refused before any declaration is made, and the declarations'
own constructors refuse the rest.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from enum import Enum
from functools import cache
from typing import Any

from qformat import layout, scheme, tiling
from qformat.errors import FileError, QFormatError
from qformat.formats.form import Format

Json = dict[str, Any]

_KINDS: dict[type, str] = {
    layout.Field: "field",
    layout.Bits: "bits",
    scheme.Grid: "grid",
    scheme.Flat: "flat",
    scheme.Strided: "strided",
    scheme.Indexed: "indexed",
    scheme.Table: "table",
    scheme.Const: "const",
    scheme.Ref: "ref",
    scheme.Lookup: "lookup",
    scheme.Apply: "apply",
    scheme.Integers: "integers",
    scheme.Levels: "levels",
    scheme.Stored: "stored",
    scheme.Plain: "plain",
    scheme.Opaque: "opaque",
}
_BY_KIND = {kind: cls for cls, kind in _KINDS.items()}
MAX_DEPTH = 16
MAX_ITEMS = 1 << 16


def describe(form: Format) -> Json:
    """Write a format's declarations as JSON values."""
    described: Json = _write(form)
    return described


def read_format(described: object) -> Format:
    """Make a format from its description. Raises FileError where it says anything that a format cannot be."""
    try:
        found = _read(Format, described, 0)
    except FileError:
        raise
    except (QFormatError, ZeroDivisionError, OverflowError) as err:
        raise FileError(f"descriptor is not a format: {err}") from err
    assert isinstance(found, Format)  # _read gives what it was asked for
    return found


def _write(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):  # JSON has no infinities; exact either way
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    if isinstance(value, tiling.Tiling):
        return value.order
    if dataclasses.is_dataclass(value):
        kind = _KINDS.get(type(value))
        fields = {field.name: _write(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kept = {f.name: fields[f.name] for f in dataclasses.fields(value) if getattr(value, f.name) != f.default}
        return {"kind": kind, **kept} if kind else kept
    return value


def _read(hint: Any, value: object, depth: int) -> Any:
    """Read a value as the type that a declaration's field asks for."""
    if depth > MAX_DEPTH:
        raise FileError(f"descriptor is nested more than {MAX_DEPTH} deep")
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(value, list) or len(value) > MAX_ITEMS:
            raise FileError(f"descriptor holds {_name(value)}, expected a list of at most {MAX_ITEMS}")
        return tuple(_read(typing.get_args(hint)[0], item, depth + 1) for item in value)
    if origin in (types.UnionType, typing.Union):
        return _read_kind(typing.get_args(hint), value, depth)
    if hint is float:
        return _read_float(value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if not isinstance(value, str) or value not in {item.value for item in hint}:
            raise FileError(f"descriptor names operation {value!r}, expected one of {[item.value for item in hint]}")
        return hint(value)
    if hint is tiling.Tiling:
        return tiling.Tiling(_read(str, value, depth))
    if dataclasses.is_dataclass(hint):
        return _read_fields(typing.cast(type, hint), value, depth)
    if type(value) is not hint or (hint is int and abs(typing.cast(int, value)) >= 1 << 62):
        raise FileError(f"descriptor holds {_name(value)}, expected {hint.__name__}")
    return value


def _read_kind(choices: tuple[Any, ...], value: object, depth: int) -> Any:
    kind = value.get("kind") if isinstance(value, dict) else None
    cls = _BY_KIND.get(kind) if isinstance(kind, str) else None
    if cls is None or cls not in choices:
        expected = [_KINDS[choice] for choice in choices]
        raise FileError(f"descriptor holds kind {kind!r}, expected one of {expected}")
    return _read_fields(cls, {k: v for k, v in typing.cast(Json, value).items() if k != "kind"}, depth)


def _read_fields(cls: type, value: object, depth: int) -> Any:
    hints = _hints(cls)
    if not isinstance(value, dict) or not set(value) <= set(hints):
        found = sorted(set(value) - set(hints)) if isinstance(value, dict) else _name(value)
        raise FileError(f"descriptor of a {cls.__name__.lower()} holds {found}, expected {sorted(hints)}")
    required = {f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING}
    if not required <= set(value):
        raise FileError(f"descriptor of a {cls.__name__.lower()} lacks {sorted(required - set(value))}")
    return cls(**{name: _read(hints[name], item, depth + 1) for name, item in value.items()})


def _read_float(value: object) -> float:
    if isinstance(value, float) or (type(value) is int and abs(value) < 1 << 53):
        return float(value)
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    raise FileError(f"descriptor holds {_name(value)}, expected a number")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _name(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a string", int: "an integer"}.get(type(value), type(value).__name__)
