"""The metadata of one file: read it, change a key, take keys over from another file.

Decides what a change means for the header and for the data behind it, and what a person should hear of it. The tensors, their
order and every other key stay the bytes they are. How the bytes reach the disk is `rewrite`'s.

One file is edited at a time: of a split model or a sharded checkpoint, the part that is named. A `.qfmt` is read, not
edited: its metadata lies under the digests that make it the file it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qconvert.containers.checkpoint import sniff
from qconvert.containers.gguf import GGUFFile
from qconvert.containers.gguf_types import ALIGNMENT_KEY, STRING, VALUE_TYPES
from qconvert.containers.gguf_values import GGUFArray, KeyValue
from qconvert.containers.safetensors import SafetensorsFile
from qconvert.destination import check_paths
from qconvert.meta_header import File, Pairs, encoded, open_one, order_of, pairs_of, plan_header
from qconvert.meta_values import find_type, guess_type, parse_pair, short_name
from qconvert.opening import gguf_header, open_qfmt
from qconvert.rewrite import Rewrite, write_copy, write_in_place
from qformat.errors import QFormatError, UsageError, show
from qformat.file.metadata import Typed
from qformat.file.read import open_file
from qformat.store import plain

if TYPE_CHECKING:
    from qconvert.conversion import Progress

How: TypeAlias = Literal["in place", "by copy", "unchanged"]
OWN_KEYS = (ALIGNMENT_KEY, "split.no", "split.count", "split.tensors.count")  # what a file says of itself, not of its model
_SHARD = re.compile(r".*-(\d{5})-of-(\d{5})\.safetensors")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value.

    kind : short name of the type: "u32", "str", "[f32]"
    value: int, float, bool or str; for arrays a GGUFArray, decoded on demand, or a list
    """

    key: str
    kind: str
    value: Any


