"""Counts the bounds that lie below each value of a vector: all in turn, or by halving those that are left.

Halving asks whether a value lies above the middle bound, then above the middle one of those beyond, or of those before, and so
on. Which bound is next depends on the answers, and is looked up; where one instruction does that for all lanes, it pays.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from llvmlite import ir

from qformat.kernels.vector.ir import F32, I32, SIZE, Value, cut, entries_among, join, settled, splat, vector


def count_below(b: ir.IRBuilder, bounds: Sequence[float], values: Value, n_among: int, times: Value = None) -> Value:
    """Count the bounds below each value: i32, of a NaN any.

    bounds  : ascending
    values  : float32
    n_among : how many values, of as many, one instruction picks by their numbers; 0 where there is none
    times   : float32 that the bounds of each value are multiplied with; 1 if absent
    """
    n_codes = len(bounds) + 1
    if n_codes & len(bounds) or n_codes > 2 * n_among:
        return _in_turn(b, bounds, values) if times is None else _in_turn_times(b, bounds, values, times)
    factors = [None] * (values.type.count // n_among) if times is None else cut(b, times, n_among)
    pieces = zip(cut(b, values, n_among), factors, strict=True)
    return join(b, [_by_halves(b, bounds, piece, factor) for piece, factor in pieces])


def _by_halves(b: ir.IRBuilder, bounds: Sequence[float], values: Value, times: Value) -> Value:
    kind, step = vector(I32, values.type.count), len(bounds) + 1
    found: Value = ir.Constant(kind, None)
    while step > 1:
        next_bound = entries_among(b, bounds[step // 2 - 1 :: step], found)
        if times is not None:
            next_bound = b.fmul(next_bound, times)
        is_above = b.sext(b.fcmp_ordered(">", values, next_bound), kind)
        found = b.sub(b.add(found, found), is_above)
        step //= 2
    return found


def _in_turn(b: ir.IRBuilder, bounds: Sequence[float], values: Value) -> Value:
    n = values.type.count
    seen = settled(b, _ordered(b, values))
    found: Value = splat(I32, 0, n)
    for bound in bounds:
        is_above = b.icmp_signed(">", seen, splat(I32, ordered(bound), n))
        found = b.sub(found, b.sext(is_above, vector(I32, n)))
    return found


def _in_turn_times(b: ir.IRBuilder, bounds: Sequence[float], values: Value, times: Value) -> Value:
    n = values.type.count
    found: Value = splat(I32, 0, n)
    for bound in bounds:
        is_above = b.fcmp_ordered(">", values, b.fmul(splat(F32, bound, n), times))
        found = b.sub(found, b.sext(is_above, vector(I32, n)))
    return found


def _ordered(b: ir.IRBuilder, values: Value) -> Value:
    """Give integers in the order of finite floats: comparing them is cheaper."""
    n = values.type.count
    bits = b.bitcast(values, vector(I32, n))
    return b.xor(bits, b.lshr(b.ashr(bits, splat(I32, 31, n)), splat(I32, 1, n)))


def ordered(value: float) -> int:
    """Give the integer that `_ordered` makes of a float32; of -0 that of 0, so that neither zero is above the other."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value + 0.0))
    return int(bits ^ ((bits >> 31) & SIZE))
