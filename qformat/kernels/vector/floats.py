"""Makes float32 of codes of a byte, 32 at a time, in whichever order costs least: no byte leaves its half of a register.

Integers are shifted out of words, floats of fewer bits widened, few levels looked up in registers and many in memory. Eight
floats are in one order on every processor; vectors that hold more hold eights side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

from qformat.kernels.vector.emit import FEW, SHUFFLE, Target
from qformat.kernels.vector.ir import (
    EIGHT,
    F32,
    I16,
    I32,
    Value,
    constant,
    cut,
    entries,
    entries_among,
    join,
    look_up,
    pick,
    splat,
    vector,
)
from qformat.kernels.vector.narrow import Narrow, narrow
from qformat.kernels.vector.values import floats_of
from qformat.units import LEAST

BYTE = 8
TOP = 0xFFFF0000  # the half of a float32 that a short level fits into

Table = Callable[[Sequence[float]], Value]


def of_bytes(b: ir.IRBuilder, codes: Value, levels: bytes, is_signed: bool, target: Target, table: Table) -> Sequence[Value]:
    """Make floats of 32 codes, in the order that `order_of` tells.

    levels    : float32 patterns that codes stand for; empty: integers, themselves
    is_signed : whether integers are
    table     : makes a constant of the module of float32 values, and gives its address
    """
    lanes, floats = target.lanes, narrow_of(levels)
    if not levels:
        return _of_integers(b, codes, is_signed, lanes)
    if floats is not None and target.has_f16c:
        return [found for half in _halves(b, codes, floats.width) for found in floats.of_halves(b, half, lanes)]
    if floats is not None:
        return [floats.of_words(b, word) for word in _tops(b, codes, floats.width, lanes)]
    if len(levels) > FEW:
        return cut(b, entries(b, table(floats_of(levels)), F32, codes), lanes)
    if 4 * lanes == FEW:  # a vector holds as many floats, and the processor picks among them
        return [entries_among(b, floats_of(levels.ljust(FEW, b"\0")), index) for index in _indices(b, codes, levels, target)]
    tables, zero = [levels[i::4] for i in range(4)], ir.Constant(codes.type, None)
    planes = [_look_up(b, each, codes, target.byte_shuffle) if any(each) else zero for each in tables]
    upper = _pairs(b, *planes[2:])
    if _are_short(levels):
        wide = [b.bitcast(half, vector(I32, EIGHT)) for half in upper]
        up, top = splat(I32, 16, EIGHT), splat(I32, TOP, EIGHT)
        words = [word for half in wide for word in (b.shl(half, up), b.and_(half, top))]
    else:
        lower = _pairs(b, *planes[:2])
        words = [word for low, high in zip(lower, upper, strict=True) for word in _pairs(b, low, high)]
    return [b.bitcast(word, vector(F32, EIGHT)) for word in words]


def order_of(levels: bytes, target: Target) -> Sequence[int]:
    """Give the number of the code, of 32, that each float is of."""
    n = LEAST // EIGHT
    if narrow_of(levels) is not None and target.has_f16c:
        return [lane for odd in (0, 1) for lane in range(odd, LEAST, 2)]
    if not levels or narrow_of(levels) is not None:
        return [n * i + k for k in range(n) for i in range(EIGHT)]
    if len(levels) > FEW:
        return range(LEAST)
    halves = [[*range(at, at + 8), *range(16 + at, 24 + at)] for at in (0, 8)]
    if _are_short(levels):
        return [lane for half in halves for odd in (0, 1) for lane in half[odd::2]]
    return [lane for half in halves for at in (0, 4) for lane in (*half[at : at + 4], *half[8 + at : 12 + at])]


def narrow_of(levels: bytes) -> Narrow | None:
    """Find which floats of fewer bits levels are, of those too many to be looked up in registers; None: none."""
    return narrow(levels) if len(levels) > FEW else None


def _of_integers(b: ir.IRBuilder, codes: Value, is_signed: bool, lanes: int) -> Sequence[Value]:
    top = splat(I32, 24, lanes)
    found = [(b.ashr if is_signed else b.lshr)(word, top) for word in _tops(b, codes, BYTE, lanes)]
    return [(b.sitofp if is_signed else b.uitofp)(word, vector(F32, lanes)) for word in found]


def _tops(b: ir.IRBuilder, codes: Value, width: int, lanes: int) -> Sequence[Value]:
    """Bring codes of so many bits to the top of words of 32, others below them: in eights, side by side in wider vectors."""
    words = pick(b, b.bitcast(codes, vector(I32, EIGHT)), [*range(EIGHT)] * (lanes // EIGHT))
    ups = [up + BYTE - width for up in (24, 16, 8, 0) for _ in range(EIGHT)]
    some = [ups[at : at + lanes] for at in range(0, len(ups), lanes)]
    return [b.shl(words, constant(I32, up)) if any(up) else words for up in some]


def _halves(b: ir.IRBuilder, codes: Value, width: int) -> Sequence[Value]:
    """Bring codes of so many bits to the top of words of 16, others below them."""
    words = b.bitcast(codes, vector(I16, codes.type.count // 2))
    return [b.shl(words, splat(I16, up, words.type.count)) if up else words for up in (2 * BYTE - width, BYTE - width)]


def _are_short(levels: bytes) -> bool:
    """Tell whether the lower halves of all levels are zero."""
    return not any(levels[0::4]) and not any(levels[1::4])


def _indices(b: ir.IRBuilder, codes: Value, levels: bytes, target: Target) -> Sequence[Value]:
    """Bring codes to words, in the order of the floats."""
    n = codes.type.count
    lanes = [lane for at in order_of(levels, target) for lane in (at, n, n, n)]
    return cut(b, b.bitcast(pick(b, codes, lanes, ir.Constant(codes.type, None)), vector(I32, n)), target.lanes)


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
