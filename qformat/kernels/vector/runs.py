"""Makes floats of codes that are entries of a table, eight at a time.

Numbers of entries and of sign patterns are worked out one by one, not in lanes: the processor has other units for that than for
vectors, and as many loads. An entry is loaded as it lies in the table; a pattern of signs is one of another table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from qformat.kernels.vector.fields import Load, integers
from qformat.kernels.vector.ir import F32, I8, I16, I32, I64, Value, filled, moved, pinned, table, vector
from qformat.kernels.vector.ir import load as ir_load
from qformat.units import Packed, Shifted, Signed

LANES = 8  # values that are made at a time, and that a pattern of signs is of
BYTE = 8
TOGETHER, IN_WORD = 16, 4  # values of 16 bits of a vector, and of a word of 64


def reader(b: ir.IRBuilder, load: Load, codes: Signed | Shifted, address: Callable[[int], Value]) -> Callable[[int], Value]:
    """Give what makes float32 of eight codes of a unit, from one on.

    address : of a source's present place
    """
    indices, table_at = _numbers(b, load, codes.index, address), address(codes.table)
    if isinstance(codes, Signed):
        patterns, signs = table(b, I32, _patterns(codes.signs.width)), _numbers(b, load, codes.signs, address)
    else:
        by, shifts, run = table(b, F32, (1.0, -1.0)), _numbers(b, load, codes.shift, address), _run(codes)

    def read(first: int) -> Value:
        found = _entries(
            b, table_at, codes.run, [indices(at) for at in range(first // codes.run, (first + LANES) // codes.run)]
        )
        if isinstance(codes, Signed):
            at = b.add(patterns, b.mul(signs(first // LANES), ir.Constant(I64, 4 * LANES)))
            pattern = ir_load(b, at, vector(I32, LANES))
            return b.bitcast(b.xor(b.bitcast(found, pattern.type), pattern), found.type)
        at = b.add(by, b.mul(shifts(first // run), ir.Constant(I64, 4)))
        return b.fadd(found, filled(b, ir_load(b, at, F32), LANES))

    return read


def _run(codes: Shifted) -> int:
    """Give the values that share a shift."""
    return codes.index.count * codes.run // codes.shift.count


def _entries(b: ir.IRBuilder, table_at: Value, run: int, numbers: Sequence[Value]) -> Value:
    """Load entries of so many bytes side by side, and make float32 of them."""
    kind = ir.IntType(BYTE * run)
    found = ir.Constant(vector(kind, len(numbers)), ir.Undefined)
    for lane, number in enumerate(numbers):
        at = b.add(table_at, b.mul(number, ir.Constant(I64, run)))
        found = b.insert_element(found, ir_load(b, at, kind), ir.Constant(I32, lane))
    return b.sitofp(b.sext(b.bitcast(found, vector(I8, LANES)), vector(I32, LANES)), vector(F32, LANES))


def _numbers(b: ir.IRBuilder, load: Load, field: Packed, address: Callable[[int], Value]) -> Callable[[int], Value]:
    """Give what reads one value of a field that is not negative, i64: of several planes, some are put together at a time."""
    words: dict[int, list[Value]] = {}

    def together(number: int) -> Value:
        part, lane = divmod(number, TOGETHER)
        if part not in words:
            first = part * TOGETHER
            found = integers(b, load, field, first, min(first + TOGETHER, field.count))
            wide = b.zext(found, vector(I16, found.type.count)) if found.type.element == I8 else found
            whole = b.bitcast(wide, vector(I64, wide.type.count // IN_WORD))
            words[part] = [pinned(b, b.extract_element(whole, ir.Constant(I32, i))) for i in range(whole.type.count)]
        word = b.lshr(words[part][lane // IN_WORD], ir.Constant(I64, lane % IN_WORD * I16.width))
        return b.zext(b.trunc(word, I16), I64)

    if len(field.planes) > 1 and field.count % IN_WORD == 0:
        return together
    return lambda number: _single(b, field, address, number)


def _single(b: ir.IRBuilder, field: Packed, address: Callable[[int], Value], number: int) -> Value:
    found = ir.Constant(I64, 0)
    for plane in field.planes:
        byte, up = divmod(plane.positions[number], BYTE)
        kind = next(kind for kind in (I8, I16, I32) if up + plane.bits <= kind.width)
        read = b.zext(ir_load(b, moved(b, address(field.source + plane.source), byte), kind), I64)
        piece = b.and_(b.lshr(read, ir.Constant(I64, up)), ir.Constant(I64, (1 << plane.bits) - 1))
        found = b.or_(found, b.shl(piece, ir.Constant(I64, plane.shift)))
    return found


def _patterns(width: int) -> list[int]:
    """List, for all sign bits of eight values, what changes signs of float32; the eighth of 7 bits makes their number even."""
    numbers = [number | (number.bit_count() % 2) << width if width < LANES else number for number in range(1 << width)]
    return [(number >> lane & 1) << 31 for number in numbers for lane in range(LANES)]
