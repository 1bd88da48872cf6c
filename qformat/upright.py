"""Parts whose bytes run down the columns of the weight, seen as if they lay row by row.

Where the words of a block lie apart, or blocks behind one another down a column, rows are a transpose of the stored words.
Where a block holds several rows of one column, the stored array is the transposed weight row by row: codes of as many columns
as a byte has room for are put into one, and bytes are transposed. Derived from tilings alone. The other way, rows are laid down
as they are to be stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from qformat.arrays import ByteSource, Part, aligned, read_all
from qformat.formats.form import PartForm, packed
from qformat.layout import CODES, Layout
from qformat.moves import move_of
from qformat.scheme import Integers, Scheme
from qformat.threads import n_threads, spread
from qformat.tiling import ROWS, Bound
from qformat.units import LEAST, Move, Packed, Places

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.kernels.vector.transpose import Way
    from qformat.tensor import PackedTensor

    Bytes = NDArray[np.uint8]
else:
    from qformat.deferred import np

WIDTHS = (1, 2, 4, 8)  # bytes of words that are transposed
NO_SCHEME = Scheme("codes", Integers(0, 255))
BYTE = 8  # bits
PARTED = 128  # bytes, at least, that are parted at a time: whole vectors of each result
SHARED_BYTES = 1 << 21  # of a result, from which on a thread is worth its start
BYTES = PartForm(CODES, packed("uint8", BYTE, CODES), ROWS)


@dataclass(frozen=True, slots=True)
class Turn:
    """How a part lies down the columns.

    stored : the part
    rows   : the same values row by row
    width  : bytes of a word that is transposed; 0: blocks hold several rows
    """

    stored: PartForm
    rows: PartForm
    width: int

    def upright(self, data: Bytes, bound: Bound, first: int, last: int, is_kept: bool = False) -> Bytes:
        """Give the bytes of rows [first, last): (rows, bytes of a row).

        data    : all stored bytes of the part, of which those of the rows are read
        is_kept : they are not read next
        """
        from qformat.kernels.vector.transpose import Way

        layout = self.stored.layout
        if self.width:
            words = data.reshape(-1, bound.padded[0] * self.width)[:, first * self.width : last * self.width]
            out = aligned((last - first, len(words) * self.width), np.dtype(np.uint8))
            _turned([words], [out], Way(self.width), is_kept)
            return out
        step, per = _step(layout), _together(layout)
        low, high = first // step * step, min(-(-last // step) * step, bound.padded[0])
        ends = (n // layout.n_weights * layout.n_bytes for n in (low, high))
        blocks = data.reshape(bound.padded[1], -1)[:, slice(*ends)]
        out = aligned((high - low, len(blocks) // per), np.dtype(np.uint8))
        _turned([blocks[i::per] for i in range(per)], [out], _joining(self.stored), is_kept)
        return out[first - low : last - low]

    def laid(self, data: Bytes, n_rows: int) -> Bytes:
        """Give the stored bytes of a part of so many rows, which are not read next; opposite of `upright`."""
        from qformat.kernels.vector.transpose import Way

        lines = data.reshape(n_rows, -1)
        if self.width:
            out = aligned((lines.shape[1] // self.width, n_rows * self.width), np.dtype(np.uint8))
            _turned([lines], [out], Way(self.width), True)
            return out
        layout = self.stored.layout
        per = _together(layout)
        out = aligned((lines.shape[1] * per, n_rows // layout.n_weights * layout.n_bytes), np.dtype(np.uint8))
        _turned([lines], [out[i::per] for i in range(per)], _parting(self.stored), True)
        return out


@dataclass(frozen=True, slots=True)
class Upright:
    """Bytes of a part as if it lay row by row; a range of them reads the rows that it lies in."""

    part: Part
    turn: Turn
    n_bytes: int

    def read(self, start: int, stop: int) -> Bytes:
        """Give bytes [start, stop)."""
        row = self.n_bytes // self.part.bound.dims[0]
        first, last = start // row, -(-stop // row)
        return self.rows(first, last).reshape(-1)[start - first * row : stop - first * row]

    def rows(self, first: int, last: int, is_kept: bool = False) -> Bytes:
        """Give rows [first, last) as `Turn.upright` does."""
        source = self.part.source
        return self.turn.upright(read_all(source, 0, source.n_bytes), self.part.bound, first, last, is_kept)


def upright(tensor: PackedTensor) -> PackedTensor:
    """See a tensor with those parts row by row that run down the columns; the others as they are."""
    return replace(tensor, parts=tuple(_part(part) for part in tensor.parts))


@lru_cache(maxsize=256)
def turn_of(form: PartForm) -> Turn | None:
    """Derive how a part lies down the columns; None where it does not, or in no way that is known here."""
    tiling, layout = form.tiling, form.layout
    if len(tiling.logical) != 2 or tiling.order == ROWS.order:
        return None
    (down, along), inner = tiling.logical, tuple(name for name, _, _ in tiling.inner)
    stored = tuple(name for name, _, _ in tiling.stored)
    blocks, cut = tuple(name for name in stored if name != tiling.word_axis), len(along) - len(inner)
    width = tiling.word_bytes or layout.n_bytes
    if (*blocks, *inner) == (*along[:cut], *down, *along[cut:]):
        between = not tiling.word_axis or stored.index(tiling.word_axis) == cut
        return Turn(form, replace(form, tiling=ROWS), width) if between and width in WIDTHS else None
    if tiling.word_axis or (*blocks, *inner) != (*along, *down) or layout.codes is None:
        return None
    if layout.n_bytes * 8 != layout.n_weights * layout.codes.width or layout.holds != (CODES,):
        return None
    if BYTE % layout.codes.width or layout.n_weights & (layout.n_weights - 1):  # tiles are sized in powers of two
        return None
    codes = packed(layout.name, layout.codes.width, CODES, minus=layout.codes.minus, signed=layout.codes.signed)
    return Turn(replace(form, tiling=ROWS), PartForm(form.role, codes, ROWS), 0)


def _step(layout: Layout) -> int:
    """Give the least number of codes that a kernel takes out of blocks."""
    return math.lcm(layout.n_weights, LEAST)


def _part(part: Part) -> Part:
    turn = turn_of(part.form)
    if turn is None or part.swapped or not all(part.bound.dims) or part.bound.padded[0] != part.bound.dims[0]:
        return part
    layout, (n_rows, n_cols) = part.form.layout, part.bound.dims
    if not turn.width and (n_rows % _step(layout) or n_cols % _together(layout)):
        return part
    bound = turn.rows.bind(part.bound.dims)
    source: ByteSource = Upright(part, turn, bound.total_bytes)
    return Part(turn.rows, bound, source)


def _together(layout: Layout) -> int:
    """Give how many codes share a byte."""
    assert layout.codes is not None  # a turn of blocks of several rows is of codes in planes
    return BYTE // layout.codes.width


@lru_cache(maxsize=64)
def _joining(stored: PartForm) -> Way:
    """Give the way that puts the fields of as many lines of blocks as share a byte into one."""
    from qformat.kernels.vector.transpose import Way

    move, fields = _moves(stored, BYTES, _step(stored.layout))
    per, order = _together(stored.layout), _as_stored(fields)
    planes = tuple(
        replace(plane, shift=plane.shift + i * fields.width, source=i) for i in range(per) for plane in _in_order(fields, order)
    )
    return Way(joined=replace(move, sources=move.sources * per, codes=Packed(fields.source, planes, BYTE)), order=order)


@lru_cache(maxsize=64)
def _parting(stored: PartForm) -> Way:
    """Give the way that takes each field out of bytes into blocks of a line of its own; opposite of `_joining`."""
    from qformat.kernels.vector.transpose import Way

    move, _ = _moves(BYTES, stored, math.lcm(_step(stored.layout), PARTED))
    width, order = move.to.width, _as_stored(move.to)
    to = replace(move.to, planes=_in_order(move.to, order), minus=0, signed=False)
    fields = [Places(width, 0, tuple(BYTE * j + width * i for j in range(move.n_weights))) for i in range(BYTE // width)]
    return Way(parted=tuple(replace(move, codes=Packed(0, (field,), width), to=to) for field in fields), order=order)


def _as_stored(fields: Packed) -> tuple[int, ...]:
    """Order fields so that neighbours lie in neighbouring bytes, as far left in each: no lane of a vector moves then."""
    at = fields.planes[0].positions
    return tuple(sorted(range(len(at)), key=lambda i: (at[i] % BYTE, at[i])))


def _in_order(fields: Packed, order: tuple[int, ...]) -> tuple[Places, ...]:
    return tuple(replace(plane, positions=tuple(plane.positions[i] for i in order)) for plane in fields.planes)


def _moves(one: PartForm, other: PartForm, n_cols: int) -> tuple[Move, Packed]:
    """Make the move of codes from one part to another, and the fields that it reads."""
    found = move_of((NO_SCHEME, (one,)), (NO_SCHEME, (other,)), n_cols, n_cols)
    assert found is not None  # codes that fill their blocks, and bytes
    assert isinstance(found[0].codes, Packed)  # likewise
    return found[0], found[0].codes


def _turned(sources: Sequence[Bytes], outs: Sequence[Bytes], way: Way, is_kept: bool) -> None:
    """Transpose all lines, by all threads where there is much of them."""
    from qformat.kernels.vector.transpose import transpose

    n_elements = len(outs[0])
    n_parts = max(1, min(n_threads(), sum(out.nbytes for out in outs) // SHARED_BYTES))
    step = -(-n_elements // (n_parts * way.n_elements)) * way.n_elements

    def work(first: int) -> None:
        transpose(sources, outs, way, first, min(first + step, n_elements), is_kept)

    for _ in spread(work, range(0, n_elements, max(1, step))):
        pass
