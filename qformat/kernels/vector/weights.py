"""Makes the weights of a unit in registers, for sums: values of codes and the scheme's operations, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from llvmlite import ir

from qformat.bits import DTYPES
from qformat.bits import values as element_values
from qformat.kernels.vector import values
from qformat.kernels.vector.emit import Emitter, Target, apply, places
from qformat.kernels.vector.ir import F32, I64, Value, filled, load, moved, pick, pinned, settled, table
from qformat.kernels.vector.unordered import Reader, order_of
from qformat.units import LEAST, Expression, Unit, Whole

# Gives an operand for weights of these numbers.
Spread = Callable[[Sequence[int]], Value]


def weights_of(
    b: ir.IRBuilder, unit: Unit, target: Target, starts: Value, steps: Value, row: Value, number: Value
) -> Iterator[Value]:
    """Give all weights of a unit, as many at a time as a vector has lanes, in the order that `order_of` tells."""
    where = [pinned(b, address) for address in places(b, unit.sources, starts, steps, row, number)]
    constants = partial(table, b, F32)
    emitter = Emitter(b, unit, target, where, constants)
    operands = [(op, _spread(b, emitter, expression)) for op, expression in unit.steps]
    read, order = Reader(b, unit, target, emitter.load, where.__getitem__, constants).floats(), order_of(unit, target)
    for first in range(0, unit.n_weights, LEAST):
        for part, found in enumerate(read(first)):
            at = first + target.lanes * part
            for op, operand in operands:
                found = apply(b, op, found, operand(order[at : at + target.lanes]))
            yield found


def _spread(b: ir.IRBuilder, emitter: Emitter, expression: Expression) -> Spread:
    n_weights = emitter.unit.n_weights
    if isinstance(expression, Whole) and expression.count < n_weights:
        group, every = n_weights // expression.count, _loader(b, emitter, expression)
        return lambda weights: _filled(b, every, [weight // group for weight in weights])
    operand = emitter.operand(expression)
    group = n_weights // operand.type.count
    return lambda weights: pick(b, operand, [weight // group for weight in weights])


def _filled(b: ir.IRBuilder, every: Callable[[int], Value], lanes: Sequence[int]) -> Value:
    """Make a vector of lanes of values in memory, by choosing between vectors of one of them: that shuffles none."""
    different = sorted(set(lanes))
    found, *others = (settled(b, every(number)) for number in different)
    for number, other in zip(different[1:], others, strict=True):
        found = pick(b, found, [i + len(lanes) * (lane == number) for i, lane in enumerate(lanes)], other)
    return found


def _loader(b: ir.IRBuilder, emitter: Emitter, expression: Whole) -> Callable[[int], Value]:
    """Give what loads one value into all lanes."""
    dtype, lanes = expression.dtype, emitter.target.lanes
    kind, entries = ir.IntType(DTYPES[dtype].bits), emitter.table(element_values(dtype)) if values.is_small(dtype) else None

    def every(number: int) -> Value:
        found = load(b, moved(b, emitter.at[expression.source], expression.at[number]), kind)
        if entries is None:
            return values.of_element(b, filled(b, found, lanes), dtype, emitter.target.has_f16c)
        return filled(b, load(b, b.add(entries, b.mul(b.zext(found, I64), ir.Constant(I64, 4))), F32), lanes)

    return every
