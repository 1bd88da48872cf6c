"""Parameters in two levels: one value for a group, and one that many groups share, by which it is multiplied or divided.

Reads from declarations which they are: small floats beside a number of a whole tensor (NVFP4), small integers beside a float
for some groups of a row (K-quants). Of the latter it finds the levels of values that come without them; of the former
`tensor_scale` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.represent import represent
from qformat.affine import ONE
from qformat.bits import DTYPES
from qformat.evaluate import F32
from qformat.scheme import Apply, Grid, Op, Operand, Ref, Scheme, refs

AXIS = 1 << 40  # more columns than a group has


@dataclass(frozen=True, slots=True)
class Held:
    """How a format keeps a parameter.

    name     : what is stored for every group
    inverse  : it is one over the parameter
    coarse   : what many groups share beside it; None: nothing
    op       : what is done with the two
    """

    name: str
    inverse: bool = False
    coarse: Operand | None = None
    op: Op = Op.MUL


def read_held(scheme: Scheme, operand: Operand | None) -> Held | None:
    """Read how a parameter is kept: alone, or in two levels; None where it is anything else."""
    if isinstance(operand, Ref):
        return Held(operand.name)
    if not isinstance(operand, Apply) or operand.op not in (Op.MUL, Op.DIV):
        return None
    left, right = operand.left, operand.right
    if operand.op is Op.DIV and left == ONE and isinstance(right, Ref):
        return Held(right.name, inverse=True)
    if operand.op is Op.MUL and isinstance(right, Ref) and _reach(scheme, left) > _reach(scheme, right):
        left, right = right, left
    both = isinstance(left, Ref) and len(refs(right)) == 1
    return Held(left.name, coarse=right, op=operand.op) if both and isinstance(left, Ref) else None


def multiples(array: F32, per: int, dtype: str, low: int, high: int) -> tuple[F32, F32, NDArray[np.bool_]]:
    """Say values as integers of a range, times one float for every `per` of them.

    array   : (lines, values), a multiple of `per` in each
    dtype   : of the floats
    returns : floats (lines, values / per), integers (lines, values), and which of the floats there is no such choice for

    Complete: with g the greatest number of which all values are multiples, a float for all of them is g over an integer, and
    the values over g are as large as the range allows at most. Every such integer is tried, on both sides of zero.
    """
    blocks = array.reshape(-1, per).astype(np.float64)
    wide = max(-low, high)
    bits = DTYPES[dtype].mantissa + wide.bit_length() + 2  # that a value of any choice has at most
    with np.errstate(all="ignore"):
        unit = np.frexp(np.abs(blocks).max(axis=1, initial=0))[1] - bits
        scaled = np.ldexp(blocks, -unit[:, None])
        can = (np.isfinite(scaled) & (np.rint(scaled) == scaled)).all(axis=1)
    whole = np.where(can[:, None], scaled, 0).astype(np.int64)
    step = np.gcd.reduce(whole, axis=1)
    counts = whole // np.maximum(step, 1)[:, None]
    floats, integers, solved = (
        np.zeros(len(blocks), np.float32),
        np.zeros(blocks.shape, np.float32),
        np.zeros(len(blocks), bool),
    )
    left, most, exact = np.flatnonzero(can), np.abs(counts).max(axis=1, initial=0), np.ldexp(step.astype(np.float64), unit)
    for times in (sign * n for n in range(1, wide + 1) for sign in (1, -1)):
        left = left[most[left] * abs(times) <= wide]
        if not left.size:
            break
        tried = counts[left] * times
        with np.errstate(all="ignore"):
            held = represent((exact[left] / times).astype(np.float32), dtype)[1]
            fits = (held.astype(np.float64) * times == exact[left]) & (tried >= low).all(axis=1) & (tried <= high).all(axis=1)
        taken = left[fits]
        floats[taken], integers[taken], solved[taken] = held[fits], tried[fits], True
        left = left[~fits]
    n_lines = len(array)
    return floats.reshape(n_lines, -1), integers.reshape(array.shape), ~solved.reshape(n_lines, -1)


def _reach(scheme: Scheme, operand: Operand) -> int:
    """Say of how many weights an operand is shared at most, whole axes being longer than any group."""
    groups = [scheme.param(name).group for name in refs(operand)]
    grids = [group for group in groups if isinstance(group, Grid)]
    return max(((grid.rows or AXIS) * (grid.cols or AXIS) for grid in grids), default=0)
