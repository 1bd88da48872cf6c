"""Reads integers out of bit planes, many at a time: which bytes to load, how to move their bits into lanes.

Three ways, chosen by where the bits lie. Few different shifts: the loaded bytes are shifted and masked as they are, then
shuffled into place. Single bits: each byte is spread over its lanes and tested. Anything else: each value's bytes are
gathered into a wider lane and shifted up, then down. No way knows a format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from qformat.kernels.vector.ir import I8, I16, I32, Value, choose, constant, pick, splat, vector
from qformat.units import Packed, Places, Unit

FEW_SHIFTS = 4
NARROW, WIDE, WORD = 8, 16, 32

# Gives so many bytes of a source's present place, from one on.
Load = Callable[[int, int, int], Value]


def integers(b: ir.IRBuilder, load: Load, field: Packed, first: int, last: int) -> Value:
    """Read values [first, last) of a unit: a vector of i8, or of i16 where a value has more than 8 bits."""
    return chosen(b, load, field, range(first, last))


def chosen(b: ir.IRBuilder, load: Load, field: Packed, numbers: Sequence[int]) -> Value:
    """Read the values of these numbers, in their order, as `integers` does."""
    kind = I8 if field.width <= NARROW else I16
    places = [(plane, [plane.positions[number] for number in numbers]) for plane in field.planes]
    planes = [_plane(b, load, field.source + plane.source, plane, positions, kind) for plane, positions in places]
    found = planes[0]
    for plane in planes[1:]:
        found = b.or_(found, plane)
    return signed(b, field, found)


def in_words(unit: Unit) -> bool:
    """Tell whether each code is a field of a word of 32 bits of its own, at the same bit of each."""
    codes = unit.codes
    if not isinstance(codes, Packed) or len(codes.planes) > 1 or codes.dtype:
        return False
    positions = codes.planes[0].positions
    fits = positions[0] + codes.width <= WORD and unit.sources[codes.source].n_bytes == WORD // 8 * unit.n_weights
    return fits and positions == tuple(range(positions[0], positions[0] + WORD * unit.n_weights, WORD))


def of_words(b: ir.IRBuilder, load: Load, field: Packed, first: int, last: int) -> Value:
    """Read values [first, last) of a field that `in_words` tells of: a vector of i32."""
    n, shift = last - first, field.planes[0].positions[0]
    words = b.bitcast(load(field.source, WORD // 8 * first, WORD // 8 * n), vector(I32, n))
    raw = b.lshr(words, splat(I32, shift, n)) if shift else words
    return signed(b, field, b.and_(raw, splat(I32, (1 << field.width) - 1, n)))


def signed(b: ir.IRBuilder, field: Packed, raw: Value) -> Value:
    """Give the integers that stored fields stand for, in lanes of any width."""
    n, kind = raw.type.count, raw.type.element
    half = 1 << (field.width - 1) if field.signed else 0
    if half:
        raw = b.xor(raw, splat(kind, half, n))
    return b.sub(raw, splat(kind, (half + field.minus) % (1 << kind.width), n)) if half + field.minus else raw


def _plane(b: ir.IRBuilder, load: Load, source: int, plane: Places, positions: Sequence[int], kind: ir.IntType) -> Value:
    places = [divmod(position, 8) for position in positions]
    shifts = sorted({shift for _, shift in places})
    if shifts[-1] + plane.bits > NARROW:
        found = _gathered(b, load, source, plane.bits, places)
    elif len(shifts) <= FEW_SHIFTS:
        found = _shifted(b, load, source, plane.bits, places, shifts)
    elif plane.bits == 1:
        found = _tested(b, load, source, places)
    else:
        found = _gathered(b, load, source, plane.bits, places)
    n = len(positions)
    if found.type.element.width < kind.width:
        found = b.zext(found, vector(kind, n))
    elif found.type.element.width > kind.width:
        found = b.trunc(found, vector(kind, n))
    return b.shl(found, splat(kind, plane.shift, n)) if plane.shift else found


def _window(b: ir.IRBuilder, load: Load, source: int, low: int, high: int) -> tuple[Value, int]:
    """Load bytes [low, high]."""
    return load(source, low, high + 1 - low), low


def _shifted(
    b: ir.IRBuilder, load: Load, source: int, bits: int, places: Sequence[tuple[int, int]], shifts: Sequence[int]
) -> Value:
    data, low = _window(b, load, source, min(byte for byte, _ in places), max(byte for byte, _ in places))
    n = data.type.count
    masked = []
    for shift in shifts:
        moved = b.lshr(data, splat(I8, shift, n)) if shift else data
        masked.append(b.and_(moved, splat(I8, (1 << bits) - 1, n)) if shift + bits < 8 else moved)
    return choose(b, masked, [(shifts.index(shift), byte - low) for byte, shift in places])


def _tested(b: ir.IRBuilder, load: Load, source: int, places: Sequence[tuple[int, int]]) -> Value:
    data, low = _window(b, load, source, min(byte for byte, _ in places), max(byte for byte, _ in places))
    spread = pick(b, data, [byte - low for byte, _ in places])
    bit = constant(I8, [1 << shift for _, shift in places])
    is_set = b.icmp_unsigned("==", b.and_(spread, bit), bit)
    return b.zext(is_set, vector(I8, len(places)))


def _gathered(b: ir.IRBuilder, load: Load, source: int, bits: int, places: Sequence[tuple[int, int]]) -> Value:
    kind = I16 if max(shift for _, shift in places) + bits <= WIDE else I32
    n_bytes, n = kind.width // 8, len(places)
    reach = [-(-(shift + bits) // 8) for _, shift in places]
    high = max(byte + more - 1 for (byte, _), more in zip(places, reach, strict=True))
    data, low = _window(b, load, source, min(byte for byte, _ in places), high)
    last = data.type.count - 1  # a byte beyond a value's own is shifted out, whatever it is
    lanes = [min(byte - low + i, last) for byte, _ in places for i in range(n_bytes)]
    wide = b.bitcast(pick(b, data, lanes), vector(kind, n))
    up = constant(kind, [kind.width - bits - shift for _, shift in places])
    return b.lshr(b.shl(wide, up), splat(kind, kind.width - bits, n))
