"""Compiles products of rows of weights with rows of activations: of units, or of float32 as it lies.

What `weights` makes of a unit is multiplied in registers with one or two rows of activations. With more, a few columns of a few
rows of weights are laid into the nearest cache first, once for all activations. Sums are float32, in lanes that are added up at
the end of a run of columns, each row of weights by itself: which others are multiplied beside it changes no bit. A product and
the sum with it are rounded once where the processor does both at a time, else each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import byte_shuffle, has_f16c, lanes
from qformat.kernels.vector import unordered
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import Target, ask_for_places, places
from qformat.kernels.vector.ir import (
    EIGHT,
    F32,
    I64,
    LINE,
    Value,
    ask_for,
    call,
    cut,
    load,
    moved,
    neighbours,
    splat,
    store,
    vector,
)
from qformat.kernels.vector.pieces import piece, put
from qformat.kernels.vector.weights import weights_of
from qformat.units import LEAST, Unit

BLOCK = 32  # runs of 32 columns: of four rows of activations, half of what a first-level cache holds
TILE = 512  # columns that are decoded at a time, of as many rows as are multiplied together
PANEL = 24  # rows that are gone through for one such run of columns after the other: a second-level cache holds their bytes


@dataclass(frozen=True, slots=True)
class Shape:
    """What is multiplied at a time, so that sixteen registers hold the sums and what is added to them.

    n_x    : rows of activations
    n_rows : rows of weights, where as many are left
    n_sums : vectors of eight lanes that a sum is spread over, two of them in one where registers are wider
    """

    n_x: int
    n_rows: int
    n_sums: int


OF_UNITS = {1: Shape(1, 1, 4), 2: Shape(2, 1, 2)}
OF_FLOATS = {1: Shape(1, 1, 4), 2: Shape(2, 4, 1), 4: Shape(4, 3, 1)}


# Adds products of rows of units to an array: where they are, number of the first row, units in a row, activations, the array.
Multiply = Callable[[Bound, int, int, NDArray[np.float32], NDArray[np.float32]], None]


def multiplier(unit: Unit, n_x: int) -> Multiply:
    """Give what adds to an array the products of rows of units with `n_x` rows of activations: 1, 2 or a multiple of 4.

    Addresses are to stay readable meanwhile for all rows and units; rows are numbered as for `decode`. Activations are in the
    order that `order_of` tells, those of `together` columns side by side: (runs of columns, n_x, columns of a run), C order.
    The array has any strides: (n_x, rows of units).
    """
    kernel = _of_units(unit, _target(), OF_UNITS[n_x]) if n_x in OF_UNITS else _of_tiles(unit, _target())
    return lambda at, first, n_units, x, out: kernel(at.starts, at.steps, first, n_units, *_places(x, out))


def together(unit: Unit, n_x: int, n_cols: int) -> int:
    """Give how many columns of a row of activations lie side by side, of `n_cols`."""
    return n_cols if n_x in OF_UNITS else _units_of_tile(unit) * unit.n_weights


def order_of(unit: Unit) -> tuple[int, ...]:
    """Give the number of the column, of those of a unit, that each activation is of."""
    return unordered.order_of(unit, _target())


def multiply_floats(weights: NDArray[np.float32], x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Add to `out` the products of rows of weights with rows of activations.

    weights : (rows, columns), a multiple of 32 columns, the elements of a row one after the other
    x       : (1, 2 or a multiple of 4, columns), likewise
    out     : (rows of activations, rows of weights); any strides
    """
    kernel = _of_floats(_target(), OF_FLOATS[min(len(x), max(OF_FLOATS))])
    kernel((weights.ctypes.data,), (weights.strides[0],), weights.shape[1] // LEAST, *_places(x, out))


def _target() -> Target:
    return Target("float32", 1, False, has_f16c(), byte_shuffle(), lanes=lanes())


def _places(x: NDArray[np.float32], out: NDArray[np.float32]) -> tuple[int, ...]:
    return x.shape[-2], out.shape[1], x.ctypes.data, x.strides[-2], out.ctypes.data, *out.strides


def _units_of_tile(unit: Unit) -> int:
    return max(1, TILE // unit.n_weights)


@lru_cache(maxsize=512)
def _of_units(unit: Unit, target: Target, shape: Shape) -> Kernel:
    key = piece(_multiply, unit, target, shape)

    def run(starts, steps, first, n_units, n_x, n_rows, x, x_step, out, out_step, row_step):  # type: ignore[no-untyped-def]  # compiled
        for row in range(n_rows):
            to = out + row * row_step
            put(key, (starts, steps, first + row, n_units, x, x_step, to, out_step, row_step))  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


@lru_cache(maxsize=8)
def _of_floats(target: Target, shape: Shape) -> Kernel:
    key, key_of_one = _of_rows(target, shape)
    n_together, n_taken = shape.n_rows, shape.n_x

    def run(starts, steps, n_runs, n_x, n_rows, x, x_step, out, out_step, row_step):  # type: ignore[no-untyped-def]  # compiled
        for block in range(0, n_runs, BLOCK):
            n, at, weights = min(BLOCK, n_runs - block), block * 4 * LEAST, (starts[0] + block * 4 * LEAST,)
            for i in range(0, n_x, n_taken):
                here, to, row = x + i * x_step + at, out + i * out_step, 0
                while row + n_together <= n_rows:
                    put(key, (weights, steps, row, n, here, x_step, to + row * row_step, out_step, row_step))  # type: ignore[call-arg]  # likewise
                    row += n_together
                while row < n_rows:
                    put(key_of_one, (weights, steps, row, n, here, x_step, to + row * row_step, out_step, row_step))  # type: ignore[call-arg]  # likewise
                    row += 1

    return compiled(run)


@lru_cache(maxsize=512)
def _of_tiles(unit: Unit, target: Target) -> Kernel:
    shape, n_block = OF_FLOATS[max(OF_FLOATS)], _units_of_tile(unit)
    (key, key_of_one), key_of_unit = _of_rows(target, shape), piece(_decode, unit, target)
    n_together, n_taken, n_bytes, n_runs = shape.n_rows, shape.n_x, 4 * unit.n_weights, unit.n_weights // LEAST
    key_of_tile = piece(_tile, n_together * n_block * unit.n_weights, returns=types.int64)

    def run(starts, steps, first, n_units, n_x, n_rows, x, x_step, out, out_step, row_step):  # type: ignore[no-untyped-def]  # compiled
        tile: int = put(key_of_tile, ())  # type: ignore[call-arg]  # likewise
        for low in range(0, n_rows, PANEL):
            for block in range(0, n_units, n_block):
                n, here = min(n_block, n_units - block), x + block // n_block * n_x * x_step
                for row in range(low, min(low + PANEL, n_rows), n_together):
                    n_here = min(n_together, n_rows - row)
                    for i in range(n_here):
                        for j in range(n):
                            at = tile + (i * n_block + j) * n_bytes
                            put(key_of_unit, (starts, steps, first + row + i, block + j, at))
                    rows = (tile,), (n_block * n_bytes,)
                    for i in range(0, n_x, n_taken):
                        at, to = here + i * x_step, out + i * out_step + row * row_step
                        if n_here == n_together:
                            put(key, (*rows, 0, n * n_runs, at, x_step, to, out_step, row_step))
                        else:
                            for j in range(n_here):
                                put(key_of_one, (*rows, j, n * n_runs, at, x_step, to + j * row_step, out_step, row_step))

    return compiled(run)


def _of_rows(target: Target, shape: Shape) -> tuple[str, str]:
    """Give the pieces that multiply rows of floats: as many as the shape says, and one."""
    one = Shape(shape.n_x, 1, shape.n_sums)
    return piece(_multiply, None, target, shape), piece(_multiply, None, target, one)


def _tile(b: ir.IRBuilder, n_weights: int) -> Value:
    """Make room for so many weights, and give its address."""
    room = _room(b, ir.ArrayType(vector(F32, EIGHT), n_weights // EIGHT))
    room.align = LINE
    return b.ptrtoint(room, I64)


def _decode(
    b: ir.IRBuilder, unit: Unit, target: Target, starts: Value, steps: Value, row: Value, number: Value, to: Value
) -> None:
    """Lay down the weights of a unit, in the order that `order_of` tells, and ask for those of a panel further."""
    ahead = places(b, unit.sources, starts, steps, b.add(row, ir.Constant(I64, PANEL)), number)
    ask_for_places(b, unit.sources, ahead, ask_for)
    for part, weights in enumerate(weights_of(b, unit, target, starts, steps, row, number)):
        store(b, weights, moved(b, to, 4 * target.lanes * part), 4 * EIGHT, False)


def _multiply(
    b: ir.IRBuilder,
    unit: Unit | None,
    target: Target,
    shape: Shape,
    starts: Value,
    steps: Value,
    row: Value,
    n_units: Value,
    x: Value,
    x_step: Value,
    out: Value,
    out_step: Value,
    row_step: Value,
) -> None:
    """Add the products of rows side by side, from `row` on, to those at `out`."""
    pairs = [(r, i) for r in range(shape.n_rows) for i in range(shape.n_x)]
    n_lanes = target.lanes if unit else EIGHT
    n_sums, zero = shape.n_sums * EIGHT // n_lanes, splat(F32, 0.0, n_lanes)
    sums = {pair: [_room(b, zero.type) for _ in range(n_sums)] for pair in pairs}
    for kept in (kept for some in sums.values() for kept in some):
        b.store(zero, kept)
    with cgutils.for_range(b, n_units) as loop:
        read = _floats if unit is None else partial(weights_of, unit=unit, target=target)
        rows = [
            read(b, starts=starts, steps=steps, row=b.add(row, ir.Constant(I64, r)), number=loop.index)
            for r in range(shape.n_rows)
        ]
        if unit:
            ask_for_places(b, unit.sources, places(b, unit.sources, starts, steps, row, loop.index))
        here = b.add(x, b.mul(loop.index, ir.Constant(I64, 4 * (unit.n_weights if unit else LEAST))))
        factors = [b.add(here, b.mul(x_step, ir.Constant(I64, i))) for i in range(shape.n_x)]
        found = {pair: [b.load(kept) for kept in some] for pair, some in sums.items()}
        for number, weights in enumerate(zip(*rows, strict=True)):
            n = number % n_sums
            for i in range(shape.n_x):
                factor = load(b, moved(b, factors[i], 4 * n_lanes * number), zero.type)
                for r in range(shape.n_rows):
                    found[r, i][n] = call(b, "llvm.fmuladd", [weights[r], factor, found[r, i][n]])
        for pair, some in sums.items():
            for kept, value in zip(some, found[pair], strict=True):
                b.store(value, kept)
    for r in range(shape.n_rows):
        totals = _totals(
            b, [_added(b, [part for kept in sums[r, i] for part in cut(b, b.load(kept), EIGHT)]) for i in range(shape.n_x)]
        )
        for i, total in enumerate(totals):
            steps_to = b.add(b.mul(out_step, ir.Constant(I64, i)), b.mul(row_step, ir.Constant(I64, r)))
            address = b.inttoptr(b.add(out, steps_to), F32.as_pointer())
            b.store(b.fadd(b.load(address, align=1), total), address, align=1)


def _floats(b: ir.IRBuilder, starts: Value, steps: Value, row: Value, number: Value) -> Iterator[Value]:
    """Give 32 weights that are float32 already; where a kernel wrote them itself, they do not stay."""
    at = b.add(b.extract_value(starts, 0), b.mul(b.extract_value(steps, 0), row))
    at = b.add(at, b.mul(number, ir.Constant(I64, 4 * LEAST)))
    for first in range(0, LEAST, EIGHT):
        yield b.load(b.inttoptr(moved(b, at, 4 * first), vector(F32, EIGHT).as_pointer()), align=1)


def _room(b: ir.IRBuilder, kind: ir.Type) -> Value:
    """Give where a value is kept over a loop: a register, in the end."""
    return cgutils.alloca_once(b, kind)  # type: ignore[no-untyped-call]  # numba's


def _added(b: ir.IRBuilder, some: Sequence[Value]) -> Value:
    """Add up vectors, a power of two of them."""
    while len(some) > 1:
        some = [b.fadd(one, other) for one, other in zip(some[::2], some[1::2], strict=True)]
    return some[0]


def _totals(b: ir.IRBuilder, some: Sequence[Value]) -> list[Value]:
    """Add up the lanes of each of at most four vectors of eight: neighbours, then pairs, then halves."""
    kept = [*some, *[some[-1]] * (4 - len(some))]
    while len(kept) > 1:
        kept = [neighbours(b, b.fadd, one, other) for one, other in zip(kept[::2], kept[1::2], strict=True)]
    found = b.fadd(*cut(b, kept[0], EIGHT // 2))
    return [b.extract_element(found, ir.Constant(ir.IntType(32), i)) for i in range(len(some))]
