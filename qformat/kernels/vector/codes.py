"""Rounds weights to codes, a vector of them at a time, as a coding says."""

from __future__ import annotations

from itertools import pairwise

from llvmlite import ir

from qformat.coding import Away, Closest, Coding, Count, Cut, Nearest, Sign
from qformat.kernels.vector.bounds import count_below
from qformat.kernels.vector.ir import F32, I8, I32, SIZE, Value, call, settled, splat, vector

JUST_BELOW_HALF = 0x3EFFFFFF  # adding it, then cutting off, rounds to nearest with ties away from zero below 2^22
SIGN_BIT = 3  # of a code
MOST_SIGNED = 127  # that a byte holds


def round_codes(
    b: ir.IRBuilder, coding: Coding, x: Value, operands: dict[str, Value], n_among: int, is_far: bool = False
) -> Value:
    """Give the codes of a vector of weights, i8.

    operands : "before", "factor" and "after" of each weight, as far as there are any
    n_among  : of `bounds.count_below`
    is_far   : weights may be beyond the reach of `Closest`
    """
    rounding = coding.rounding
    if isinstance(rounding, Closest):
        find = _of_differences if is_far else _closest
        return _signed(b, rounding.sign, x, find(b, rounding, _magnitude(b, x), operands["factor"], n_among))
    if "before" in operands:
        x = b.fsub(x, operands["before"])
    scaled = (b.fdiv if coding.divides else b.fmul)(x, operands["factor"])
    if isinstance(rounding, Count):
        return _count(b, rounding, scaled, n_among)
    code, n = settled(b, _rounded(b, rounding, scaled, operands.get("after"))), x.type.count
    if _highest(rounding) <= MOST_SIGNED:  # instructions that narrow limit as well: to say so spares masks
        code = call(b, "llvm.smax", [code, splat(I32, ~MOST_SIGNED, n)])
        code = call(b, "llvm.smin", [code, splat(I32, MOST_SIGNED, n)])
    return b.trunc(code, vector(I8, n))


def _highest(rounding: Nearest | Cut | Away) -> int:
    if isinstance(rounding, Away):
        return MOST_SIGNED
    return rounding.high if isinstance(rounding, Nearest) else rounding.low + rounding.top


def _rounded(b: ir.IRBuilder, rounding: Nearest | Cut | Away, scaled: Value, after: Value) -> Value:
    n = scaled.type.count
    if isinstance(rounding, Nearest):
        whole = call(b, "llvm.rint", [scaled])
        moved = whole if after is None else b.fadd(whole, after)
        return b.fptosi(_within(b, moved, rounding.low, rounding.high), vector(I32, n))
    if isinstance(rounding, Cut):
        return _cut(b, rounding, b.fadd(scaled, after))
    bits = b.bitcast(scaled if after is None else b.fadd(scaled, after), vector(I32, n))
    half = b.or_(b.and_(bits, splat(I32, SIZE ^ 0xFFFFFFFF, n)), splat(I32, JUST_BELOW_HALF, n))
    moved = b.fadd(b.bitcast(bits, vector(F32, n)), b.bitcast(half, vector(F32, n)))
    return b.fptosi(moved, vector(I32, n))


def _cut(b: ir.IRBuilder, rounding: Cut, value: Value) -> Value:
    n = value.type.count
    field, top = b.fptosi(value, vector(I32, n)), splat(I32, rounding.top, n)
    field = b.and_(field, top) if rounding.wraps else b.select(b.icmp_signed("<", field, top), field, top)
    return b.add(field, splat(I32, rounding.low, n)) if rounding.low else field


def _count(b: ir.IRBuilder, rounding: Count, value: Value, n_among: int) -> Value:
    if rounding.sign is None:
        return count_below(b, rounding.bounds, value, n_among)
    return _signed(b, rounding.sign, value, count_below(b, rounding.bounds, _magnitude(b, value), n_among))


def _closest(b: ir.IRBuilder, rounding: Closest, size: Value, factor: Value, n_among: int) -> Value:
    """Count the middles below: beyond one the upper level is nearer, and near it differences are exact.

    A quotient is above a middle where the weight is above the exact product: by more than half of the last bit that it keeps.
    """
    return count_below(b, [(low + high) / 2 for low, high in pairwise(rounding.levels)], b.fdiv(size, factor), n_among)


def _of_differences(b: ir.IRBuilder, rounding: Closest, size: Value, factor: Value, n_among: int) -> Value:
    n = size.type.count
    best, code = size, splat(I32, 0, n)
    for number, level in enumerate(rounding.levels[1:], 1):
        off = _magnitude(b, b.fsub(b.fmul(splat(F32, level, n), factor), size))
        closer = b.fcmp_ordered("<", off, best)
        code, best = b.select(closer, splat(I32, number, n), code), b.select(closer, off, best)
    return b.trunc(code, vector(I8, n))


def _signed(b: ir.IRBuilder, sign: Sign, value: Value, code: Value) -> Value:
    """Give codes of magnitudes a sign."""
    n = value.type.count
    kind, zero = vector(I8, n), splat(I8, 0, n)
    if sign in (Sign.OWN, Sign.OF_CODE):
        is_signed = b.trunc(b.ashr(b.bitcast(value, vector(I32, n)), splat(I32, 31, n)), kind)
        if sign == Sign.OF_CODE:
            is_signed = b.select(b.icmp_unsigned("==", code, zero), zero, is_signed)
    else:
        is_signed = b.sext(b.fcmp_ordered("<" if sign == Sign.BELOW else "<=", value, splat(F32, 0.0, n)), kind)
    return b.or_(code, b.and_(is_signed, splat(I8, 1 << SIGN_BIT, n)))


def _magnitude(b: ir.IRBuilder, value: Value) -> Value:
    n = value.type.count
    return b.bitcast(b.and_(b.bitcast(value, vector(I32, n)), splat(I32, SIZE, n)), vector(F32, n))


def _within(b: ir.IRBuilder, value: Value, low: float, high: float) -> Value:
    n = value.type.count
    value = b.select(b.fcmp_ordered("<", value, splat(F32, low, n)), splat(F32, low, n), value)
    return b.select(b.fcmp_ordered(">", value, splat(F32, high, n)), splat(F32, high, n), value)
