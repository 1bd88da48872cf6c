"""Comparing two tensors: whether they hold the same bytes; which weights differ, and by how much, whatever either is kept in.

Bytes are read, unless digests say that they are equal. Values are equal that are the same number, with one zero and one NaN, in
float32, or in a wider type where float32 does not contain an element type; two tensors of one such type are compared by their
bytes, as their value digests are. Works piece by piece; must not know names, files or what a user wants to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from qconvert.cutting import byte_ranges
from qconvert.digest import RAW, plain_values
from qformat.arrays import ByteSource, Part
from qformat.errors import NotExact, about
from qformat.file.same import is_same_part
from qformat.fold import narrower, refold
from qformat.model import Model
from qformat.scheme import Opaque, Plain
from qformat.store import PlaneBytes
from qformat.tensor import PackedTensor, format_of
from qformat.threads import spread

Array = NDArray[Any]
R = TypeVar("R")
# Of a tile in which weights differ: its first weight, values of both, flat, and the places that differ.
Differing: TypeAlias = tuple[int, Array, Array, NDArray[np.intp]]
F32 = "float32"

# In what values are compared, the first that holds both sides, and the element types that each adds to those of float32.
HOLDS = {F32: (), "float64": ("float64", "int32", "uint32"), "complex64": ("complex64",), "object": RAW}


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far the weights of one tensor are from another's, computed in float64.

    n_different : weights that are not equal
    max_abs     : largest |b - a|; NaN where one of them is NaN and the other not; 0 where all are equal
    max_rel     : largest |b - a| / |a|; infinite where a is zero or infinite, NaN as above
    """

    n_different: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0


def compare_values(one: Model, other: Model) -> int:
    """Decode both models and compare every weight of every tensor.

    returns: tensors compared

    Raises NotExact naming the first tensor that only one has, or the first weight that differs.
    """
    for mine, theirs in ((one, other), (other, one)):
        missing = next((name for name in mine if name not in theirs), None)
        if missing is not None:
            raise NotExact(f"no such tensor in {theirs.path}", path=mine.path, tensor=missing)
    for name, tensor in one.items():
        with about(one.path, name):
            where = first_difference(tensor, other[name])
        if where is not None:
            raise NotExact(where, path=one.path, tensor=name)
    return len(one)


def first_difference(one: PackedTensor, other: PackedTensor) -> str | None:
    """Say where two tensors differ first; None where they are equal, signed zeros and NaN payloads aside."""
    if one.shape != other.shape:
        return f"shape {one.shape}, the other has {other.shape}"
    with closing(spread(_call, first_differences(one, other))) as found:
        return next((where for where in found if where is not None), None)


def first_differences(one: PackedTensor, other: PackedTensor) -> Iterator[Callable[[], str | None]]:
    """Give the pieces of work that `first_difference` of two tensors of one shape is, to be done in any order."""

    def say(look: Callable[[], Differing | None]) -> str | None:
        if (found := look()) is None:
            return None
        begin, mine, theirs, places = found
        return f"weight {begin + int(places[0])} is {mine[places[0]]!s}, the other has {theirs[places[0]]!s}"

    return (partial(say, look) for look in _looks(one, other))


def deviation(one: PackedTensor, other: PackedTensor) -> Deviation:
    """Say how many weights of `other` are not those of `one`, and how far off they are.

    one, other : of one shape

    Raises UsageError where one of them cannot be decoded.
    """
    n_different, max_abs, max_rel = 0, 0.0, 0.0
    with closing(spread(_call, _looks(one, other))) as looked:
        for _, mine, theirs, places in (found for found in looked if found is not None):
            off, rel = _distances(mine[places], theirs[places])
            n_different += places.size
            max_abs, max_rel = (float(np.maximum(old, new.max())) for old, new in ((max_abs, off), (max_rel, rel)))
    return Deviation(n_different, max_abs, max_rel)


def same_format(one: PackedTensor, other: PackedTensor) -> bool:
    """Tell whether two tensors lie in byte arrays that mean the same, so that equal bytes are equal values."""
    if format_of(one).meaning != format_of(other).meaning:
        return False
    if not isinstance(one.scheme.alphabet, Opaque):
        return True
    return {part.swapped for part in one.parts} == {part.swapped for part in other.parts}  # words of a block are not known


