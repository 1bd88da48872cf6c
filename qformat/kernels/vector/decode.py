"""Compiles the decoding of a unit into a kernel that runs over rows of units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import byte_shuffle, has_f16c, to_bfloat16
from qformat.kernels.vector.emit import Emitter, Target, places
from qformat.kernels.vector.ir import F32, Value, table
from qformat.kernels.vector.pieces import piece, put
from qformat.units import Unit

CACHED = 1 << 21  # bytes: larger outputs that the caller keeps are written past the caches
NARROW = 16  # bytes: the narrowest store that can go past them
WIDE = 64


@dataclass(frozen=True, slots=True)
class Bound:
    """Where the sources of a unit begin.

    starts : address of each source for row 0 of the call
    steps  : bytes from one place of rows to the next, 0 where rows share one
    """

    starts: tuple[int, ...]
    steps: tuple[int, ...]


def writes(out: NDArray[Any]) -> bool:
    """Tell whether a kernel can write these rows here: their element type, the elements of a row one after the other."""
    is_known = out.dtype.name in ("float32", "bfloat16") or (out.dtype.name == "float16" and has_f16c())
    return is_known and out.dtype.isnative and out.strides[1] == out.itemsize


def decode(unit: Unit, bound: Bound, first: int, n_units: int, out: NDArray[Any], is_kept: bool) -> None:
    """Decode rows of units.

    bound   : addresses, which stay readable meanwhile for all rows and units
    first   : number of the first row among those that share a place, where some do
    n_units : in a row
    out     : (rows, n_units * unit.n_weights), as `writes` wants them
    is_kept : the caller's own array: a large one is written past the caches
    """
    address, step = out.ctypes.data, out.strides[0]
    together = address | step if len(out) > 1 else address
    aligned = next((n for n in (WIDE, 2 * NARROW, NARROW) if together % n == 0), 0)
    streams = is_kept and aligned > 0 and out.nbytes >= CACHED
    target = Target(out.dtype.name, aligned if streams else 1, streams, has_f16c(), byte_shuffle(), to_bfloat16())
    _kernel(unit, target)(bound.starts, bound.steps, first, len(out), n_units, address, step)


@lru_cache(maxsize=512)
def _kernel(unit: Unit, target: Target) -> Kernel:
    key, unit_bytes = piece(_decode_unit, unit, target), unit.n_weights * target.n_bytes

    def run(starts, steps, first, n_rows, n_units, out, out_step):  # type: ignore[no-untyped-def]  # compiled
        for row in range(n_rows):
            for number in range(n_units):
                at = out + row * out_step + number * unit_bytes
                put(key, (starts, steps, first + row, number, at))  # type: ignore[call-arg]  # numba gives the first
        finish()  # type: ignore[call-arg]  # likewise

    return compiled(run)


def _decode_unit(
    b: ir.IRBuilder, unit: Unit, target: Target, starts: Value, steps: Value, row: Value, number: Value, out: Value
) -> None:
    at = places(b, unit.sources, starts, steps, row, number)
    Emitter(b, unit, target, at, partial(table, b, F32)).run(out)


@intrinsic
def finish(typing):  # type: ignore[no-untyped-def]  # numba's own interface
    """Wait for stores that go past the caches: other threads may read next."""

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        b.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def addresses(arrays: Sequence[NDArray[Any]]) -> tuple[int, ...]:
    """Give where arrays begin."""
    return tuple(array.ctypes.data for array in arrays)
