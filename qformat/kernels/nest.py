"""From a field's bit planes to one loop nest: which bytes hold a value, and in which order to visit the values.

The planes of a field order their items differently. Cut every order at the others' boundaries and one set of axes serves
all of them, so that each value is put together in one place and stored once. An axis along which every plane advances by
whole bytes becomes a loop; along the rest the shifts change, and each position is a lane with shifts of its own.
Knows nothing of numba: a nest is integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import gcd, lcm, prod

from qformat.layout import Bits, Plane, bits_of
from qformat.order import Strides

MAX_LOOPS = 3


@dataclass(frozen=True, slots=True)
class Loop:
    """An axis of the nest: its size, values per step, and bytes per step in each plane."""

    size: int
    step: int
    bytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bits of a value that lie in one byte: `(block[byte] >> right & mask) << up`."""

    byte: int
    right: int
    mask: int
    up: int


NOTHING = Piece(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Lane:
    """One value at the origin of the loops: its index and, for each plane, its pieces, padded to equal number."""

    item: int
    pieces: tuple[tuple[Piece, ...], ...]


@dataclass(frozen=True, slots=True)
class Nest:
    """Three loops, slowest first, around the lanes."""

    loops: tuple[Loop, ...]
    lanes: tuple[Lane, ...]


@dataclass(frozen=True, slots=True)
class _Axis:
    size: int
    step: int
    bits: tuple[int, ...]


@lru_cache(maxsize=1024)
def nest(field: Bits) -> Nest:
    """Derive the loop nest of a field."""
    axes = _refine(field)
    if axes is None:
        runs = [plane.strides(field.count).positions() for plane in field.planes]
        return _finish(field, [], list(enumerate(zip(*runs, strict=True))))
    loops, lane_axes = [], []
    for axis in axes:
        turn = lcm(*(8 // gcd(8, bits) for bits in axis.bits))  # steps after which every plane is at a byte again
        if axis.size % turn:
            lane_axes.append(axis)
            continue
        loops.append(_Axis(axis.size // turn, axis.step * turn, tuple(bits * turn for bits in axis.bits)))
        lane_axes.append(_Axis(turn, axis.step, axis.bits))
    loops = _merge([axis for axis in loops if axis.size > 1])
    lanes = [(0, tuple(plane.strides(field.count).base for plane in field.planes))]
    for axis in loops[:-MAX_LOOPS] + lane_axes:
        lanes = [
            (item + i * axis.step, tuple(bit + i * step for bit, step in zip(bits, axis.bits, strict=True)))
            for item, bits in lanes
            for i in range(axis.size)
        ]
    return _finish(field, loops[-MAX_LOOPS:], sorted(lanes))


@lru_cache(maxsize=1024)
def reach(field: Bits) -> int:
    """Count the bytes of a block up to the last one that a field touches."""
    return max(1 + bit // 8 for bit in bits_of(field))


def _refine(field: Bits) -> list[_Axis] | None:
    """Cut the axes of all planes at each other's boundaries, slowest first; None where they do not nest."""
    runs = [plane.strides(field.count) for plane in field.planes]
    cuts = sorted({prod(run.sizes[i:]) for run in runs for i in range(len(run.sizes) + 1)})
    axes = []
    for low, high in pairwise(cuts):
        if high % low:
            return None
        axes.append(_Axis(high // low, low, tuple(_step(run, low, high) for run in runs)))
    return axes[::-1]


def _step(run: Strides, low: int, high: int) -> int:
    """Give the bits between items `low` apart, within the one axis of a run that covers [low, high)."""
    inside = 1
    for size, step in zip(reversed(run.sizes), reversed(run.steps), strict=True):
        if inside <= low and high <= inside * size:
            return step * (low // inside)
        inside *= size
    raise AssertionError(f"no axis of {run} covers {low} to {high}")


def _merge(axes: list[_Axis]) -> list[_Axis]:
    """Join neighbouring axes that advance as one."""
    merged: list[_Axis] = []
    for axis in axes:
        outer = merged[-1] if merged else None
        if outer and (outer.step, *outer.bits) == tuple(axis.size * n for n in (axis.step, *axis.bits)):
            merged[-1] = _Axis(outer.size * axis.size, axis.step, axis.bits)
        else:
            merged.append(axis)
    return merged


def _finish(field: Bits, loops: list[_Axis], lanes: list[tuple[int, tuple[int, ...]]]) -> Nest:
    none = Loop(1, 0, (0,) * len(field.planes))
    found = tuple(Loop(axis.size, axis.step, tuple(bits // 8 for bits in axis.bits)) for axis in loops)
    cut = [(item, [_pieces(plane, bit) for plane, bit in zip(field.planes, bits, strict=True)]) for item, bits in lanes]
    most = max(len(pieces) for _, planes in cut for pieces in planes)
    return Nest(
        (none,) * (MAX_LOOPS - len(found)) + found,
        tuple(Lane(item, tuple((*pieces, *(NOTHING,) * (most - len(pieces))) for pieces in planes)) for item, planes in cut),
    )


def _pieces(plane: Plane, bit: int) -> tuple[Piece, ...]:
    """Cut the bits [bit, bit + plane.bits) of a block at its bytes."""
    pieces = []
    up, left = plane.shift, plane.bits
    while left:
        n_bits = min(left, 8 - bit % 8)
        pieces.append(Piece(bit // 8, bit % 8, (1 << n_bits) - 1, up))
        bit, up, left = bit + n_bits, up + n_bits, left - n_bits
    return tuple(pieces)
