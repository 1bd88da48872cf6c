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

from qformat.arrays import ByteSource, Part
from qformat.formats.form import PartForm, packed
from qformat.layout import CODES, Layout
from qformat.moves import move_of
from qformat.scheme import Integers, Scheme
from qformat.tiling import ROWS, Bound
from qformat.units import LEAST, Move, Packed, Places

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.tensor import PackedTensor

    Bytes = NDArray[np.uint8]
else:
    from qformat.deferred import np

WIDTHS = (1, 2, 4, 8)  # bytes of words that are transposed
NO_SCHEME = Scheme("codes", Integers(0, 255))
BYTE = 8  # bits
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

    def upright(self, data: Bytes, bound: Bound, first: int, last: int) -> Bytes:
        """Give the bytes of rows [first, last).

        data : all stored bytes of the part, of which those of the rows are read
        """
        from qformat.kernels.vector.transpose import transpose

        width = self.width or 1
        if self.width:
            words = data.reshape(-1, bound.padded[0] * width)[:, first * width : last * width]
        else:
            words = self._woven(data.reshape(bound.padded[1], -1), bound, first, last)
        out = np.empty((last - first, len(words) * width), np.uint8)
        transpose(words, out, width)
        return out

    def laid(self, data: Bytes, n_rows: int) -> Bytes:
        """Give the stored bytes of a part of so many rows; opposite of `upright`."""
        from qformat.kernels.vector.transpose import transpose

        lines, width = data.reshape(n_rows, -1), self.width or 1
        layout = self.stored.layout
        n_room = n_rows if self.width else -(-n_rows // (step := _step(layout))) * step
        out = np.zeros((lines.shape[1] // width, n_room * width), np.uint8)
        transpose(lines, out, width)
        if self.width:
            return out
        per = _together(layout)
        blocks = np.empty((len(out) * per, n_room // layout.n_weights * layout.n_bytes), np.uint8)
        for i, move in enumerate(_parting(self.stored, n_room)):
            _run(move, (out,), blocks[i::per], n_room)
        return np.ascontiguousarray(blocks[:, : n_rows // layout.n_weights * layout.n_bytes])

    def _woven(self, lines: Bytes, bound: Bound, first: int, last: int) -> Bytes:
        """Give the codes of some rows, as many columns as share a byte together: (columns / codes of a byte, rows)."""
        layout = self.stored.layout
        step, per = _step(layout), _together(layout)
        low, high = first // step * step, min(-(-last // step) * step, bound.padded[0])
        blocks = lines[:, low // layout.n_weights * layout.n_bytes : high // layout.n_weights * layout.n_bytes]
        codes = np.empty((len(lines) // per, high - low), np.uint8)
        _run(_joining(self.stored, high - low), [blocks[i::per] for i in range(per)], codes, high - low)
        return codes[:, first - low : last - low]


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
        found = self.turn.upright(self.part.source.read(0, self.part.source.n_bytes), self.part.bound, first, last)
        return found.reshape(-1)[start - first * row : stop - first * row]


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
    if BYTE % layout.codes.width:
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
def _joining(stored: PartForm, n_cols: int) -> Move:
    """Make the move that puts the fields of as many lines of blocks as share a byte into one."""
    move, fields = _moves(stored, BYTES, n_cols)
    per = _together(stored.layout)
    planes = tuple(
        replace(plane, shift=plane.shift + i * fields.width, source=i) for i in range(per) for plane in fields.planes
    )
    return replace(move, sources=move.sources * per, codes=Packed(fields.source, planes, BYTE))


@lru_cache(maxsize=64)
def _parting(stored: PartForm, n_cols: int) -> tuple[Move, ...]:
    """Make the moves that take each field out of bytes into blocks of a line of its own; opposite of `_joining`."""
    move, _ = _moves(BYTES, stored, n_cols)
    width, to = move.to.width, replace(move.to, minus=0, signed=False)
    fields = [Places(width, 0, tuple(BYTE * j + width * i for j in range(move.n_weights))) for i in range(BYTE // width)]
    return tuple(replace(move, codes=Packed(0, (field,), width), to=to) for field in fields)


def _moves(one: PartForm, other: PartForm, n_cols: int) -> tuple[Move, Packed]:
    """Make the move of codes from one part to another, and the fields that it reads."""
    found = move_of((NO_SCHEME, (one,)), (NO_SCHEME, (other,)), n_cols)
    assert found is not None  # codes that fill their blocks, and bytes
    assert isinstance(found[0].codes, Packed)  # likewise
    return found[0], found[0].codes


def _run(move: Move, sources: Sequence[Bytes], out: Bytes, n_cols: int) -> None:
    """Take all lines over."""
    from qformat.kernels.vector.decode import Bound as At
    from qformat.kernels.vector.transcode import mover

    at = At(tuple(line.ctypes.data for line in sources), tuple(line.strides[0] for line in sources))
    mover(move)(at, At((out.ctypes.data,), (out.strides[0],)), len(out), n_cols // move.n_weights)
