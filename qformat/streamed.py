"""Binds a tensor's bytes to the unit that a vector kernel decodes at a time, and decodes ranges of its rows.

Stored byte arrays are read where they lie, those that run down columns laid row by row before; what a unit cannot reach is
worked out for the rows at hand and handed over. Must not know what a kernel does with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qformat.arrays import read_all
from qformat.decode import Shifted, Signed, table_of
from qformat.evaluate import Operands
from qformat.readings import CODES_GIVEN, Reading, reading_of
from qformat.scheme import Op, Operand, Ref
from qformat.slabs import Repeated, slabs_of
from qformat.units import LEAST, Source
from qformat.upright import upright

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.kernels.vector.decode import Bound
    from qformat.tensor import PackedTensor
else:
    from qformat.deferred import np


SHARED_BYTES = 1 << 20  # of codes that are read for one slab before they are for the next: they stay in a cache meanwhile


class Rows:
    """Rows of one tensor that lie alike, in units."""

    def __init__(self, tensor: PackedTensor, reading: Reading, operands: tuple[tuple[Op, Operand], ...]) -> None:
        self.tensor = tensor
        self.reading = reading
        self.operands = operands
        self.n_units = tensor.n_cols // reading.unit.n_weights
        self.steps = tuple(row_bytes(source, self.n_units) for source in reading.unit.sources)
        sources = {part.form.role: part.source for part in tensor.parts}
        self.again = tuple(
            held.source.n_bytes // step if isinstance(held := sources.get(role), Repeated) else 0
            for role, step in zip(reading.roles, self.steps, strict=True)
        )

    @property
    def in_place(self) -> bool:
        """Whether a range of rows takes no memory of its own but what is little to a weight: packed bytes, few operands."""
        given = zip(self.reading.given, self.reading.runs, strict=True)
        return all(not isinstance(number, int) or (number != CODES_GIVEN and run >= LEAST) for number, run in given)

    def bind(self, first: int, last: int) -> tuple[Bound, int, list[NDArray[Any]]]:
        """Bind the sources of rows [first, last) for a kernel.

        returns: where they begin, the kernel's number of the first row, and arrays that are to be kept until it has run. What
                 comes again after some rows begins where `moved` says
        """
        from qformat.kernels.vector.decode import Bound, addresses

        arrays = [self._array(number, first, last) for number in range(len(self.steps))]
        sources = self.reading.unit.sources
        shared = [
            first // source.rows * step if source.rows > 1 else 0 for source, step in zip(sources, self.steps, strict=True)
        ]
        many = any(source.rows > 1 for source in sources)
        starts = tuple(at - back for at, back in zip(addresses(arrays), shared, strict=True))
        if many:  # rows are numbered from the tensor's first, so that those that share a place are told
            starts = tuple(
                at - (first * step if source.rows == 1 else 0)
                for at, step, source in zip(starts, self.steps, sources, strict=True)
            )
        return Bound(starts, self.steps), first if many else 0, arrays

    def moved(self, bound: Bound, first: int, ahead: int) -> Bound:
        """Have sources that come again begin so that what a kernel takes for row `ahead` of a range is row `first`."""
        from qformat.kernels.vector.decode import Bound

        if not any(self.again):
            return bound
        places = zip(bound.starts, bound.steps, self.again, strict=True)
        return Bound(tuple(at + (first % n - ahead) * step if n else at for at, step, n in places), bound.steps)

    def _array(self, number: int, first: int, last: int) -> NDArray[Any]:
        """Give the bytes of a source for rows [first, last)."""
        source, given = self.reading.unit.sources[number], self.reading.given[number]
        if given == CODES_GIVEN:
            codes: NDArray[Any] = np.ascontiguousarray(self.tensor.codes(slice(first, last)))
            if self.reading.unit.levels:
                from qformat.kernels.evaluate import check_table

                check_table(codes, len(self.reading.unit.levels) // 4)
            return codes
        if isinstance(given, Signed | Shifted):
            return table_of(given)
        if given is not None:
            operands = Operands(self.tensor.scheme, self.tensor.n_cols, self.tensor.param)
            found, run = operands.operand(self.operands[given][1], first, last)
            return np.ascontiguousarray(operands.spread(found, run, self.reading.runs[number]), np.float32)
        step = self.steps[number]
        low, high = (0, 1) if source.rows == 0 else (first // source.rows, -(-last // source.rows))
        if self.again[number]:
            low, high = 0, self.again[number]
        part = next(part for part in self.tensor.parts if part.form.role == self.reading.roles[number])
        return read_all(part.source, low * step, high * step)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [first, last) of a tensor, which lie alike; best read by so many `together`, all if 0."""

    first: int
    last: int
    together: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class Run:
    """Rows [first, last) of a tensor, all of one piece: where their sources begin, a kernel's number of the first of them."""

    piece: int
    first: int
    last: int
    bound: Bound
    at: int


