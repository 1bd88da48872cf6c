"""Makes float32 of the codes of a unit in whichever order costs least: for sums, where weights may come in any.

Four ways, chosen by what codes are and where they lie. Bytes: codes come as they lie, those at one bit of neighbouring bytes
together, and each 32 of them become four vectors of floats without moving a byte from one half of a register to the other.
Words: codes that lie across bytes are brought to words of their own, by one shuffle within halves and one shift. Entries of
tables are loaded one by one, and base-3 digits are made as for any decoding. Whoever multiplies lays the other factor in the
order that `order_of` tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from llvmlite import ir

from qformat.kernels.vector import grids, runs
from qformat.kernels.vector.emit import SHUFFLE, Target
from qformat.kernels.vector.fields import Load, chosen, in_words, integers, of_words, signed
from qformat.kernels.vector.floats import narrow_of, of_bytes
from qformat.kernels.vector.floats import order_of as order_of_bytes
from qformat.kernels.vector.ir import EIGHT, F32, I8, I16, I32, Value, constant, cut, join, pick, splat, vector
from qformat.kernels.vector.values import of_integers
from qformat.units import LEAST, Packed, Places, Shifted, Signed, Unit, count_of

BYTE, NIBBLE = 8, 4

# Gives 32 weights of a unit before its first operation, from one on in the order of `order_of`: vectors of float32.
Read = Callable[[int], Sequence[Value]]


def looked_up(unit: Unit) -> Unit:
    """Have integers of at most four bits looked up as levels are: cheaper than making floats of them."""
    codes = unit.codes
    if unit.levels or not isinstance(codes, Packed) or codes.width > NIBBLE or _is_across(codes) or is_ordered(unit):
        return unit
    fields, sign = range(1 << codes.width), 1 << (codes.width - 1) if codes.signed else 0
    values = [float((field ^ sign) - sign - codes.minus) for field in fields]
    plain = replace(codes, signed=False, minus=0)
    return replace(unit, codes=plain, levels=struct.pack(f"<{len(values)}f", *values))


def is_ordered(unit: Unit) -> bool:
    """Tell whether floats are made in the order of weights: words of single codes, or codes that lie in it as operands do."""
    if unit.levels or not isinstance(unit.codes, Packed):
        return False
    return in_words(unit) or (has_operands_of_each(unit) and [*_as_stored(unit)] == [*range(unit.n_weights)])


def has_operands_of_each(unit: Unit) -> bool:
    """Tell whether an operation takes another value for each weight."""
    return any(count_of(operand) == unit.n_weights for _, operand in unit.steps)


def order_of(unit: Unit, target: Target) -> tuple[int, ...]:
    """Give the number of the weight that each float is of."""
    if isinstance(unit.codes, Signed | Shifted) or _in_words(unit) or is_ordered(unit):
        return tuple(range(unit.n_weights))
    stored, lanes = _as_stored(unit), order_of_bytes(unit.levels, target)
    return tuple(stored[first + lane] for first in range(0, unit.n_weights, LEAST) for lane in lanes)


@dataclass(frozen=True, slots=True)
class Reader:
    """Emits the codes of a unit at given addresses.

    load    : bytes of a source's present place
    address : of a source's present place
    table   : makes a constant of the module of float32 values, and gives its address
    """

    b: ir.IRBuilder
    unit: Unit
    target: Target
    load: Load
    address: Callable[[int], Value]
    table: Callable[[Sequence[float]], Value]

    def floats(self) -> Read:
        """Give what makes the floats."""
        b, codes = self.b, self.unit.codes
        if isinstance(codes, Signed | Shifted):
            of_entries = runs.reader(b, codes, self.address)
            return lambda first: self.wide([of_entries(at) for at in range(first, first + LEAST, EIGHT)])
        if not isinstance(codes, Packed):
            of_digits = grids.reader(b, self.load, codes, self.address)
            return lambda first: self.of_bytes(of_digits(first, first + LEAST))
        if is_ordered(self.unit):
            return partial(self.in_order, codes)
        if _in_words(self.unit):
            return partial(self.of_words, codes)
        stored = _as_stored(self.unit)
        return lambda first: self.of_bytes(self.stored(codes, stored[first : first + LEAST]))

    def stored(self, codes: Packed, numbers: Sequence[int]) -> Value:
        """Read the codes of 32 weights, as bytes in this order."""
        b = self.b
        planes = [self.plane(codes.source + plane.source, plane, numbers) for plane in codes.planes]
        if None in planes:
            return chosen(b, self.load, codes, numbers)
        found = planes[0]
        for plane in planes[1:]:
            found = b.or_(found, plane)
        return signed(b, codes, found)

    def plane(self, source: int, plane: Places, numbers: Sequence[int]) -> Value | None:
        """Read bits of codes that lie within bytes, single ones or all at the same bit; None for others."""
        b, n = self.b, len(numbers)
        places = [divmod(plane.positions[number], BYTE) for number in numbers]
        shifts = {shift for _, shift in places}
        data = self.spread(source, [byte for byte, _ in places])
        if data is None or (len(shifts) > 1 and plane.bits > 1):
            return None
        if len(shifts) > 1:
            bits, one = constant(I8, [1 << shift for _, shift in places]), splat(I8, 1 << plane.shift, n)
            return b.select(b.icmp_unsigned("==", b.and_(data, bits), bits), one, ir.Constant(one.type, None))
        (shift,) = shifts
        moved = b.lshr(data, splat(I8, shift, n)) if shift else data
        masked = b.and_(moved, splat(I8, (1 << plane.bits) - 1, n)) if shift + plane.bits < BYTE else moved
        return b.shl(masked, splat(I8, plane.shift, n)) if plane.shift else masked

    def spread(self, source: int, wanted: Sequence[int]) -> Value | None:
        """Bring bytes of a source to lanes, within halves of a register; None where they are too far apart."""
        if all(byte == wanted[0] + lane for lane, byte in enumerate(wanted)):
            return self.load(source, wanted[0], len(wanted))
        halves = [self.window(source, wanted[at : at + SHUFFLE]) for at in range(0, len(wanted), SHUFFLE)]
        return None if None in halves else self.side_by_side([half for half in halves if half])

    def window(self, source: int, wanted: Sequence[int]) -> tuple[Value, list[int]] | None:
        """Load as many bytes of a source, at once or in two halves, and tell which lanes of them are wanted."""
        n, low = len(wanted), min(wanted)
        start = min(low, self.unit.sources[source].n_bytes - n)
        if start >= 0 and max(wanted) - start < n:
            return self.load(source, start, n), [byte - start for byte in wanted]
        if n <= SHUFFLE // 2:
            return None
        halves = [self.window(source, wanted[at : at + n // 2]) for at in (0, n // 2)]
        return None if None in halves else (self.side_by_side([half for half in halves if half]), list(range(n)))

    def side_by_side(self, parts: Sequence[tuple[Value, list[int]]]) -> Value:
        """Join the wanted lanes of vectors."""
        found, n = join(self.b, [part for part, _ in parts]), parts[0][0].type.count
        lanes = [n * number + lane for number, (_, wanted) in enumerate(parts) for lane in wanted]
        return found if lanes == list(range(len(lanes))) else pick(self.b, found, lanes)

    def in_order(self, codes: Packed, first: int) -> Sequence[Value]:
        """Make floats of the codes of 32 weights, one after the other."""
        b, last = self.b, first + LEAST
        read = of_words if in_words(self.unit) else integers
        return cut(b, of_integers(b, read(b, self.load, codes, first, last), codes.low < 0), self.target.lanes)

    def of_words(self, codes: Packed, first: int) -> Sequence[Value]:
        """Make floats of codes that lie across bytes."""
        b, lanes, floats = self.b, self.target.lanes, narrow_of(self.unit.levels)
        if floats is not None and self.target.has_f16c:
            parts = [self.words(codes, range(at, at + SHUFFLE), I16) for at in range(first, first + LEAST, SHUFFLE)]
            return [found for part in parts for found in floats.of_halves(b, part, lanes)]
        tops = [self.words(codes, range(at, at + lanes), I32) for at in range(first, first + LEAST, lanes)]
        if floats is not None:
            return [floats.of_words(b, top) for top in tops]
        down = splat(I32, I32.width - codes.width, lanes)
        fields = [b.lshr(top, down) for top in tops]
        return [b.sitofp(signed(b, codes, field), vector(F32, lanes)) for field in fields]

    def words(self, codes: Packed, numbers: Sequence[int], kind: ir.IntType) -> Value:
        """Bring codes to the top of words, anything below them."""
        b, (plane,) = self.b, codes.planes
        n_bytes, places = kind.width // BYTE, [divmod(plane.positions[number], BYTE) for number in numbers]
        wanted = []
        for byte, shift in places:
            last = byte + (shift + plane.bits > BYTE)
            wanted += [byte] * (n_bytes - 1) + [last]
        found = self.spread(codes.source + plane.source, wanted)
        if found is None:
            low = min(wanted)
            data = self.load(codes.source + plane.source, low, max(wanted) + 1 - low)
            found = pick(b, data, [byte - low for byte in wanted])
        ups = [2 * BYTE - shift - plane.bits for _, shift in places]
        return b.shl(b.bitcast(found, vector(kind, len(numbers))), constant(kind, ups))

    def of_bytes(self, codes: Value) -> Sequence[Value]:
        """Make floats of 32 codes of a byte."""
        return of_bytes(self.b, codes, self.unit.levels, self.unit.codes.low < 0, self.target, self.table)

    def wide(self, eights: Sequence[Value]) -> Sequence[Value]:
        """Join vectors of eight to those of the processor."""
        n = self.target.lanes // EIGHT
        return [join(self.b, eights[at : at + n]) for at in range(0, len(eights), n)]


def _is_across(codes: Packed) -> bool:
    """Tell whether codes lie across bytes."""
    return any(position % BYTE + plane.bits > BYTE for plane in codes.planes for position in plane.positions)


def _in_words(unit: Unit) -> bool:
    """Tell whether codes are brought to words one by one: numbers, or floats, of one plane that lie across bytes."""
    codes = unit.codes
    if not isinstance(codes, Packed) or len(codes.planes) > 1 or codes.width > BYTE or not _is_across(codes):
        return False
    return not unit.levels or narrow_of(unit.levels) is not None


def _as_stored(unit: Unit) -> Sequence[int]:
    """Order weights by where their codes lie: runs of 32 bytes that hold some, in each those at one bit, then at another."""
    if not isinstance(unit.codes, Packed):
        return range(unit.n_weights)
    places = [divmod(position, BYTE) for position in unit.codes.planes[0].positions]
    number = {byte: i for i, byte in enumerate(sorted({byte for byte, _ in places}))}
    keys = [(number[byte] // LEAST, shift, byte) for byte, shift in places]
    return sorted(range(unit.n_weights), key=keys.__getitem__)