def same_bytes(one: PackedTensor, other: PackedTensor) -> bool:
    """Tell whether two tensors of one format and shape hold the same bytes, byte order aside."""
    others = {part.form.role: part for part in other.parts}
    return all(_same_part(part, others[part.form.role]) for part in one.parts)


def _same_part(one: Part, other: Part) -> bool:
    """Tell whether two parts hold the same bytes; what digests say to be equal is not read."""
    mine, theirs = one.source, other.source
    if _digests_agree(mine, theirs):
        return True
    if mine.n_bytes != theirs.n_bytes:
        return False
    for start, stop in byte_ranges(one):
        if one.swapped == other.swapped:
            same = np.array_equal(mine.read(start, stop), theirs.read(start, stop))
        else:
            same = np.array_equal(one.ordered(start, stop), other.ordered(start, stop))
        if not same:
            return False
    return True


def _digests_agree(mine: ByteSource, theirs: ByteSource) -> bool:
    """Tell whether digests say that bytes are equal; False where there are none."""
    if not (isinstance(mine, PlaneBytes) and isinstance(theirs, PlaneBytes)):
        return False
    return is_same_part(mine.file, mine.entry, theirs.file, theirs.entry, mine.role)


def _looks(one: PackedTensor, other: PackedTensor) -> Iterator[Callable[[], Differing | None]]:
    """Give the pieces of work that comparing two tensors is: each looks at a tile, and gives what differs there."""
    kinds = _element(one), _element(other)
    is_raw = kinds[0] == kinds[1] and kinds[0] in RAW
    wide = kinds[0] if is_raw else next(name for name, held in HOLDS.items() if all(k == F32 or k in held for k in kinds))
    seen = narrower(one, format_of(other))
    pair = (one, other) if seen is one else (seen, refold(other, (seen.n_rows, seen.n_cols)))

    def look(first: int, last: int) -> Differing | None:
        mine, theirs = (_read(tensor, slice(first, last), wide) for tensor in pair)
        if mine.dtype.kind != "O" and np.array_equal(_words(mine), _words(theirs)):
            return None
        places = np.flatnonzero(_words(mine) != _words(theirs)) if is_raw else _unequal(mine, theirs)
        return (first * pair[0].n_cols, mine, theirs, places) if places.size else None

    return (partial(look, *tile) for tile in (pair[0].tiles() if one.n_weights else ()))


def _call(work: Callable[[], R]) -> R:
    return work()


def _element(tensor: PackedTensor) -> str:
    """Name the element type in which a tensor's values are defined."""
    alphabet = tensor.scheme.alphabet
    return alphabet.dtype if isinstance(alphabet, Plain) and alphabet.dtype in RAW else F32


def _read(tensor: PackedTensor, rows: slice, wide: str) -> Array:
    """Give the values of rows, flat, in a type that holds them; as Python's numbers where that is "object"."""
    values = tensor.codes(rows) if _element(tensor) in RAW else plain_values(tensor, rows)
    return np.ascontiguousarray(values).reshape(-1).astype(wide, copy=False)


def _unequal(mine: Array, theirs: Array) -> NDArray[np.intp]:
    """Give the places where numbers differ: -0 equals +0, and NaN equals NaN."""
    with np.errstate(invalid="ignore"):  # a signaling NaN
        places = np.flatnonzero(mine != theirs)
        a, b = mine[places], theirs[places]
        found: NDArray[np.intp] = places[(a == a) | (b == b)]
    return found


def _words(values: Array) -> Array:
    return values.view(f"u{values.itemsize}")


def _distances(mine: Array, theirs: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give |b - a|, and that relative to |a|, of values that differ."""
    wide = {"f": "float64", "c": "complex128"}.get(mine.dtype.kind, "object")  # integers of 64 bits keep their differences
    a, b = (values.astype(wide) for values in (mine, theirs))
    with np.errstate(all="ignore"):
        off, scale = (np.abs(found).astype(np.float64) for found in (b - a, a))
        rel = np.where((scale == 0) | np.isinf(scale), np.inf, off / scale)
    rel[off == 0], rel[np.isnan(off)] = 0.0, np.nan  # no number apart: zeros of two signs in a type that is compared by bytes
    return off, rel
