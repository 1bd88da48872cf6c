"""Makes float32 of the codes of a unit in whichever order costs least: for sums, where weights may come in any.

Two orders are composed. Codes come as they lie, those at one bit of neighbouring bytes together, so that nothing is shuffled.
Each 32 of them become four vectors of floats without moving a byte from one half of a register to the other. Whoever multiplies
lays the other factor in the order that `order_of` tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

from llvmlite import ir

from qformat.kernels.vector.fields import Load, chosen
from qformat.kernels.vector.grids import Read, reader
from qformat.kernels.vector.ir import F32, I32, Value, cut, entries, join, look_up, pick, splat, vector
from qformat.units import LEAST, Packed, Unit

LANES = 8  # floats of a vector
BYTE, NIBBLE = 8, 4
SHUFFLE = 16  # bytes that are looked up at a time
FEW = 4 * SHUFFLE  # bytes of the levels that are looked up in registers
TOP = 0xFFFF0000  # the half of a float32 that a short level fits into


def looked_up(unit: Unit) -> Unit:
    """Have integers of at most four bits looked up as levels are: cheaper than making floats of them."""
    codes = unit.codes
    if unit.levels or not isinstance(codes, Packed) or codes.width > NIBBLE:
        return unit
    fields, sign = range(1 << codes.width), 1 << (codes.width - 1) if codes.signed else 0
    values = [float((field ^ sign) - sign - codes.minus) for field in fields]
    plain = replace(codes, signed=False, minus=0)
    return replace(unit, codes=plain, levels=struct.pack(f"<{len(values)}f", *values))


def order_of(unit: Unit) -> tuple[int, ...]:
    """Give the number of the weight that each float is of."""
    stored = _as_stored(unit)
    lanes = _lanes(unit.levels)
    return tuple(stored[first + lane] for first in range(0, unit.n_weights, LEAST) for lane in lanes)


def codes_of(b: ir.IRBuilder, load: Load, unit: Unit, address: Callable[[int], Value]) -> Read:
    """Give what reads the codes of a unit as they lie; the arguments as those of `grids.reader`."""
    codes = unit.codes
    if not isinstance(codes, Packed):
        return reader(b, load, codes, address)
    stored = _as_stored(unit)
    return lambda first, last: chosen(b, load, codes, stored[first:last])


def floats_of(
    b: ir.IRBuilder, unit: Unit, codes: Value, shuffle: str, table: Callable[[Sequence[float]], Value]
) -> Sequence[Value]:
    """Make four vectors of float32 of 32 codes.

    shuffle, table : as those of `emit.Emitter`
    """
    if not unit.levels:
        return _of_integers(b, codes, unit.codes.low < 0)
    if len(unit.levels) > FEW:
        return cut(b, entries(b, table(struct.unpack(f"<{len(unit.levels) // 4}f", unit.levels)), F32, codes), LANES)
    tables, zero = _tables(unit.levels), ir.Constant(codes.type, None)
    planes = [_look_up(b, each, codes, shuffle) if any(each) else zero for each in tables]
    upper = _pairs(b, *planes[2:])
    if _are_short(unit.levels):
        wide = [b.bitcast(half, vector(I32, LANES)) for half in upper]
        found = [word for half in wide for word in (b.shl(half, splat(I32, 16, LANES)), b.and_(half, splat(I32, TOP, LANES)))]
    else:
        lower = _pairs(b, *planes[:2])
        found = [word for low, high in zip(lower, upper, strict=True) for word in _pairs(b, low, high)]
    return [b.bitcast(word, vector(F32, LANES)) for word in found]


def _as_stored(unit: Unit) -> Sequence[int]:
    """Order weights by where their codes lie: runs of 32 bytes, in each the codes at one bit after those at another."""
    if not isinstance(unit.codes, Packed):
        return range(unit.n_weights)
    positions = unit.codes.planes[0].positions
    return sorted(range(unit.n_weights), key=lambda i: (positions[i] // BYTE // LEAST, positions[i] % BYTE, positions[i]))


def _lanes(levels: bytes) -> Sequence[int]:
    """Give the code that each of 32 floats is of."""
    n = LEAST // LANES
    if not levels:
        return [n * i + k for k in range(n) for i in range(LANES)]
    if len(levels) > FEW:
        return range(LEAST)
    halves = [[*range(at, at + 8), *range(16 + at, 24 + at)] for at in (0, 8)]
    if _are_short(levels):
        return [lane for half in halves for odd in (0, 1) for lane in half[odd::2]]
    return [lane for half in halves for at in (0, 4) for lane in (*half[at : at + 4], *half[8 + at : 12 + at])]


def _of_integers(b: ir.IRBuilder, codes: Value, signed: bool) -> Sequence[Value]:
    words, top = b.bitcast(codes, vector(I32, LANES)), splat(I32, 24, LANES)
    found = []
    for up in (24, 16, 8, 0):
        moved = b.shl(words, splat(I32, up, LANES)) if up else words
        found.append((b.ashr if signed else b.lshr)(moved, top))
    return [(b.sitofp if signed else b.uitofp)(word, vector(F32, LANES)) for word in found]


def _tables(levels: bytes) -> Sequence[bytes]:
    return [levels[i::4] for i in range(4)]


def _are_short(levels: bytes) -> bool:
    """Tell whether the lower halves of all levels are zero."""
    return not any(levels[0::4]) and not any(levels[1::4])


def _look_up(b: ir.IRBuilder, table: bytes, codes: Value, shuffle: str) -> Value:
    return join(b, [look_up(b, table, part, shuffle) for part in cut(b, codes, SHUFFLE)])


def _pairs(b: ir.IRBuilder, low: Value, high: Value) -> Sequence[Value]:
    """Join elements of two vectors to ones twice as wide, in each half of a register its first and its last ones."""
    n, width = low.type.count, low.type.element.width
    quarter = n // 4
    wide = vector(ir.IntType(2 * width), n // 2)
    found = []
    for at in (0, quarter):
        lanes = [*range(at, at + quarter), *range(2 * quarter + at, 3 * quarter + at)]
        found.append(b.bitcast(pick(b, low, [lane for i in lanes for lane in (i, n + i)], high), wide))
    return found
