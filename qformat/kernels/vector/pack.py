"""Writes integers into bit planes, many at a time: the bytes that hold them, every other bit 0.

The inverse of `fields`. A plane of single bits, eight to each byte, is tested and gathered. Any other is cut into moves: bits
of values that go the same way into their bytes are picked, shifted and masked together. Neighbours of 2 and 4 bits are folded,
two lanes into one. Digits are multiplied into fractions. No way knows a format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from qformat.kernels.vector.ir import I8, I16, Value, choose, constant, splat, vector
from qformat.units import Packed, Places, Trits

BYTE = 8
FOLDED = (2, 4)  # bits of values of which a byte holds several
FIVE_TIMES = (1, 3, 9, 27, 81)  # digits, the most significant first


@dataclass(frozen=True, slots=True)
class Piece:
    """Bits of a value that lie in one byte: `mask` of the byte, so far left of their place in the value (right: below 0)."""

    byte: int
    value: int
    left: int
    mask: int


def pack_bytes(b: ir.IRBuilder, field: Packed | Trits, codes: Sequence[Value], first: int, last: int) -> Value:
    """Give bytes [first, last) of a unit as they hold values of a field, and zeros in their other bits: a vector of i8.

    field : whose values have at most 8 bits
    codes : all values of the unit, in vectors of i8 of one length; low bits count, as many as the field has
    """
    if isinstance(field, Trits):
        return _digits(b, field, codes, first, last)
    offset = splat(I8, field.minus % 256, codes[0].type.count)
    stored = [b.add(piece, offset) for piece in codes] if field.minus else list(codes)
    found: Value = None
    for plane in field.planes:
        part = _plane(b, plane, stored, first, last)
        if part is not None:
            found = part if found is None else b.or_(found, part)
    return constant(I8, [0] * (last - first)) if found is None else found


def runs(field: Packed | Trits) -> list[tuple[int, int]]:
    """Give the runs of bytes of a unit that a field has bits of the same planes in, or neighbouring digits: [first, last)."""
    if isinstance(field, Trits):
        first = _first_digits(field)
        ends = [byte + 1 for byte in first if first.get(byte + 1) != first[byte] + 1]
        starts = [byte for byte in first if first.get(byte - 1) != first[byte] - 1]
        return list(zip(starts, ends, strict=True))
    planes: dict[int, set[int]] = {}
    for number, plane in enumerate(field.planes):
        for piece in _pieces(plane):
            planes.setdefault(piece.byte, set()).add(number)
    ends = [byte + 1 for byte in sorted(planes) if planes[byte] != planes.get(byte + 1)]
    starts = [byte for byte in sorted(planes) if planes[byte] != planes.get(byte - 1)]
    return list(zip(starts, ends, strict=True))


def _first_digits(field: Trits) -> dict[int, int]:
    """Give the value whose digit is the most significant one of each byte, bytes in order."""
    found = ((byte, value) for value, (byte, times) in enumerate(zip(field.at, field.times, strict=True)) if times == 1)
    return dict(sorted(found))


def _digits(b: ir.IRBuilder, field: Trits, codes: Sequence[Value], first: int, last: int) -> Value:
    """Give the least fractions of 256 above those of 243 that the digits of each byte are; a fifth that is not there is 0."""
    n, known = last - first, {place: value for value, place in enumerate(zip(field.at, field.times, strict=True))}
    found: Value = splat(I8, 0, n)
    for times in FIVE_TIMES:
        found = b.mul(found, splat(I8, 3, n))
        if (first, times) in known:
            picked = _picked(b, codes, [known[byte, times] for byte in range(first, last)])
            found = b.add(found, b.add(picked, splat(I8, 1, n)))
    wide, kind = b.zext(found, vector(I16, n)), vector(I8, n)
    more = b.add(b.mul(wide, splat(I16, 256 - 243, n)), splat(I16, 242, n))
    return b.add(found, b.trunc(b.udiv(more, splat(I16, 243, n)), kind))


def _plane(b: ir.IRBuilder, plane: Places, codes: Sequence[Value], first: int, last: int) -> Value:
    pieces = [piece for piece in _pieces(plane) if first <= piece.byte < last]
    if not pieces:
        return None
    bits = {BYTE * (piece.byte - first) + piece.mask.bit_length() - 1: piece.value for piece in pieces}
    if plane.bits == 1 and len(bits) == BYTE * (last - first):
        return _tested(b, plane.shift, codes, [bits[bit] for bit in range(len(bits))])
    values = [bits.get(plane.bits * (i + 1) - 1) for i in range(BYTE * (last - first) // plane.bits)]
    if plane.bits in FOLDED and plane.shift == 0 and None not in values:
        return _folded(b, plane.bits, _picked(b, codes, [value for value in values if value is not None]))
    found: Value = None
    for move in _moves(pieces):
        part = _moved(b, move, codes, first, last)
        found = part if found is None else b.or_(found, part)
    return found


def _tested(b: ir.IRBuilder, bit: int, codes: Sequence[Value], order: Sequence[int]) -> Value:
    """Gather one bit of each value."""
    picked = _picked(b, codes, order)
    is_set = b.icmp_unsigned("!=", b.and_(picked, splat(I8, 1 << bit, len(order))), splat(I8, 0, len(order)))
    return b.bitcast(is_set, vector(I8, len(order) // BYTE))


def _folded(b: ir.IRBuilder, bits: int, values: Value) -> Value:
    """Push values that follow one another into the same byte together: two, then two of those."""
    found = b.and_(values, splat(I8, (1 << bits) - 1, values.type.count))
    width, n = BYTE, values.type.count
    while bits < BYTE:
        width, n = 2 * width, n // 2
        wide = b.bitcast(found, vector(ir.IntType(width), n))
        found = b.or_(wide, b.lshr(wide, splat(wide.type.element, width // 2 - bits, n)))
        bits *= 2
        found = b.and_(found, splat(wide.type.element, (1 << bits) - 1, n))
    return b.trunc(found, vector(I8, n))


def _moved(b: ir.IRBuilder, move: Sequence[Piece], codes: Sequence[Value], first: int, last: int) -> Value:
    """Move bits of values into place, at most one value for each byte."""
    n, left = last - first, move[0].left
    by_byte = {piece.byte - first: piece for piece in move}
    found = _picked(b, codes, [by_byte[i].value if i in by_byte else move[0].value for i in range(n)])
    if left:
        found = b.shl(found, splat(I8, left, n)) if left > 0 else b.lshr(found, splat(I8, -left, n))
    masks = [by_byte[i].mask if i in by_byte else 0 for i in range(n)]
    reach = (0xFF << left if left > 0 else 0xFF >> -left) & 0xFF
    return found if all(mask == reach for mask in masks) else b.and_(found, constant(I8, masks))


def _picked(b: ir.IRBuilder, codes: Sequence[Value], values: Sequence[int]) -> Value:
    n = codes[0].type.count
    used = sorted({value // n for value in values})
    return choose(b, [codes[i] for i in used], [(used.index(value // n), value % n) for value in values])


def _moves(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Sort pieces by how far they move, those that share a byte apart."""
    found: dict[tuple[int, int], list[Piece]] = {}
    seen: dict[tuple[int, int], int] = {}
    for piece in pieces:
        rank = seen.get((piece.left, piece.byte), 0)
        seen[piece.left, piece.byte] = rank + 1
        found.setdefault((piece.left, rank), []).append(piece)
    return list(found.values())


def _pieces(plane: Places) -> list[Piece]:
    """Cut the bits of every value where bytes end."""
    found = []
    for value, position in enumerate(plane.positions):
        done = 0
        while done < plane.bits:
            byte, bit = divmod(position + done, BYTE)
            n = min(plane.bits - done, BYTE - bit)
            found.append(Piece(byte, value, bit - plane.shift - done, ((1 << n) - 1) << bit))
            done += n
    return found
