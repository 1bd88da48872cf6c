"""Compiles the way of a unit from one packed form to another into a kernel that runs over rows of units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from llvmlite import ir

from qformat.bits import DTYPES
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import places
from qformat.kernels.vector.fields import Load
from qformat.kernels.vector.grids import reader
from qformat.kernels.vector.ir import Value, load, loader, moved, store
from qformat.kernels.vector.pack import pack_bytes, runs
from qformat.kernels.vector.pieces import piece, put
from qformat.units import LEAST, Move

WIDEST = 32  # bytes that are written at a time

# Takes rows over: addresses to read, addresses to write, rows, units in a row.
Mover = Callable[[Bound, Bound, int, int], None]


def mover(move: Move) -> Mover:
    """Give what takes rows of units from one packed form to another.

    Addresses, of any alignment, are to stay readable and writeable meanwhile for all rows and units.
    """
    kernel = _kernel(move)
    return lambda at, to, n_rows, n_units: kernel(at.starts, at.steps, to.starts, to.steps, n_rows, n_units)


@lru_cache(maxsize=512)
def _kernel(move: Move) -> Kernel:
    key = piece(_move_unit, move)

    def run(starts, steps, to_starts, to_steps, n_rows, n_units):  # type: ignore[no-untyped-def]  # compiled
        for row in range(n_rows):
            for number in range(n_units):
                put(key, (starts, steps, to_starts, to_steps, row, number))  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


def _move_unit(
    b: ir.IRBuilder, move: Move, starts: Value, steps: Value, to_starts: Value, to_steps: Value, row: Value, number: Value
) -> None:
    at = places(b, move.sources, starts, steps, row, number)
    emit_move(b, move, loader(b, at), at, places(b, move.targets, to_starts, to_steps, row, number))


def emit_move(b: ir.IRBuilder, move: Move, read: Load, at: Sequence[Value], to: Sequence[Value]) -> None:
    """Take one unit over, from the places of its sources to those of its targets.

    read : loads bytes of a source's place
    """
    for one, other in move.copies:
        kind = ir.IntType(DTYPES[one.dtype].bits)
        for here, there in zip(one.at, other.at, strict=True):
            value = load(b, moved(b, at[one.source], here), kind)
            b.store(value, b.inttoptr(moved(b, to[other.source], there), kind.as_pointer()), align=1)
    codes_of = reader(b, read, move.codes, at.__getitem__)
    codes = [codes_of(first, first + LEAST) for first in range(0, move.n_weights, LEAST)]
    for first, last in runs(move.to):
        for low in range(first, last, WIDEST):
            found = pack_bytes(b, move.to, codes, low, min(low + WIDEST, last))
            store(b, found, moved(b, to[move.to.source], low), 1, False)
