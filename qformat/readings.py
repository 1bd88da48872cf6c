"""Finds the unit that a tensor is decoded in.

From the declarations come the byte arrays that it reads, how each advances, the bit positions of its codes and the places of
its parameters. What lies where a unit cannot reach (blocks across rows, groups that cross them, a parameter behind an index)
is handed over worked out instead. Knows nothing of numba.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, lcm

from qformat import decode
from qformat.bits import DTYPES
from qformat.evaluate import operand_run
from qformat.fields import unpacker_of
from qformat.formats.form import PartForm
from qformat.layout import CODES, Bits, Field, Layout
from qformat.scheme import Alphabet, Apply, Const, Flat, Grid, Group, Integers, Levels, Op, Operand, Ref, Scheme
from qformat.tiling import FLAT, ROWS
from qformat.units import LEAST, Codes, Expression, Fixed, Join, Packed, Places, Shifted, Signed, Source, Trits, Unit, Whole

MOST = 4096  # weights of a unit
MANY = 512  # weights of a unit, made so long only that parameters are read in place: compiling takes a time for each weight
BYTE = 8
FLOAT = 4  # bytes

Table = decode.Signed | decode.Shifted


@dataclass(frozen=True, slots=True)
class Reading:
    """A unit, and what its sources are.

    roles : of each source, the stored byte array that it is; "" where its contents are handed over
    given : of each source, the number of the step whose operand is handed over, `CODES_GIVEN` for the codes; the unpacker
            whose table it is; else None
    runs  : columns that share a value of it, where it is an operand handed over
    """

    unit: Unit
    roles: tuple[str, ...]
    given: tuple[int | Table | None, ...]
    runs: tuple[int, ...]


CODES_GIVEN = -1


def reading_of(
    scheme: Scheme,
    parts: tuple[PartForm, ...],
    n_cols: int,
    steps: tuple[tuple[Op, Operand], ...],
    in_place: bool,
    least: int = LEAST,
) -> Reading | None:
    """Derive how rows of `n_cols` columns are read; None where no unit can be.

    steps    : operations of the scheme, the input scale included where it is applied
    in_place : whether stored bytes can be read as they lie; else everything is handed over
    least    : weights that a unit is a multiple of, itself a multiple of 32
    """
    levels = _levels(scheme.alphabet)
    return None if levels is None else _reading(scheme, parts, n_cols, steps, in_place, least, levels, repr(steps))


@lru_cache(maxsize=256)
def _reading(
    scheme: Scheme,
    parts: tuple[PartForm, ...],
    n_cols: int,
    steps: tuple[tuple[Op, Operand], ...],
    in_place: bool,
    least: int,
    levels: bytes,
    written: str,
) -> Reading | None:
    """Derive a reading; `levels` and `written` tell apart what differs by the sign of a zero, and is equal otherwise."""
    form = next(part for part in parts if CODES in part.layout.holds)
    stored = in_place and is_stored(form)
    n_weights = lcm(form.layout.n_weights, least) if stored else least
    if not n_cols or n_cols % n_weights or n_weights > MOST:
        return None
    if isinstance(scheme.alphabet, Integers) and not scheme.alphabet.are_bytes:
        return None
    longer = lcm(n_weights, *(_reach(scheme, part) for part in parts)) if stored else n_weights
    if n_cols % longer == 0 and longer <= MANY:
        n_weights = longer
    made = Maker(scheme, {part.layout.holds: part for part in parts if in_place}, n_cols, n_weights)
    codes = made.codes(form) if stored else made.codes_given()
    if isinstance(codes, Packed) and (codes.low < -128 or (codes.low < 0 and codes.low + (1 << codes.width) > 128)):
        return None
    if levels and not (
        isinstance(codes, Packed) and codes.low == 0 and (not stored or 1 << codes.width <= len(levels) // FLOAT)
    ):
        return None  # a code could lie outside the levels: the loops look at every one
    chain = tuple((op, made.expression(operand) or made.given(number, operand)) for number, (op, operand) in enumerate(steps))
    unit = Unit(n_weights, tuple(made.sources), codes, levels, chain)
    return Reading(unit, tuple(made.roles), tuple(made.numbers), tuple(made.runs))


class Maker:
    """Collects the sources of a unit."""

    def __init__(self, scheme: Scheme, parts: dict[tuple[str, ...], PartForm], n_cols: int, n_weights: int) -> None:
        self.scheme = scheme
        self.parts = {name: part for holds, part in parts.items() for name in holds}
        self.n_cols = n_cols
        self.n_weights = n_weights
        self.sources: list[Source] = []
        self.roles: list[str] = []
        self.numbers: list[int | Table | None] = []
        self.runs: list[int] = []

    def source(self, source: Source, role: str = "", given: int | Table | None = None, run: int = 0) -> int:
        """Number a source, the same one where it is there already."""
        entry = (source, role, given, run)
        known = list(zip(self.sources, self.roles, self.numbers, self.runs, strict=True))
        if entry in known:
            return known.index(entry)
        self.sources.append(source)
        self.roles.append(role)
        self.numbers.append(given)
        self.runs.append(run)
        return len(known)

    def codes(self, form: PartForm) -> Codes:
        """Place the codes as they are stored."""
        layout, n_blocks = form.layout, self.n_weights // form.layout.n_weights
        step = layout.n_bytes
        source = self.source(Source(n_blocks * step), form.role)
        if layout.codes is not None:
            return packed(source, layout.codes, n_blocks, step)
        how = unpacker_of(layout).how
        if isinstance(how, decode.Trits):
            return digits(source, layout, how, n_blocks)
        pieces = {
            name: packed(source, piece, n_blocks, step) for name, piece in layout.pieces.items() if isinstance(piece, Bits)
        }
        if not isinstance(how, Table):
            (codes,) = pieces.values()
            return codes
        table = self.source(Source(0, 0, 0), given=how)
        run = decode.table_of(how).shape[1]
        if isinstance(how, decode.Signed):
            return Signed(pieces["index"], table, run, pieces["signs"])
        return Shifted(pieces["index"], table, run, pieces["shift"])

    def codes_given(self) -> Packed:
        """Place codes that are handed over, a byte each."""
        byte_each = (Places(BYTE, 0, tuple(range(0, BYTE * self.n_weights, BYTE))),)
        signed = isinstance(self.scheme.alphabet, Integers) and self.scheme.alphabet.low < 0
        return Packed(self.source(Source(self.n_weights), given=CODES_GIVEN), byte_each, BYTE, signed)

    def given(self, number: int, operand: Operand) -> Whole:
        """Place an operand that is handed over as float32, for runs of columns that cut units evenly."""
        run = operand_run(self.scheme, operand, self.n_cols)
        if run >= self.n_cols:
            return Whole(self.source(Source(4, units=0), given=number, run=self.n_cols), "float32", (0,))
        if run % self.n_weights == 0:
            return Whole(self.source(Source(4, units=run // self.n_weights), given=number, run=run), "float32", (0,))
        run = gcd(run, self.n_weights)
        count = self.n_weights // run
        return Whole(self.source(Source(4 * count), given=number, run=run), "float32", tuple(range(0, 4 * count, 4)))

    def expression(self, operand: Operand) -> Expression | None:
        """Place an operand as it is stored; None where it is not to be had so."""
        if isinstance(operand, Const):
            return Fixed(struct.pack("<f", operand.value))
        if isinstance(operand, Apply):
            left, right = self.expression(operand.left), self.expression(operand.right)
            return Join(operand.op, left, right) if left and right else None
        return self.stored(operand.name) if isinstance(operand, Ref) else None

    def whole(self, name: str) -> Whole:
        """Place a parameter that is known to be stored in whole values."""
        found = self.stored(name)
        assert isinstance(found, Whole)
        return found

    def stored(self, name: str) -> Expression | None:
        """Place a stored parameter."""
        part, group = self.parts.get(name), self.scheme.param(name).group
        if part is None or part.tiling not in (ROWS, FLAT):
            return None
        field = part.layout.part(name)
        if part.layout.n_weights:  # in the blocks of the codes
            n_blocks, rest = divmod(self.n_weights, part.layout.n_weights)
            own = field is not None and _n_shared(group) * field.count == part.layout.n_weights
            return None if rest or not own else self.placed(Source(n_blocks * part.layout.n_bytes), part, field, n_blocks)
        if isinstance(group, Flat):
            group = Grid(1, group.n_weights if self.n_cols % group.n_weights == 0 else 0)
            if not group.cols:
                return None
        if not isinstance(group, Grid):
            return None
        step, count, cols = part.layout.n_bytes, part.layout.n_items, group.cols if group.cols < self.n_cols else 0
        if cols == 0:  # the rest of a row's last block is padding, where rows begin blocks
            return None if count > 1 and part.tiling == FLAT else self.placed(Source(step, 0, group.rows), part, field, 1, 1)
        if count == 1 and cols % self.n_weights == 0:
            return self.placed(Source(step, cols // self.n_weights, group.rows), part, field, 1)
        n_blocks, rest = divmod(self.n_weights, cols * count)
        return None if rest else self.placed(Source(step * n_blocks, 1, group.rows), part, field, n_blocks)

    def placed(
        self, source: Source, part: PartForm, field: Field | Bits | None, n_blocks: int, n: int = 0
    ) -> Expression | None:
        """Place a field of neighbouring blocks, or its first `n` values; None where a kernel does not read its type."""
        step = part.layout.n_bytes
        if isinstance(field, Field) and _is_read(field.dtype):
            width = field.n_bytes // field.count
            places = tuple(field.at + b * step + i * width for b in range(n_blocks) for i in range(field.count))
            return Whole(self.source(source, part.role), field.dtype, places[:n] if n else places)
        if not isinstance(field, Bits) or not (_is_read(field.dtype) if field.dtype else _is_byte(field)):
            return None
        return packed(self.source(source, part.role), field, n_blocks, step, n)


def packed(source: int, field: Bits, n_blocks: int, n_bytes: int, n: int = 0) -> Packed:
    """Place a field of neighbouring blocks of so many bytes, or its first `n` values."""
    places = []
    for plane in field.planes:
        positions = plane.strides(field.count).positions()
        spread = tuple(at + 8 * n_bytes * block for block in range(n_blocks) for at in positions)
        places.append(Places(plane.bits, plane.shift, spread[:n] if n else spread))
    return Packed(source, tuple(places), field.width, field.signed, field.minus, field.dtype)


def digits(source: int, layout: Layout, how: decode.Trits, n_blocks: int) -> Trits:
    """Place the digits of neighbouring blocks."""
    places = list[tuple[int, int]]()
    for piece, first, n_bytes, n_digits in how.runs:
        field = layout.pieces[piece]
        assert isinstance(field, Field)  # a byte each
        places += [(field.at + first + byte, 3**digit) for digit in range(n_digits) for byte in range(n_bytes)]
    at, times = zip(*places, strict=True)
    return Trits(source, tuple(b * layout.n_bytes + byte for b in range(n_blocks) for byte in at), times * n_blocks)


def _n_shared(group: Group) -> int:
    """Give the neighbouring weights of a row that share a parameter; 0 for other groups."""
    if isinstance(group, Flat):
        return group.n_weights
    return group.cols if isinstance(group, Grid) and group.rows == 1 else 0


def _reach(scheme: Scheme, part: PartForm) -> int:
    """Give the weights that a block of several values of one parameter serves; 1 for what a unit does not read in blocks."""
    if part.layout.n_weights or part.layout.n_items == 1 or not part.layout.holds or part.tiling not in (ROWS, FLAT):
        return 1
    group = scheme.param(part.layout.holds[0]).group
    return max(1, group.cols) * part.layout.n_items if isinstance(group, Grid) and group.cols else 1


def is_stored(form: PartForm) -> bool:
    """Tell whether codes can be read as they lie."""
    layout = form.layout
    if form.tiling not in (ROWS, FLAT):
        return False
    return layout.codes.width <= BYTE if layout.codes is not None else bool(layout.unpacker) and _is_whole(layout)


def _is_whole(layout: Layout) -> bool:
    """Tell whether what is said as data of a layout's unpacker makes all its codes, of entries that its table has."""
    how, pieces = unpacker_of(layout).how, layout.pieces
    if isinstance(how, decode.Trits):
        ends = {piece: max(at + n for name, at, n, _ in how.runs if name == piece) for piece, _, _, _ in how.runs}
        stored = all(piece in pieces and pieces[piece].count == end for piece, end in ends.items())
        return stored and sum(n * digits for _, _, n, digits in how.runs) == layout.n_weights
    if isinstance(how, decode.Signed | decode.Shifted):
        table, index = decode.table_of(how), pieces["index"]
        run = decode.SIGN_RUN if isinstance(how, decode.Signed) else how.run
        other = pieces["signs" if isinstance(how, decode.Signed) else "shift"]
        fits = isinstance(index, Bits) and index.low == 0 and index.high < len(table)
        return fits and index.count * table.shape[1] == other.count * run == layout.n_weights
    return isinstance(how, decode.AsStored) and [piece.count for piece in pieces.values()] == [layout.n_weights]


def _is_read(dtype: str) -> bool:
    """Tell whether a kernel makes float32 of an element type."""
    element = DTYPES[dtype]
    return element.bits == BYTE or dtype in ("float16", "bfloat16", "float32")


def _is_byte(field: Bits) -> bool:
    """Tell whether all values of a field lie in one kind of byte."""
    return field.width <= BYTE and -128 <= field.low <= field.high <= (127 if field.low < 0 else 255)


def _levels(alphabet: Alphabet) -> bytes | None:
    """Give the levels that codes are looked up in, none where they stand for themselves; None for what kernels cannot say."""
    if isinstance(alphabet, Integers):
        return b""
    return struct.pack(f"<{len(alphabet.levels)}f", *alphabet.levels) if isinstance(alphabet, Levels) else None
