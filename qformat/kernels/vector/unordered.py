"""Makes float32 of the codes of a unit in whichever order costs least: for sums, where weights may come in any.

Two orders are composed. Codes come as they lie, those at one bit of neighbouring bytes together, so that nothing is shuffled.
Each 32 of them become four vectors of floats without moving a byte from one half of a register to the other. Whoever multiplies
lays the other factor in the order that `order_of` tells.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from llvmlite import ir

from qformat.kernels.vector.fields import Load, chosen
from qformat.kernels.vector.grids import Read, reader
from qformat.kernels.vector.ir import F32, I32, Value, call, cut, entries, join, look_up, pick, splat, vector
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


def takes_long(unit: Unit) -> bool:
    """Tell whether decoding takes longer than several products: codes of grids, digits or several planes, many levels."""
    return not isinstance(unit.codes, Packed) or len(unit.codes.planes) > 1 or len(unit.levels) > FEW


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
    narrow = _narrow(unit.levels)
    if narrow is not None:
        return [narrow.floats(b, word) for word in _tops(b, codes, narrow.width)]
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
    if not levels or _narrow(levels) is not None:
        return [n * i + k for k in range(n) for i in range(LANES)]
    if len(levels) > FEW:
        return range(LEAST)
    halves = [[*range(at, at + 8), *range(16 + at, 24 + at)] for at in (0, 8)]
    if _are_short(levels):
        return [lane for half in halves for odd in (0, 1) for lane in half[odd::2]]
    return [lane for half in halves for at in (0, 4) for lane in (*half[at : at + 4], *half[8 + at : 12 + at])]


def _of_integers(b: ir.IRBuilder, codes: Value, signed: bool) -> Sequence[Value]:
    top = splat(I32, 24, LANES)
    found = [(b.ashr if signed else b.lshr)(word, top) for word in _tops(b, codes, BYTE)]
    return [(b.sitofp if signed else b.uitofp)(word, vector(F32, LANES)) for word in found]


def _tops(b: ir.IRBuilder, codes: Value, width: int) -> Sequence[Value]:
    """Bring codes of so many bits to the top of words, others below them."""
    words, ups = b.bitcast(codes, vector(I32, LANES)), [up + BYTE - width for up in (24, 16, 8, 0)]
    return [b.shl(words, splat(I32, up, LANES)) if up else words for up in ups]


@dataclass(frozen=True, slots=True)
class _Narrow:
    """Levels that are the floats of fewer bits: sign, exponent, mantissa, subnormals too.

    width, exponent : bits of a code, and of its exponent
    factor          : of the float32 with the same fields
    others          : codes without their sign that stand for something else, infinity or NaN
    """

    width: int
    exponent: int
    factor: float
    others: tuple[tuple[int, float], ...]

    def floats(self, b: ir.IRBuilder, words: Value) -> Value:
        """Make float32 of codes at the top of words."""
        sign = b.and_(words, splat(I32, 1 << 31, LANES))
        size = b.and_(words, splat(I32, ((1 << (self.width - 1)) - 1) << (32 - self.width), LANES))
        above = b.or_(size, splat(I32, 1 << 31, LANES))  # an exponent of its own, for subnormal float32 take long to multiply
        normal = b.bitcast(b.lshr(above, splat(I32, 8 - self.exponent, LANES)), vector(F32, LANES))
        least = 2.0 ** ((1 << self.exponent) - 126)  # normal; below it, a mantissa begins with 0
        twice = call(b, "llvm.fmuladd", [normal, splat(F32, 2.0, LANES), splat(F32, -least, LANES)])
        found = b.select(b.fcmp_ordered("<", normal, twice), normal, twice)
        signed = b.bitcast(b.or_(b.bitcast(found, size.type), sign), found.type)
        found = b.fmul(signed, splat(F32, self.factor / 2.0 ** (1 << self.exponent), LANES))
        for code, value in self.others:
            bits = splat(I32, struct.unpack("<I", struct.pack("<f", value))[0], LANES)
            other = b.bitcast(b.or_(bits, sign), found.type)
            found = b.select(b.icmp_unsigned("==", size, splat(I32, code << (32 - self.width), LANES)), other, found)
        return found


@lru_cache(maxsize=64)
def _narrow(levels: bytes) -> _Narrow | None:
    """Find which floats of fewer bits levels are, of those too many to be looked up in registers; None: none."""
    values = struct.unpack(f"<{len(levels) // 4}f", levels)
    half, width = len(values) // 2, len(values).bit_length() - 1
    if len(levels) <= FEW or len(values) != 1 << width or width > BYTE:
        return None
    others = tuple((code, value) for code, value in enumerate(values[:half]) if not math.isfinite(value))
    for exponent in range(2, width - 1):
        mantissa = width - 1 - exponent
        patterns = struct.unpack(f"<{half}f", struct.pack(f"<{half}I", *(code << (23 - mantissa) for code in range(half))))
        factor = values[1 << mantissa] / patterns[1 << mantissa]
        pairs = zip(values[:half], patterns, strict=True)
        if all(value == factor * pattern or not math.isfinite(value) for value, pattern in pairs) and _are_signed(values):
            return _Narrow(width, exponent, factor, others)
    return None


def _are_signed(values: Sequence[float]) -> bool:
    """Tell whether the upper half of all values is the lower one, negated."""
    half = len(values) // 2
    pairs = zip(values[:half], values[half:], strict=True)
    return all(struct.pack("<f", -one) == struct.pack("<f", other) or (one != one and other != other) for one, other in pairs)


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
