"""Binds a tensor's bytes to the unit that a vector kernel decodes at a time, and decodes ranges of its rows.

Stored byte arrays are read where they lie, those that run down columns laid row by row before; what a unit cannot reach is
worked out for the rows at hand and handed over. Must not know what a kernel does with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformat.arrays import read_all
from qformat.decode import Shifted, Signed, table_of
from qformat.evaluate import Operands
from qformat.readings import CODES_GIVEN, Reading, reading_of
from qformat.scheme import Op, Operand, Ref
from qformat.units import LEAST, Source
from qformat.upright import upright

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.kernels.vector.decode import Bound
    from qformat.tensor import PackedTensor
else:
    from qformat.deferred import np


class Rows:
    """Decodes rows of one tensor in units; made by `rows_of`."""

    def __init__(self, tensor: PackedTensor, reading: Reading, operands: tuple[tuple[Op, Operand], ...]) -> None:
        self.tensor = tensor
        self.reading = reading
        self.operands = operands
        self.n_units = tensor.n_cols // reading.unit.n_weights
        self.steps = tuple(row_bytes(source, self.n_units) for source in reading.unit.sources)

    @property
    def in_place(self) -> bool:
        """Whether a range of rows takes no memory of its own but what is little to a weight: packed bytes, few operands."""
        given = zip(self.reading.given, self.reading.runs, strict=True)
        return all(not isinstance(number, int) or (number != CODES_GIVEN and run >= LEAST) for number, run in given)

    def decode(self, first: int, last: int, out: NDArray[Any], is_kept: bool) -> None:
        """Decode rows [first, last).

        out     : (last - first, n_cols) float32, float16 or bfloat16, rows without gaps between their elements
        is_kept : the caller's own array, so that a large one is written past the caches
        """
        from qformat.kernels.vector.decode import decode

        bound, from_row, _held = self.bind(first, last)
        decode(self.reading.unit, bound, from_row, self.n_units, out, is_kept)

    def bind(self, first: int, last: int) -> tuple[Bound, int, list[NDArray[Any]]]:
        """Bind the sources of rows [first, last) for a kernel.

        returns: where they begin, the kernel's number of the first row, and arrays that are to be kept until it has run
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
        part = next(part for part in self.tensor.parts if part.form.role == self.reading.roles[number])
        return read_all(part.source, low * step, high * step)


def rows_of(tensor: PackedTensor, input_scale: bool, least: int = LEAST) -> Rows | None:
    """Bind a tensor; None where its rows are no whole units, or its codes have more values than a kernel looks up.

    least : weights that a unit is a multiple of, itself a multiple of 32
    """
    scheme = tensor.scheme
    chain = tuple((step.op, step.operand) for step in scheme.steps)
    if input_scale and scheme.input_scale:
        chain = (*chain, (Op.MUL, Ref(scheme.input_scale)))
    return _bound(tensor, chain, least)


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
