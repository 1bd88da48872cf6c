"""Makes floats of codes that are entries of a table, eight at a time.

Numbers of entries and of sign patterns are worked out one by one, not in lanes: the processor has other units for that than for
vectors, and as many loads. An entry is loaded as it lies in the table; a pattern of signs is one of another table.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from qformat.kernels.vector.ir import EIGHT, F32, I8, I16, I32, I64, Value, filled, load, moved, table, vector
from qformat.units import Packed, Shifted, Signed

BYTE = 8


def reader(b: ir.IRBuilder, codes: Signed | Shifted, address: Callable[[int], Value]) -> Callable[[int], Value]:
    """Give what makes float32 of eight codes of a unit, from one on.

    address : of a source's present place
    """
    held = table(b, I32, _patterns(codes.signs.width)) if isinstance(codes, Signed) else table(b, F32, (1.0, -1.0))

    def read(first: int) -> Value:
        found = _entries(b, codes, address, first)
        if isinstance(codes, Signed):
            number = _number(b, codes.signs, address, first // EIGHT)
            signs = load(b, b.add(held, b.mul(number, ir.Constant(I64, 4 * EIGHT))), vector(I32, EIGHT))
            return b.bitcast(b.xor(b.bitcast(found, signs.type), signs), found.type)
        run = codes.index.count * codes.run // codes.shift.count
        at = b.add(held, b.mul(_number(b, codes.shift, address, first // run), ir.Constant(I64, 4)))
        return b.fadd(found, filled(b, load(b, at, F32), EIGHT))

    return read


def _entries(b: ir.IRBuilder, codes: Signed | Shifted, address: Callable[[int], Value], first: int) -> Value:
    """Give the entries of eight values as float32: one of the table, or several side by side."""
    numbers = [_number(b, codes.index, address, i) for i in range(first // codes.run, (first + EIGHT) // codes.run)]
    kind = ir.IntType(BYTE * codes.run)
    found = ir.Constant(vector(kind, len(numbers)), ir.Undefined)
    for lane, number in enumerate(numbers):
        at = b.add(address(codes.table), b.mul(number, ir.Constant(I64, codes.run)))
        found = b.insert_element(found, load(b, at, kind), ir.Constant(I32, lane))
    return b.sitofp(b.sext(b.bitcast(found, vector(I8, EIGHT)), vector(I32, EIGHT)), vector(F32, EIGHT))


def _number(b: ir.IRBuilder, field: Packed, address: Callable[[int], Value], number: int) -> Value:
    """Read one value of a field that is not negative, i64."""
    found = ir.Constant(I64, 0)
    for plane in field.planes:
        byte, up = divmod(plane.positions[number], BYTE)
        kind = next(kind for kind in (I8, I16, I32) if up + plane.bits <= kind.width)
        read = b.zext(load(b, moved(b, address(field.source + plane.source), byte), kind), I64)
        piece = b.and_(b.lshr(read, ir.Constant(I64, up)), ir.Constant(I64, (1 << plane.bits) - 1))
        found = b.or_(found, b.shl(piece, ir.Constant(I64, plane.shift)))
    return found


def _patterns(width: int) -> list[int]:
    """List, for all sign bits of eight values, what changes signs of float32; the eighth of 7 bits makes their number even."""
    numbers = [number | (number.bit_count() % 2) << width if width < EIGHT else number for number in range(1 << width)]
    return [(number >> lane & 1) << 31 for number in numbers for lane in range(EIGHT)]
