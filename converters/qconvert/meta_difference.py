"""What two checkpoints say of themselves, compared: key-values with their types, string metadata, config.json, files beside.

Decides what is comparable: key-values with key-values, and what lies in folders with what lies in folders. Key-values and
config.json say the same in other words, so these are never compared. Must not know what a key means, nor tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from qconvert.containers.gguf_header import Header
from qconvert.containers.gguf_values import GGUFArray, KeyValue
from qconvert.containers.strict_json import parse_json
from qconvert.meta_values import short_name
from qconvert.opening import gguf_header
from qformat.errors import FileError, show
from qformat.model import Model

CONFIG = "config.json"
MAX_SHOWN = 60  # characters of a value
OTHER_WORDS = "metadata is not compared: key-values and config.json say the same in other words"
ONE_SIDED = "files beside the weights are not compared: one side has none"


@dataclass(frozen=True, slots=True)
class Changed:
    """A key that both have and that says something else: its two values as text, long ones cut."""

    key: str
    one: str
    other: str


@dataclass(frozen=True, slots=True)
class MetaDifference:
    """What two checkpoints say of themselves otherwise.

    compared : kinds of facts that both have: "key-values", "metadata", "files"
    only_one, only_other : keys that only one has; those of config.json begin with its name, a file's is its name
    changed  : keys that both have
    notices  : what could not be compared, and why
    """

    compared: tuple[str, ...]
    only_one: tuple[str, ...] = ()
    only_other: tuple[str, ...] = ()
    changed: tuple[Changed, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def is_same(self) -> bool:
        """Whether nothing that was compared differs."""
        return not (self.only_one or self.only_other or self.changed)


@dataclass(frozen=True, slots=True)
class Fact:
    """One value: `same` is equal where it is equal; `elements` are those of an array, made when they are asked for."""

    same: object
    text: str
    elements: Callable[[], Sequence[Any]] | None = None


Facts = Mapping[str, Fact]


def compare_metadata(one: Model, other: Model) -> MetaDifference:
    """Compare what two open checkpoints say of themselves, beside their tensors.

    Raises FileError where one of them is not what its container says.
    """
    headers = gguf_header(one), gguf_header(other)
    if (headers[0] is None) != (headers[1] is None):
        return MetaDifference((), notices=(OTHER_WORDS,))
    kind = "metadata" if headers[0] is None else "key-values"
    mine, theirs = (_said(model, header) for model, header in zip((one, other), headers, strict=True))
    if bool(one.assets) != bool(other.assets):
        return _compare((kind,), mine, theirs, (ONE_SIDED,))
    files = _in_files(one), _in_files(other)
    return _compare((kind, "files") if one.assets else (kind,), {**mine, **files[0]}, {**theirs, **files[1]})


def _compare(compared: tuple[str, ...], mine: Facts, theirs: Facts, notices: tuple[str, ...] = ()) -> MetaDifference:
    changed = [
        _changed(key, fact, theirs[key]) for key, fact in mine.items() if key in theirs and fact.same != theirs[key].same
    ]
    only_one, only_other = (tuple(k for k in these if k not in those) for these, those in ((mine, theirs), (theirs, mine)))
    return MetaDifference(compared, only_one, only_other, tuple(changed), notices)


def _changed(key: str, mine: Fact, theirs: Fact) -> Changed:
    """Show two values; of arrays, the first element that differs as well."""
    are_arrays = mine.elements is not None and theirs.elements is not None
    for at, (one, other) in enumerate(zip_longest(_elements(mine), _elements(theirs)) if are_arrays else ()):
        if repr(one) != repr(other):
            return Changed(key, f"{mine.text}, [{at}] is {_shown(one)}", f"{theirs.text}, [{at}] is {_shown(other)}")
    return Changed(key, mine.text, theirs.text)


def _elements(fact: Fact) -> Sequence[Any]:
    """Give the elements of an array; none where they are no text, which is no fault of what differs."""
    try:
        return fact.elements() if fact.elements is not None else ()
    except FileError:
        return ()


def _said(model: Model, header: Header | None) -> Facts:
    """Give what a file says in its header."""
    if header is None:
        return {key: _of_json(value) for key, value in model.metadata.items()}
    return {key: _of_pair(pair) for key, pair in header.key_values.items()}


def _of_pair(pair: KeyValue) -> Fact:
    """Make a fact of a typed pair: its type and its bytes, in one byte order."""
    kind, value = short_name(pair.value_type, pair.element_type), pair.value
    same = (pair.value_type, b"".join(pair.encode("<")[1:]))
    return (
        Fact(same, f"{kind} of {len(value)}", value.values)
        if isinstance(value, GGUFArray)
        else Fact(same, f"{kind} {_shown(value)}")
    )


def _of_json(value: object) -> Fact:
    """Make a fact of a JSON value; 1, 1.0 and true are three."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return Fact(text, show(text, limit=MAX_SHOWN))


def _in_files(model: Model) -> Facts:
    """Give the keys of config.json, and every other file as a whole."""
    found: dict[str, Fact] = {}
    for name, read in model.assets.items():
        data = bytes(read())
        if name == CONFIG and (config := _parsed(data)) is not None:
            found |= {f"{name}: {key}": _of_json(value) for key, value in _leaves(config)}
        else:
            found[name] = Fact(data, f"{len(data)} bytes")
    return found


def _parsed(data: bytes) -> dict[str, Any] | None:
    """Read a JSON object; None for anything else, which is then compared as bytes."""
    try:
        found = parse_json(data, path=CONFIG, what="config")
    except FileError:
        return None
    return found if isinstance(found, dict) else None


def _leaves(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Walk over what objects within objects hold, by dotted key; the parser limits their depth."""
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _leaves(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item


def _shown(value: object) -> str:
    return show(repr(value), limit=MAX_SHOWN)
