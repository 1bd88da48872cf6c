"""Finds extreme values of groups of float32 by integer comparisons of their bits, which is where they are fast.

As signed integers floats of at least +0 stand in order above all others; as unsigned ones those with a sign stand above all
others, the most negative last. Zeros, and a tie between a value and its negative, are told apart by a second look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir
from numba.core import cgutils

from qformat.kernels.vector.ir import I32, I64, SIZE, Value, call, pick, splat, vector

WIDEST = 32  # weights at a time

# Gives so many weights from one on, as float32.
Weights = Callable[[Value, int], Value]


def extremes(b: ir.IRBuilder, weights: Weights, n_weights: Value, width: int, names: frozenset[str]) -> dict[str, Value]:
    """Emit a look at the weights of a group.

    n_weights : i64, a multiple of `width`
    names     : of `qformat.coding.Name` that are wanted
    returns   : their bits by name, i32; "size", the largest bits but the sign, always among them
    """
    if names <= {"magnitude"}:
        (size,) = _reduce(b, weights, n_weights, width, ("umax",), SIZE)
        return {"magnitude": size, "size": size}
    ranges = names & {"least", "most"}
    reductions = ("smax", "umax", "smin", "umin") if ranges else ("smax", "umax")
    most, least, *inner = _reduce(b, weights, n_weights, width, reductions)
    zero = ir.Constant(I32, 0)
    high = b.select(b.icmp_signed(">", most, zero), most, zero)
    depth = b.select(b.icmp_signed("<", least, zero), b.and_(least, ir.Constant(I32, SIZE)), zero)
    low = b.select(b.icmp_unsigned("!=", depth, zero), least, zero)
    deeper = b.icmp_unsigned(">", depth, high)
    size = b.select(deeper, depth, high)
    found = {"high": high, "low": low, "magnitude": size, "size": size}
    if "largest" in names:
        tied = b.and_(b.icmp_unsigned("==", depth, high), b.icmp_unsigned("!=", depth, zero))
        found["largest"] = _first(b, weights, n_weights, tied, size, b.select(deeper, low, high))
    if ranges:
        smallest, nearest = inner
        below = b.select(b.icmp_signed("<", least, zero), least, smallest)
        above = b.select(b.icmp_signed(">=", most, zero), most, nearest)
        is_zero = b.icmp_unsigned("==", b.and_(below, ir.Constant(I32, SIZE)), zero)
        found["least"] = _first(b, weights, n_weights, is_zero, zero, below)
        found["most"] = b.select(b.icmp_unsigned("==", b.and_(above, ir.Constant(I32, SIZE)), zero), zero, above)
    return found


def magnitudes(b: ir.IRBuilder, weights: Weights, firsts: Sequence[Value], n_weights: int) -> Value:
    """Emit the largest bits but the sign of several groups, a vector of i32.

    firsts    : number of the first weight of each group, a power of two of them
    n_weights : of each, a multiple of their number
    """
    n = len(firsts)
    rows = [_largest(b, weights, first, n_weights, n) for first in firsts]
    size = 1
    while size < n:  # of neighbours, each lane takes from one or the other the larger of two lanes
        upper = [lane if lane & size == 0 else n + lane - size for lane in range(n)]
        lower = [lane + size if lane & size == 0 else n + lane for lane in range(n)]
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        rows = [call(b, "llvm.umax", [pick(b, one, upper, other), pick(b, one, lower, other)]) for one, other in pairs]
        size *= 2
    return rows[0]


def _largest(b: ir.IRBuilder, weights: Weights, first: Value, n_weights: int, n: int) -> Value:
    found: Value = None
    for at in range(0, n_weights, n):
        bits = b.bitcast(weights(b.add(first, ir.Constant(I64, at)), n), vector(I32, n))
        size = b.and_(bits, splat(I32, SIZE, n))
        found = size if found is None else call(b, "llvm.umax", [found, size])
    return found


def _reduce(
    b: ir.IRBuilder, weights: Weights, n_weights: Value, width: int, words: tuple[str, ...], mask: int = 0
) -> list[Value]:
    """Reduce the bits of all weights, without those that a mask lacks."""
    kind = vector(I32, width)
    starts = {"smax": -(1 << 31), "umax": 0, "smin": SIZE, "umin": 0xFFFFFFFF}
    kept = [cgutils.alloca_once(b, kind) for _ in words]  # type: ignore[no-untyped-call]
    for word, place in zip(words, kept, strict=True):
        b.store(splat(I32, starts[word], width), place)
    count = b.udiv(n_weights, ir.Constant(I64, width))
    with cgutils.for_range(b, count, intp=I64) as loop:
        bits = b.bitcast(weights(b.mul(loop.index, ir.Constant(I64, width)), width), kind)
        if mask:
            bits = b.and_(bits, splat(I32, mask, width))
        for word, place in zip(words, kept, strict=True):
            b.store(call(b, f"llvm.{word}", [b.load(place), bits]), place)
    return [call(b, f"llvm.vector.reduce.{word}", [b.load(place)], I32) for word, place in zip(words, kept, strict=True)]


def _first(b: ir.IRBuilder, weights: Weights, n_weights: Value, wanted: Value, size: Value, otherwise: Value) -> Value:
    """Look, where wanted, for the first weight of this size, sign aside; else give what is known."""
    place = cgutils.alloca_once(b, I32)  # type: ignore[no-untyped-call]
    b.store(otherwise, place)
    with b.if_then(wanted, likely=False), cgutils.for_range(b, n_weights, intp=I64) as loop:
        number = b.sub(b.sub(n_weights, loop.index), ir.Constant(I64, 1))  # from the last on, so that the first stays
        bits = b.extract_element(b.bitcast(weights(number, 1), vector(I32, 1)), ir.Constant(I32, 0))
        is_it = b.icmp_unsigned("==", b.and_(bits, ir.Constant(I32, SIZE)), size)
        b.store(b.select(is_it, bits, b.load(place)), place)
    return b.load(place)
