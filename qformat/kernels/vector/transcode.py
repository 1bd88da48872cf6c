"""Compiles the way of a unit from one packed form to another into a kernel that runs over rows of units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from qformat.bits import DTYPES
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import place
from qformat.kernels.vector.fields import Load
from qformat.kernels.vector.grids import reader
from qformat.kernels.vector.ir import Value, load, loader, moved, store
from qformat.kernels.vector.pack import pack_bytes, runs
from qformat.units import LEAST, Move

WIDEST = 32  # bytes that are written at a time

# Takes rows over: addresses to read, addresses to write, rows, units in a row.
Mover = Callable[[Bound, Bound, int, int], None]

# What a key stands for: numba hands an intrinsic literals alone.
_JOBS: dict[str, Move] = {}


def mover(move: Move) -> Mover:
    """Give what takes rows of units from one packed form to another.

    Addresses, of any alignment, are to stay readable and writeable meanwhile for all rows and units.
    """
    kernel = _kernel(move)
    return lambda at, to, n_rows, n_units: kernel(at.starts, at.steps, to.starts, to.steps, n_rows, n_units)


@lru_cache(maxsize=512)
def _kernel(move: Move) -> Kernel:
    key = sha256(repr(move).encode()).hexdigest()
    _JOBS[key] = move

    def run(starts, steps, to_starts, to_steps, n_rows, n_units):  # type: ignore[no-untyped-def]  # compiled
        for row in range(n_rows):
            for number in range(n_units):
                _move_unit(key, starts, steps, to_starts, to_steps, row, number)  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


@intrinsic(prefer_literal=True)
def _move_unit(typing, key, starts, steps, to_starts, to_steps, row, number):  # type: ignore[no-untyped-def]  # numba's own interface
    move = _JOBS[key.literal_value]

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _, starts, steps, to_starts, to_steps, row, number = args
        at, to = (
            [place(b, one, b.extract_value(first, i), b.extract_value(step, i), row, number) for i, one in enumerate(arrays)]
            for arrays, first, step in ((move.sources, starts, steps), (move.targets, to_starts, to_steps))
        )
        emit_move(b, move, loader(b, at), at, to)
        return context.get_dummy_value()

    return types.void(key, starts, steps, to_starts, to_steps, row, number), generate


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