class Pieces:
    """Decodes rows of one tensor, whichever pieces they are of; made by `rows_of`."""

    def __init__(self, tensor: PackedTensor, pieces: tuple[Piece, ...]) -> None:
        self.pieces = pieces
        self.shared = max(1, SHARED_BYTES // max(pieces[0].rows.steps)) if len(pieces) > 1 else tensor.n_rows

    @property
    def in_place(self) -> bool:
        """Whether a range of rows takes no memory of its own, as `Rows.in_place` says, but for single ones between slabs."""
        return all(piece.rows.in_place or piece.last - piece.first == 1 for piece in self.pieces)

    def cut(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Cut rows [first, last) into ranges of one piece each, those that share blocks behind one another.

        returns: number of the piece, first and last row
        """
        most = max(piece.last - piece.first for piece in self.pieces)
        for begin in range(0, most, self.shared):
            for number, piece in enumerate(self.pieces):
                low = max(first, piece.first + begin)
                end = min(last, piece.last, piece.first + begin + self.shared)
                while low < end:
                    high = min(end, (low // piece.together + 1) * piece.together) if piece.together else end
                    yield number, low, high
                    low = high

    def bind(self, first: int, last: int) -> Iterator[Run]:
        """Bind rows [first, last) for kernels, range by range."""
        found = {}
        for number, low, high in self.cut(first, last):
            piece = self.pieces[number]
            begin = max(first, piece.first)
            if number not in found:
                found[number] = piece.rows.bind(begin, min(last, piece.last))
            bound, at, _held = found[number]
            yield Run(number, low, high, piece.rows.moved(bound, low, low - begin), at + low - begin)

    def decode(self, first: int, last: int, out: NDArray[Any], is_kept: bool) -> None:
        """Decode rows [first, last).

        out     : (last - first, n_cols) float32, float16 or bfloat16, rows without gaps between their elements
        is_kept : the caller's own array, so that a large one is written past the caches
        """
        from qformat.kernels.vector.decode import decode

        for run in self.bind(first, last):
            rows = self.pieces[run.piece].rows
            decode(rows.reading.unit, run.bound, run.at, rows.n_units, out[run.first - first : run.last - first], is_kept)


def rows_of(tensor: PackedTensor, input_scale: bool, least: int = LEAST) -> Pieces | None:
    """Bind a tensor; None where its rows are no whole units, or its codes have more values than a kernel looks up.

    least : weights that a unit is a multiple of, itself a multiple of 32
    """
    found = []
    for slab in slabs_of(tensor):
        scheme = slab.tensor.scheme
        chain = tuple((step.op, step.operand) for step in scheme.steps)
        if input_scale and scheme.input_scale:
            chain = (*chain, (Op.MUL, Ref(scheme.input_scale)))
        rows = _bound(slab.tensor, chain, least)
        if rows is None:
            return None
        found.append(Piece(slab.first, slab.last, slab.together, rows))
    return Pieces(tensor, tuple(found))


def codes_of(tensor: PackedTensor, factor: Operand | None, least: int) -> Rows | None:
    """Bind the codes of a tensor, and nothing else of it but an operand that they are multiplied by; None as for `rows_of`."""
    return _bound(tensor, () if factor is None else ((Op.MUL, factor),), least)


def _bound(tensor: PackedTensor, chain: tuple[tuple[Op, Operand], ...], least: int) -> Rows | None:
    tensor, in_place = upright(tensor), not any(part.swapped for part in tensor.parts)
    forms = tuple(part.form for part in tensor.parts)
    reading = reading_of(tensor.scheme, forms, tensor.n_cols, chain, in_place, least)
    return Rows(tensor, reading, chain) if reading else None


def row_bytes(source: Source, n_units: int) -> int:
    """Give the bytes from one place of rows to the next."""
    return source.n_bytes * (-(-n_units // source.units) if source.units else 1)
