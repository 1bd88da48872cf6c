"""From codes and stored bytes to float32, and from float32 to 16-bit floats: exact, or rounded once to nearest even."""

from __future__ import annotations

import struct

from llvmlite import ir
from numba.core import cgutils

from qformat.bits import DTYPES
from qformat.kernels.vector.ir import BF16, F16, F32, I16, I32, Value, cut, look_up, pick, settled, splat, vector

AT_ONCE = 8  # a lone half is converted in as many lanes: LLVM would load it beside what a register held, and wait for that
CONVERTED = 32  # values of a conversion to bfloat16
SUBNORMAL = 0x20  # the class as vfpclassps numbers it


def of_integers(b: ir.IRBuilder, codes: Value, signed: bool) -> Value:
    """Convert a vector of integers of at most 16 bits."""
    wide = vector(I32, codes.type.count)
    return b.sitofp(b.sext(codes, wide) if signed else b.zext(codes, wide), vector(F32, codes.type.count))


def of_levels(b: ir.IRBuilder, codes: Value, levels: bytes, shuffle: str) -> Value:
    """Look codes up, 16 bytes below 16 each: one byte of the float32 patterns at a time, none for bytes that are 0 in all."""
    tables = [levels[i::4] for i in range(4)]
    zero = ir.Constant(codes.type, None)
    planes = [look_up(b, table, codes, shuffle) if any(table) else zero for table in tables]
    n = codes.type.count
    pair = [number for i in range(n) for number in (i, n + i)]
    low, high = (b.bitcast(pick(b, planes[i], pair, planes[i + 1]), vector(I16, n)) for i in (0, 2))
    return b.bitcast(pick(b, low, pair, high), vector(F32, n))


def of_element(b: ir.IRBuilder, data: Value, dtype: str, has_f16c: bool) -> Value:
    """Convert stored elements, given as a vector of integers as wide; not floats of a byte, whose values are looked up."""
    element, n = DTYPES[dtype], data.type.count
    if element.kind != "float":
        return of_integers(b, data, element.kind == "int")
    if dtype == "float32":
        return b.bitcast(data, vector(F32, n))
    if dtype == "bfloat16":
        return b.bitcast(b.shl(b.zext(data, vector(I32, n)), splat(I32, 16, n)), vector(F32, n))
    return _of_half(b, data, has_f16c)


def is_small(dtype: str) -> bool:
    """Tell whether an element type is a float of a byte, whose values are looked up."""
    return DTYPES[dtype].kind == "float" and DTYPES[dtype].bits == 8


def _of_half(b: ir.IRBuilder, data: Value, has_f16c: bool) -> Value:
    n = data.type.count
    if has_f16c and n == 1:
        return pick(b, settled(b, _of_half(b, pick(b, data, [0] * AT_ONCE), has_f16c)), [0])
    if has_f16c:
        return b.fpext(b.bitcast(data, vector(F16, n)), vector(F32, n))
    wide = b.zext(data, vector(I32, n))
    size = b.shl(b.and_(wide, splat(I32, 0x7FFF, n)), splat(I32, 13, n))
    scaled = b.bitcast(b.fmul(b.bitcast(size, vector(F32, n)), splat(F32, 2.0**112, n)), vector(I32, n))
    beyond = b.or_(size, splat(I32, 0x7F800000, n))  # infinity, or NaN with its payload
    quiet = b.or_(beyond, splat(I32, 0x400000, n))
    special = b.select(b.icmp_unsigned(">", size, splat(I32, 0x0F800000, n)), quiet, beyond)
    found = b.select(b.icmp_unsigned(">=", size, splat(I32, 0x0F800000, n)), special, scaled)
    sign = b.shl(b.and_(wide, splat(I32, 0x8000, n)), splat(I32, 16, n))
    return b.bitcast(b.or_(found, sign), vector(F32, n))


def floats_of(levels: bytes) -> tuple[float, ...]:
    """Read float32 patterns."""
    return struct.unpack(f"<{len(levels) // 4}f", levels)


def to_float16(b: ir.IRBuilder, found: Value) -> Value:
    """Round to float16 patterns, where the processor converts them: beyond the range infinity, NaN quiet."""
    n = found.type.count
    return b.bitcast(b.fptrunc(found, vector(F16, n)), vector(I16, n))


def to_bfloat16(b: ir.IRBuilder, found: Value, convert: str = "") -> Value:
    """Round to bfloat16 patterns: beyond the range infinity, NaN quiet.

    convert : LLVM's operation that does this to 32 values, but takes subnormal ones for zero; empty where there is none
    """
    if not convert:
        return _to_bfloat16(b, found)
    low, high = cut(b, found, CONVERTED // 2)
    with b.if_else(_any_subnormal(b, low, high), likely=False) as (some, none):
        with some:
            rounded, at_some = _to_bfloat16(b, found), b.block
        with none:
            of_two = ir.FunctionType(vector(BF16, CONVERTED), [low.type, high.type])
            operation = cgutils.get_or_insert_function(b.module, of_two, convert)  # type: ignore[no-untyped-call]
            converted, at_none = b.bitcast(b.call(operation, [high, low]), rounded.type), b.block
    either = b.phi(rounded.type)
    either.add_incoming(rounded, at_some)
    either.add_incoming(converted, at_none)
    return either


def _to_bfloat16(b: ir.IRBuilder, found: Value) -> Value:
    n = found.type.count
    bits = b.bitcast(found, vector(I32, n))
    is_even = b.icmp_unsigned("==", b.and_(bits, splat(I32, 0x10000, n)), splat(I32, 0, n))
    nearest = b.select(is_even, b.add(bits, splat(I32, 0x7FFF, n)), b.add(bits, splat(I32, 0x8000, n)))
    is_nan = b.fcmp_unordered("uno", found, found)
    kept = b.select(is_nan, b.or_(bits, splat(I32, 0x400000, n)), nearest)
    return pick(b, b.bitcast(kept, vector(I16, 2 * n)), range(1, 2 * n, 2))


def _any_subnormal(b: ir.IRBuilder, *some: Value) -> Value:
    """Tell whether any value is subnormal, by the processor's own operation, without which none is named to convert."""
    kind, n = some[0].type, some[0].type.count
    tell = ir.FunctionType(vector(ir.IntType(1), n), [kind, I32])
    operation = cgutils.get_or_insert_function(b.module, tell, "llvm.x86.avx512.fpclass.ps.512")  # type: ignore[no-untyped-call]
    left, right = (b.call(operation, [one, ir.Constant(I32, SUBNORMAL)]) for one in some)
    lanes = b.bitcast(b.or_(left, right), ir.IntType(n))
    return b.icmp_unsigned("!=", lanes, ir.Constant(lanes.type, 0))
