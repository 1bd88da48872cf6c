"""Compiles products of rows of weights with rows of activations: of units, decoded in registers, or of float32 as it lies.

Weights are never stored: what `unordered` makes of codes is multiplied where it is. Sums are float32, in lanes that are added
up at the end of a row, each row of weights by itself: which others are multiplied beside it changes no bit. A product and the
sum with it are rounded once where the processor does both at a time, else each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import byte_shuffle, has_f16c
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import Emitter, Target, places
from qformat.kernels.vector.ir import F32, I64, Value, call, join, load, moved, pick, settled, splat, table, vector
from qformat.kernels.vector.pieces import piece, put
from qformat.kernels.vector.unordered import LANES, codes_of, floats_of, order_of
from qformat.kernels.vector.values import is_small
from qformat.units import LEAST, Expression, Unit, Whole

BLOCK = 32  # runs of 32 columns: of four rows of activations, half of what a first-level cache holds


@dataclass(frozen=True, slots=True)
class Shape:
    """What is multiplied at a time, so that sixteen registers hold the sums and what is added to them.

    n_x    : rows of activations
    n_rows : rows of weights, where as many are left
    n_sums : vectors of lanes that a sum is spread over
    """

    n_x: int
    n_rows: int
    n_sums: int


OF_UNITS = {1: Shape(1, 1, 4), 2: Shape(2, 1, 2), 4: Shape(4, 1, 2), 8: Shape(8, 1, 1)}
OF_FLOATS = {1: Shape(1, 1, 4), 2: Shape(2, 4, 1), 4: Shape(4, 3, 1)}


# Adds products of rows of units to an array: where they are, number of the first row, units in a row, activations, the array.
Multiply = Callable[[Bound, int, int, NDArray[np.float32], NDArray[np.float32]], None]


def multiplier(unit: Unit, n_x: int) -> Multiply:
    """Give what adds to an array the products of rows of units with `n_x` rows of activations, 1, 2, 4 or 8.

    Addresses are to stay readable meanwhile for all rows and units; rows are numbered as for `decode`. Activations are in the
    order that `order_of` tells, the elements of a row one after the other; the array has any strides: (n_x, rows of units).
    """
    kernel = _kernel(unit, _target(), OF_UNITS[n_x])
    return lambda at, first, n_units, x, out: kernel(at.starts, at.steps, first, n_units, *_places(x, out))


def multiply_floats(weights: NDArray[np.float32], x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Add to `out` the products of rows of weights with rows of activations.

    weights : (rows, columns), a multiple of 32 columns, the elements of a row one after the other
    x       : (1, 2 or a multiple of 4, columns), likewise
    out     : (rows of activations, rows of weights); any strides
    """
    kernel = _kernel(None, _target(), OF_FLOATS[min(len(x), max(OF_FLOATS))])
    kernel((weights.ctypes.data,), (weights.strides[0],), 0, weights.shape[1] // LEAST, *_places(x, out))


def _target() -> Target:
    return Target("float32", 1, False, has_f16c(), byte_shuffle())


def _places(x: NDArray[np.float32], out: NDArray[np.float32]) -> tuple[int, ...]:
    return len(x), out.shape[1], x.ctypes.data, x.strides[0], out.ctypes.data, *out.strides


@lru_cache(maxsize=512)
def _kernel(unit: Unit | None, target: Target, shape: Shape) -> Kernel:
    key, key_of_one = (piece(_multiply, unit, target, Shape(shape.n_x, n, shape.n_sums)) for n in (shape.n_rows, 1))
    n_together, n_taken = shape.n_rows, shape.n_x

    def of_units(starts, steps, first, n_units, n_x, n_rows, x, x_step, out, out_step, row_step):  # type: ignore[no-untyped-def]  # compiled
        for row in range(n_rows):
            to = out + row * row_step
            put(key, (starts, steps, first + row, n_units, x, x_step, to, out_step, row_step))  # type: ignore[call-arg]  # numba gives the first

    def of_floats(starts, steps, first, n_units, n_x, n_rows, x, x_step, out, out_step, row_step):  # type: ignore[no-untyped-def]  # compiled
        for block in range(0, n_units, BLOCK):
            n, at, weights = min(BLOCK, n_units - block), block * 4 * LEAST, (starts[0] + block * 4 * LEAST,)
            for i in range(0, n_x, n_taken):
                here, to, row = x + i * x_step + at, out + i * out_step, 0
                while row + n_together <= n_rows:
                    put(key, (weights, steps, row, n, here, x_step, to + row * row_step, out_step, row_step))  # type: ignore[call-arg]  # likewise
                    row += n_together
                while row < n_rows:
                    put(key_of_one, (weights, steps, row, n, here, x_step, to + row * row_step, out_step, row_step))  # type: ignore[call-arg]  # likewise
                    row += 1

    return compiled(of_floats if unit is None else of_units)


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
    zero = splat(F32, 0.0, LANES)
    sums = {pair: [_room(b, zero.type) for _ in range(shape.n_sums)] for pair in pairs}
    for kept in (kept for some in sums.values() for kept in some):
        b.store(zero, kept)
    with cgutils.for_range(b, n_units) as loop:
        rows = [
            _weights(b, unit, target, starts, steps, b.add(row, ir.Constant(I64, r)), loop.index) for r in range(shape.n_rows)
        ]
        here = b.add(x, b.mul(loop.index, ir.Constant(I64, 4 * (unit.n_weights if unit else LEAST))))
        factors = [b.add(here, b.mul(x_step, ir.Constant(I64, i))) for i in range(shape.n_x)]
        found = {pair: [b.load(kept) for kept in some] for pair, some in sums.items()}
        for number, weights in enumerate(zip(*rows, strict=True)):
            n = number % shape.n_sums
            for i in range(shape.n_x):
                factor = load(b, moved(b, factors[i], 4 * LANES * number), zero.type)
                for r in range(shape.n_rows):
                    found[r, i][n] = call(b, "llvm.fmuladd", [weights[r], factor, found[r, i][n]])
        for pair, some in sums.items():
            for kept, value in zip(some, found[pair], strict=True):
                b.store(value, kept)
    for (r, i), some in sums.items():
        steps_to = b.add(b.mul(out_step, ir.Constant(I64, i)), b.mul(row_step, ir.Constant(I64, r)))
        address = b.inttoptr(b.add(out, steps_to), F32.as_pointer())
        total = _sum(b, join(b, [b.load(kept) for kept in some]))
        b.store(b.fadd(b.load(address, align=1), total), address, align=1)


def _weights(
    b: ir.IRBuilder, unit: Unit | None, target: Target, starts: Value, steps: Value, row: Value, number: Value
) -> Iterator[Value]:
    """Give all weights of a unit, `LANES` at a time, in the order that `order_of` tells."""
    if unit is None:
        at = b.add(b.extract_value(starts, 0), b.mul(b.extract_value(steps, 0), row))
        at = b.add(at, b.mul(number, ir.Constant(I64, 4 * LEAST)))
        for first in range(0, LEAST, LANES):
            yield load(b, moved(b, at, 4 * first), vector(F32, LANES))
        return
    where = places(b, unit.sources, starts, steps, row, number)
    emitter = Emitter(b, unit, target, where, partial(table, b, F32))
    operands = [(op, emitter.operand(expression), _are_loaded(expression)) for op, expression in unit.steps]
    read, order = codes_of(b, emitter.load, unit, where.__getitem__), order_of(unit)
    for first in range(0, unit.n_weights, LEAST):
        codes = read(first, first + LEAST)
        for part, found in enumerate(floats_of(b, unit, codes, target.byte_shuffle, emitter.table)):
            at = first + LANES * part
            for op, operand, are_loaded in operands:
                group = unit.n_weights // operand.type.count
                lanes = [weight // group for weight in order[at : at + LANES]]
                found = emitter.apply(op, found, (_filled if are_loaded else pick)(b, operand, lanes))
            yield found


def _are_loaded(expression: Expression) -> bool:
    """Tell whether values are entries of a table in memory: any of them is loaded into all lanes as fast as into one."""
    return isinstance(expression, Whole) and is_small(expression.dtype)


def _filled(b: ir.IRBuilder, values: Value, lanes: Sequence[int]) -> Value:
    """Make a vector of lanes of values, by choosing between vectors of one of them: that shuffles none."""
    different = sorted(set(lanes))
    found, *others = (settled(b, pick(b, values, [number] * len(lanes))) for number in different)
    for number, other in zip(different[1:], others, strict=True):
        found = pick(b, found, [i + len(lanes) * (lane == number) for i, lane in enumerate(lanes)], other)
    return found


def _room(b: ir.IRBuilder, kind: ir.Type) -> Value:
    """Give where a value is kept over a loop: a register, in the end."""
    return cgutils.alloca_once(b, kind)  # type: ignore[no-untyped-call]  # numba's


def _sum(b: ir.IRBuilder, lanes: Value) -> Value:
    """Add up the lanes of a vector, halves to one another."""
    n = lanes.type.count
    while n > 1:
        n //= 2
        lanes = b.fadd(pick(b, lanes, range(n)), pick(b, lanes, range(n, 2 * n)))
    return b.extract_element(lanes, ir.Constant(ir.IntType(32), 0))
