"""Makes codes that planes cannot say: entries of a table with signs or a shift, base-3 digits.

Each function gives a reader: from a range of values of the unit to a vector of i8. What all ranges need, it emits at once.
"""

from __future__ import annotations

from collections.abc import Callable

from llvmlite import ir

from qformat.kernels.vector.fields import Load, integers
from qformat.kernels.vector.ir import I8, I16, I32, I64, Value, constant, entries, pick, splat, vector
from qformat.units import Codes, Packed, Shifted, Signed, Trits

BYTE = 8
ENTRY = {4: I32, 8: I64}  # what is loaded, by values of a run

# Gives values [first, last) of a unit: a vector of i8, or of i16 where a value has more than 8 bits.
Read = Callable[[int, int], Value]


def reader(b: ir.IRBuilder, load: Load, codes: Codes, address: Callable[[int], Value]) -> Read:
    """Give what reads the codes of a unit.

    address : of a source's present place
    """
    if isinstance(codes, Packed):
        return lambda first, last: integers(b, load, codes, first, last)
    if isinstance(codes, Trits):
        return lambda first, last: _digits(b, load, codes, first, last)
    table = address(codes.table)
    return _signed(b, load, codes, table) if isinstance(codes, Signed) else _shifted(b, load, codes, table)


def _signed(b: ir.IRBuilder, load: Load, codes: Signed, table: Value) -> Read:
    bits = integers(b, load, codes.signs, 0, codes.signs.count)
    if codes.signs.width < BYTE:
        bits = b.or_(bits, _parity(b, bits, codes.signs.width))

    def read(first: int, last: int) -> Value:
        values = _entries(b, load, codes.index, codes.run, table, first, last)
        bit = constant(I8, [1 << i % BYTE for i in range(first, last)])
        spread = pick(b, bits, [i // BYTE for i in range(first, last)])
        mask = b.sext(b.icmp_unsigned("==", b.and_(spread, bit), bit), values.type)
        return b.sub(b.xor(values, mask), mask)

    return read


def _shifted(b: ir.IRBuilder, load: Load, codes: Shifted, table: Value) -> Read:
    down = integers(b, load, codes.shift, 0, codes.shift.count)
    by = b.sub(splat(I8, 1, codes.shift.count), b.add(down, down))
    run = codes.index.count * codes.run // codes.shift.count

    def read(first: int, last: int) -> Value:
        values = _entries(b, load, codes.index, codes.run, table, first, last)
        return b.add(values, pick(b, by, [i // run for i in range(first, last)]))

    return read


def _entries(b: ir.IRBuilder, load: Load, index: Packed, run: int, table: Value, first: int, last: int) -> Value:
    """Load the entries of values [first, last), whole runs."""
    found = entries(b, table, ENTRY[run], integers(b, load, index, first // run, last // run))
    return b.bitcast(found, vector(I8, last - first))


def _parity(b: ir.IRBuilder, bits: Value, at: int) -> Value:
    """Give, as this bit of each byte, whether the number of those set below is odd."""
    n = bits.type.count
    for distance in (4, 2, 1):
        bits = b.xor(bits, b.lshr(bits, splat(I8, distance, n)))
    return b.shl(bits, splat(I8, at, n))


def _digits(b: ir.IRBuilder, load: Load, codes: Trits, first: int, last: int) -> Value:
    """Multiply each fraction until the digit is its most significant one, and take that."""
    at, n = codes.at[first:last], last - first
    low = min(at)
    data = pick(b, load(codes.source, low, max(at) + 1 - low), [byte - low for byte in at])
    fraction = b.and_(b.mul(b.zext(data, vector(I16, n)), constant(I16, codes.times[first:last])), splat(I16, 0xFF, n))
    digit = b.lshr(b.mul(fraction, splat(I16, 3, n)), splat(I16, BYTE, n))
    return b.sub(b.trunc(digit, vector(I8, n)), splat(I8, 1, n))
