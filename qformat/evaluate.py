"""From a scheme's operands to arrays that a kernel can run over: one value per run of columns.

A step's operand may be a stored parameter, a product of two levels, a looked-up value. All of that depends on groups, not
on weights, so it is worked out here on the small arrays, each operation one float32 rounding. What is left per weight is
a chain of operations with one operand per row and run of columns.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from qformat.bits import DTYPES, values
from qformat.scheme import Apply, Const, Flat, Grid, Indexed, Lookup, Op, Operand, Ref, Scheme, Strided

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

OPERATIONS: dict[Op, Callable[[Any, Any], Any]] = {
    Op.MUL: operator.mul,
    Op.ADD: operator.add,
    Op.SUB: operator.sub,
    Op.DIV: operator.truediv,
}

# Reads a stored parameter for indices [first, last) of its first axis; last None: to the end.
ReadParam: TypeAlias = "Callable[[str, int, int | None], NDArray[Any]]"
F32: TypeAlias = "NDArray[np.float32]"


class Operands:
    """The operands of a scheme for one tensor of `n_cols` columns, read through `read`."""

    def __init__(self, scheme: Scheme, n_cols: int, read: ReadParam) -> None:
        self.scheme = scheme
        self.n_cols = n_cols
        self.read = read

    def steps(self, first: int, last: int, input_scale: bool = True) -> list[tuple[Op, F32, int]]:
        """Give, for each step, its operation, its operand for rows [first, last) and the columns that share a value.

        returns: (operation, (last - first, n_runs) float32, columns per run); broadcast where all rows share
        """
        found = [(step.op, *self.operand(step.operand, first, last)) for step in self.scheme.steps]
        if input_scale and self.scheme.input_scale:
            found.append((Op.MUL, *self.operand(Ref(self.scheme.input_scale), first, last)))
        return found

    def operand(self, operand: Operand, first: int, last: int) -> tuple[F32, int]:
        """Give an operand's value for rows [first, last): (rows, runs) float32 and the columns of a run."""
        if isinstance(operand, Const):
            return np.full((last - first, 1), operand.value, np.float32), self.n_cols
        if isinstance(operand, Apply):
            left, wide = self.operand(operand.left, first, last)
            right, narrow = self.operand(operand.right, first, last)
            run = common_run(wide, narrow, self.n_cols)
            with np.errstate(all="ignore"):  # infinities and NaN in stored scales are values like any other
                return OPERATIONS[operand.op](self.spread(left, wide, run), self.spread(right, narrow, run)), run
        if isinstance(operand, Lookup):
            index, run = self.by_row(operand.index, first, last)
            table = as_float32(self.read(operand.table, 0, None), self.scheme.param(operand.table).dtype)
            return table.reshape(-1)[index], run
        stored, run = self.by_row(operand.name, first, last)
        return as_float32(stored, self.scheme.param(operand.name).dtype), run

    def spread(self, array: F32, run: int, narrower: int) -> F32:
        """Repeat values so that each covers `narrower` columns instead of `run`."""
        if run == narrower:
            return array
        columns = np.arange(-(-self.n_cols // narrower)) * narrower // run
        return array[:, columns]

    def by_row(self, name: str, first: int, last: int) -> tuple[NDArray[Any], int]:
        """Give a stored parameter for rows [first, last), and how many columns share each value."""
        group = self.scheme.param(name).group
        n_cols = self.n_cols
        if isinstance(group, Grid):
            low, high = (0, 1) if group.rows == 0 else (first // group.rows, -(-last // group.rows))
            stored = self.read(name, low, high)
            if group.rows != 1:
                stored = stored[
                    np.zeros(last - first, np.intp) if group.rows == 0 else np.arange(first, last) // group.rows - low
                ]
            return stored, group.cols or n_cols
        if isinstance(group, Flat):
            run = math.gcd(n_cols, group.n_weights)  # no group ends within such a run
            low = first * n_cols // group.n_weights
            stored = self.read(name, low, -(-last * n_cols // group.n_weights))
            if run != group.n_weights:
                stored = stored[np.arange(first * n_cols // run, last * n_cols // run) // (group.n_weights // run) - low]
            return stored.reshape(last - first, n_cols // run), run
        if isinstance(group, Strided):
            stored = self.read(name, 0, None)
            n = (last - first) * n_cols
            return np.resize(np.roll(stored, -first * n_cols), n).reshape(last - first, n_cols), 1
        if isinstance(group, Indexed):
            columns = self.read(group.index, 0, None).reshape(-1)
            return self.read(name, first, last)[:, columns], 1
        raise TypeError(f"a table is looked up, not shared: '{name}'")


def operand_run(scheme: Scheme, operand: Operand, n_cols: int) -> int:
    """Give the columns that share a value of an operand; `n_cols` or more where all do."""
    if isinstance(operand, Const):
        return n_cols
    if isinstance(operand, Apply):
        left, right = (operand_run(scheme, side, n_cols) for side in (operand.left, operand.right))
        return common_run(left, right, n_cols)
    group = scheme.param(operand.index if isinstance(operand, Lookup) else operand.name).group
    if isinstance(group, Grid):
        return group.cols or n_cols
    return math.gcd(n_cols, group.n_weights) if isinstance(group, Flat) else 1


def as_float32(stored: NDArray[Any], dtype: str) -> F32:
    """Give the exact float32 values of stored elements.

    stored : in the element's NumPy dtype, or its codes as uint8
    dtype  : element type; wider floats than float32 are rounded once
    """
    if dtype in DTYPES and DTYPES[dtype].kind == "float" and DTYPES[dtype].bits <= 8:
        table = np.array(values(dtype), np.float32)
        return table[stored.view(np.uint8)]
    return stored.astype(np.float32)


def common_run(one: int, other: int, n_cols: int | None = None) -> int:
    """Give a run of columns that cuts both into whole runs; one that reaches over all `n_cols` needs no cutting."""
    wide, narrow = max(one, other), min(one, other)
    if n_cols is not None and wide >= n_cols:
        return narrow or 1
    return math.gcd(wide, narrow)


def alphabet_table(levels: tuple[float, ...]) -> F32:
    """Give the levels of an alphabet as float32, indexed by code."""
    return np.array(levels, np.float32)
