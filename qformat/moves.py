"""Finds what a kernel takes at a time from one packed form to another.

From the declarations of both come the bits of the codes, where they go, and the values that go over as they are. Whether codes
mean the same in both is the caller's to know. Knows nothing of numba.
"""

from __future__ import annotations

from functools import lru_cache
from math import lcm

from qformat.bits import DTYPES
from qformat.formats.form import PartForm
from qformat.layout import CODES
from qformat.readings import MOST, Maker, is_stored
from qformat.scheme import Flat, Grid, Scheme
from qformat.units import LEAST, Move, Packed, Whole

WIDE = 256  # weights: a group up to which a unit is a whole one

# A scheme, and the parts that hold its codes and parameters.
Side = tuple[Scheme, tuple[PartForm, ...]]


@lru_cache(maxsize=256)
def move_of(one: Side, other: Side, n_cols: int, least: int = LEAST) -> tuple[Move, tuple[str, ...], tuple[str, ...]] | None:
    """Derive how rows of `n_cols` columns go from one form to another.

    least  : weights that a unit is a multiple of, itself a multiple of 32
    returns: the move, the roles of its sources, those of its targets; a parameter that has a part of its own and no place in
             a unit is not among them. None where no unit holds the codes of both, or a target has bytes that nothing fills
    """
    here, there = (next(part for part in parts if CODES in part.layout.holds) for _, parts in (one, other))
    if not is_stored(here) or not is_stored(there) or there.layout.codes is None:
        return None
    groups = {param.name: param.group for param in other[0].params if any(param.name in part.layout.holds for part in other[1])}
    n_weights = lcm(here.layout.n_weights, there.layout.n_weights, least)
    for group in groups.values():
        wider = lcm(n_weights, group.n_weights if isinstance(group, Flat) else group.cols if isinstance(group, Grid) else 1)
        n_weights = wider if 0 < wider <= WIDE and n_cols % wider == 0 else n_weights
    if n_cols % n_weights or n_weights > MOST:
        return None
    known = [param.name for param in one[0].params]
    tried = [name for name in groups if name in known and _goes_over(one, other, name, n_cols, n_weights)]
    source, target = (Maker(scheme, {p.layout.holds: p for p in parts}, n_cols, n_weights) for scheme, parts in (one, other))
    codes, to = source.codes(here), target.codes(there)
    copies = tuple((source.whole(name), target.whole(name)) for name in tried)
    if not isinstance(to, Packed) or not set(there.layout.holds) <= {CODES, *tried} or not all(source.roles):
        return None
    move = Move(n_weights, tuple(source.sources), tuple(target.sources), codes, to, copies)
    return (move, tuple(source.roles), tuple(target.roles)) if _fills(move) else None


def _goes_over(one: Side, other: Side, name: str, n_cols: int, n_weights: int) -> bool:
    """Tell whether a parameter has whole values in both, as many and as wide, for each row."""
    ways = [Maker(scheme, {p.layout.holds: p for p in parts}, n_cols, n_weights) for scheme, parts in (one, other)]
    here, there = (made.stored(name) for made in ways)
    if not isinstance(here, Whole) or not isinstance(there, Whole) or len(here.at) != len(there.at):
        return False
    steps = all(made.sources[found.source].rows == 1 for made, found in zip(ways, (here, there), strict=True))
    return steps and DTYPES[here.dtype].bits == DTYPES[there.dtype].bits


def _fills(move: Move) -> bool:
    """Tell whether every byte of every target is written."""
    written: list[set[int]] = [set() for _ in move.targets]
    for plane in move.to.planes:
        for position in plane.positions:
            written[move.to.source].update(range(position // 8, (position + plane.bits - 1) // 8 + 1))
    for _, there in move.copies:
        width = DTYPES[there.dtype].bits // 8
        written[there.source].update(at + i for at in there.at for i in range(width))
    return all(len(found) == target.n_bytes for found, target in zip(written, move.targets, strict=True))