@dataclass(frozen=True, slots=True)
class Edit:
    """What an edit did.

    path   : the file that holds the change
    how    : header written over, whole file written anew, or nothing to do
    changes: what each key was and is; None where it did not or does not exist
    notices: what a person should hear although nothing was lost
    """

    path: Path
    how: How
    changes: tuple[tuple[Entry | None, Entry | None], ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where an edit goes: into the file itself, or to a copy at `path`, which must not exist unless `force`."""

    path: Path | None = None
    force: bool = False
    progress: Progress = lambda what, done, total: None


ITSELF = Destination()
# Changes the pairs of an open file and gives notices.
Alter: TypeAlias = Callable[[File, Pairs], list[str]]


def read_entries(path: str | Path) -> dict[str, Entry]:
    """Read all metadata of one file, by key in file order.

    path: a GGUF, safetensors or `.qfmt` file

    Raises FileError for anything else, UsageError for an index of several files.
    """
    if sniff(path) != "qfmt":
        with open_one(Path(path)) as file:
            return {key: _entry(pair) for key, pair in pairs_of(file).items()}
    with open_qfmt(Path(path), verify=True) as model:
        header = gguf_header(model)
    if header is not None:
        return {key: _entry(pair) for key, pair in header.key_values.items()}
    with open_file(path) as stored:
        return {key: Entry(key, _short(typed), plain(typed)) for key, typed in stored.metadata.items()}


def find_entry(path: str | Path, key: str) -> Entry:
    """Read one key. Raises UsageError, naming keys like it, when there is none."""
    entries = read_entries(path)
    _require(entries, key, Path(path))
    return entries[key]


def set_value(path: str | Path, key: str, text: str, kind: str | None = None, to: Destination = ITSELF) -> Edit:
    """Set a key to the value that a text says.

    text: as `meta_values.parse_pair` reads it
    kind: type; by default the one the key has, for a new key a guess that a notice tells

    Raises UsageError for text that is not of the type, or a value that breaks the file; FileError as readers and writers do.
    """

    def alter(file: File, pairs: Pairs) -> list[str]:
        old, guessed = pairs.get(key), False
        if kind is not None:
            value_type, element_type = find_type(kind)
        elif old is not None:
            value_type, element_type = old.value_type, old.element_type
        else:
            guessed = isinstance(file, GGUFFile)
            value_type, element_type = guess_type(text) if guessed else STRING, None
        pairs[key] = parse_pair(key, text, value_type, element_type, order_of(file))
        return [f"'{key}' is new and stored as {short_name(value_type)}; --type chooses another"] if guessed else []

    return _edit(Path(path), alter, to)


def remove(path: str | Path, keys: Sequence[str], to: Destination = ITSELF) -> Edit:
    """Remove keys. Raises UsageError when one does not exist."""

    def alter(file: File, pairs: Pairs) -> list[str]:
        for key in dict.fromkeys(keys):
            _require(pairs, key, file.path)
            del pairs[key]
        return []

    return _edit(Path(path), alter, to)


def copy(src: str | Path, dst: str | Path, include: Sequence[str] = (), to: Destination = ITSELF) -> Edit:
    """Copy keys from one file into another; those that `dst` has are replaced where they stand.

    include: globs of keys, by default all. What a file says of itself, its alignment and its place in a split, is copied
             only where it is named in full.

    Raises UsageError when a glob matches nothing, or `dst` cannot hold a value.
    """

    def alter(file: File, pairs: Pairs) -> list[str]:
        if to.path is not None:
            check_paths((Path(src),), to.path, to.force)
        with open_one(Path(src)) as source:
            theirs = pairs_of(source)
        for glob in include:
            if not any(fnmatchcase(key, glob) for key in theirs):
                raise UsageError(f"no key matches {show(glob, quote=True)} among {len(theirs)}", path=src)
        for key, pair in theirs.items():
            if key in include or (key not in OWN_KEYS and any(fnmatchcase(key, glob) for glob in include or ("*",))):
                pairs[key] = pair
        return []

    return _edit(Path(dst), alter, to)


def _edit(path: Path, alter: Alter, to: Destination) -> Edit:
    """Change a file's pairs and write what follows from it, as little as is safe."""
    with open_one(path) as file:
        before, order = pairs_of(file), order_of(file)
        after = dict(before)
        try:
            notices = alter(file, after)
            rewrite = plan_header(file, after)
        except QFormatError as err:
            err.path = err.path or str(path)
            raise
        old, new = encoded(before, order), encoded(after, order)
        changed = [key for key in old | new if old.get(key) != new.get(key)]
        both = tuple((_kept(before.get(key)), _kept(after.get(key))) for key in changed)
        notices += _notices(file, after, changed)
        how = _write(path, rewrite, to) if changed or to.path else "unchanged"
        return Edit(to.path or path, how, both, tuple(notices))


def _write(path: Path, rewrite: Rewrite, to: Destination) -> How:
    source = Path(os.path.realpath(path))  # a link stays a link: what it leads to is edited
    if to.path is not None:
        check_paths((path,), to.path, to.force)
    elif not os.access(source, os.W_OK):
        raise UsageError("cannot be written: permission denied", path=path)
    elif rewrite.fits:
        write_in_place(source, rewrite)
        return "in place"
    write_copy(source, to.path or source, rewrite, to.progress)
    return "by copy"


def _notices(file: File, pairs: Pairs, changed: Sequence[str]) -> Iterator[str]:
    """Say what a change means to those who read the file."""
    if isinstance(file, SafetensorsFile):
        if shard := _SHARD.fullmatch(file.path.name):
            yield f"this is file {int(shard[1])} of {int(shard[2])}; the others are left as they are"
        if pairs and "format" not in pairs:
            yield "metadata without 'format': transformers loads such a file only with format set to pt"
        return
    count = pairs["split.count"].value if "split.count" in pairs else 1
    if isinstance(count, int) and count > 1:
        yield f"this is one of {count} files of a split model; the others are left as they are"
    for key in changed:
        if key == "general.architecture":
            yield "runtimes choose the graph, and the keys and tensors they look for, by 'general.architecture'"
        elif key.startswith("split."):
            yield f"'{key}' must agree with the other files of a split model"


def _entry(pair: KeyValue) -> Entry:
    return Entry(pair.key, short_name(pair.value_type, pair.element_type), pair.value)


def _kept(pair: KeyValue | None) -> Entry | None:
    """Keep what a key says from being written over, in the file that its array is a view of."""
    if pair is None:
        return None
    entry, value = _entry(pair), pair.value
    return replace(entry, value=replace(value, raw=memoryview(bytes(value.raw)))) if isinstance(value, GGUFArray) else entry


def _require(keys: Mapping[str, object], key: str, path: Path) -> None:
    if key not in keys:
        near = get_close_matches(key, list(keys), 3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise UsageError(f"no such key among {len(keys)}{hint}", path=path, field=key, expected=near)


def _short(typed: Typed) -> str:
    """Name the type of a `.qfmt` value as that of a key-value."""
    number = {kind.name: type_id for type_id, kind in VALUE_TYPES.items()}
    return short_name(number[typed.type], None if typed.items is None else number[typed.items])
