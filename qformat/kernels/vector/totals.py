"""Sums of magnitudes, added up one after the other: a vector of groups side by side, as a sum in order cannot be cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba.core import cgutils

from qformat.kernels.vector.ir import F32, I32, I64, SIZE, Value, pick, splat, vector

# Gives so many weights from one on, as float32.
Weights = Callable[[Value, int], Value]


def totals(b: ir.IRBuilder, weights: Weights, firsts: Sequence[Value], n_weights: Value) -> Value:
    """Emit the sums of several groups, a vector of float32.

    firsts    : number of the first weight of each group, a power of two of them
    n_weights : of each, a multiple of their number
    """
    n = len(firsts)
    place = cgutils.alloca_once(b, vector(F32, n))  # type: ignore[no-untyped-call]
    b.store(splat(F32, 0.0, n), place)
    count = b.udiv(n_weights, ir.Constant(I64, n))
    with cgutils.for_range(b, count, intp=I64) as loop:
        at = b.mul(loop.index, ir.Constant(I64, n))
        total = b.load(place)
        for column in _turned(b, [_magnitudes(b, weights(b.add(first, at), n)) for first in firsts]):
            total = b.fadd(total, column)
        b.store(total, place)
    return b.load(place)


def _turned(b: ir.IRBuilder, rows: list[Value]) -> list[Value]:
    """Turn rows into columns: blocks beside the diagonal change places, of one value at first, then of two, and so on."""
    n, size = len(rows), 1
    while size < n:
        upper = [lane if lane & size == 0 else n + lane - size for lane in range(n)]
        lower = [lane + size if lane & size == 0 else n + lane for lane in range(n)]
        pairs = [(i, i ^ size, upper if i & size == 0 else lower) for i in range(n)]
        rows = [pick(b, rows[min(i, j)], lanes, rows[max(i, j)]) for i, j, lanes in pairs]
        size *= 2
    return rows


def _magnitudes(b: ir.IRBuilder, values: Value) -> Value:
    n = values.type.count
    bits = b.and_(b.bitcast(values, vector(I32, n)), splat(I32, SIZE, n))
    return b.bitcast(bits, vector(F32, n))
