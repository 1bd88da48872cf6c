"""Comparing two tensors: whether they hold the same bytes; which weights differ, and by how much, whatever either is kept in.

Bytes are read, unless digests say that they are equal. Values are equal that are the same number, with one zero and one NaN, in
float32, or in a wider type where float32 does not contain an element type; two tensors of one such type are compared by their
bytes, as their value digests are. Works piece by piece; must not know names, files or what a user wants to count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qconvert.cutting import byte_ranges
from qconvert.digest import RAW, element_of, reader
from qformat.arrays import ByteSource, Part
from qformat.decoding import TILE_WEIGHTS, Decode
from qformat.errors import NotExact, about
from qformat.file.same import is_same_part
from qformat.fold import narrower, refold
from qformat.model import Model
from qformat.scheme import Opaque
from qformat.store import PlaneBytes
from qformat.tensor import PackedTensor, format_of
from qformat.threads import spread

Array = NDArray[Any]
# Of a tile in which weights differ: which do, counted from the tensor's first, and their values in both.
Differing: TypeAlias = tuple[NDArray[np.intp], Array, Array]
# Looks at a piece of two tensors, tile by tile; a tile is read only once those before it are done with.
Look: TypeAlias = Callable[[], Iterator[Differing]]
F32 = "float32"
PIECE_WEIGHTS = 8 * TILE_WEIGHTS  # that a thread looks at in buffers that it uses again

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
    with closing(spread(_say, _looks(one, other))) as found:
        return next((where for where in found if where is not None), None)


def first_differences(one: PackedTensor, other: PackedTensor) -> Iterator[Callable[[], str | None]]:
    """Give the pieces of work that `first_difference` of two tensors of one shape is, to be done in any order."""

    return (partial(_say, look) for look in _looks(one, other))


def deviation(one: PackedTensor, other: PackedTensor) -> Deviation:
    """Say how many weights of `other` are not those of `one`, and how far off they are.

    one, other : of one shape

    Raises UsageError where one of them cannot be decoded.
    """
    with closing(spread(_measure, _looks(one, other))) as measured:
        return reduce(_join, measured, Deviation())


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


def _looks(one: PackedTensor, other: PackedTensor) -> Iterator[Look]:
    """Give the pieces of work that comparing two tensors is."""
    kinds = element_of(one), element_of(other)
    wide = next(name for name, held in HOLDS.items() if all(k == F32 or k in held for k in kinds))
    is_raw = kinds[0] == kinds[1] and kinds[0] in RAW
    seen = narrower(one, format_of(other))
    pair = (one, other) if seen is one else (seen, refold(other, (seen.n_rows, seen.n_cols)))
    kind = kinds[0] if is_raw else wide
    reads = tuple(_widened(tensor, kind) for tensor in pair)
    pieces = pair[0].tiles(n_weights=PIECE_WEIGHTS) if one.n_weights else ()
    return (partial(_differing, reads, kind, is_raw, pair[0], *piece) for piece in pieces)


def _widened(tensor: PackedTensor, kind: str) -> Decode:
    """Bind a tensor to what reads its values into arrays of a type that holds them, "object" for Python's own numbers."""
    read, element = reader(tensor), element_of(tensor)

    def widen(first: int, last: int, out: Array) -> None:
        found = np.empty(out.shape, element)
        read(first, last, found)
        out[...] = found

    return read if element == kind else widen


def _differing(
    reads: tuple[Decode, ...], kind: str, is_raw: bool, tensor: PackedTensor, first: int, last: int
) -> Iterator[Differing]:
    """Compare rows [first, last) of two tensors of the shape of one; of one raw type by their bytes."""
    n_cols, tiles = tensor.n_cols, tuple(tensor.tiles(first, last))
    buffers = [np.empty((tiles[0][1] - first, n_cols), kind) for _ in reads]
    for low, high in tiles:
        for read, buffer in zip(reads, buffers, strict=True):
            read(low, high, buffer[: high - low])
        mine, theirs = (buffer[: high - low].reshape(-1) for buffer in buffers)
        if kind != "object" and np.array_equal(_words(mine), _words(theirs)):
            continue
        places = np.flatnonzero(_words(mine) != _words(theirs)) if is_raw else _unequal(mine, theirs)
        if places.size:
            yield low * n_cols + places, mine[places], theirs[places]


def _say(look: Look) -> str | None:
    if (found := next(look(), None)) is None:
        return None
    (where, *_), (mine, *_), (theirs, *_) = found
    return f"weight {where} is {mine!s}, the other has {theirs!s}"


def _measure(look: Look) -> Deviation:
    return reduce(_join, (_of_tile(*found) for found in look()), Deviation())


def _of_tile(places: NDArray[np.intp], mine: Array, theirs: Array) -> Deviation:
    off, rel = _distances(mine, theirs)
    return Deviation(places.size, float(off.max()), float(rel.max()))


def _join(one: Deviation, other: Deviation) -> Deviation:
    """Give the deviation of two pieces together; a NaN stays one."""
    worst = (float(np.maximum(*pair)) for pair in ((one.max_abs, other.max_abs), (one.max_rel, other.max_rel)))
    return Deviation(one.n_different + other.n_different, *worst)


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
