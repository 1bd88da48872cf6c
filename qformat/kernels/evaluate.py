"""Turns codes into floats: a table or the code itself, then a chain of float32 operations, each rounded once.

Operands arrive worked out, one value per row and run of columns. Where they come from is not its business.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.kernels.compiled import Kernel, compiled, inlined
from qformat.kernels.flat import flat, is_regular
from qformat.kernels.rounding import put
from qformat.scheme import Op

F32 = NDArray[np.float32]

MAX_STEPS = 4  # operations of one pass: zero, scale, bias, input scale; a longer chain takes several passes
TABLE_SIZE = 256
SCRATCH_WEIGHTS = 1 << 16  # float32 in between for other output types: 256 KiB stay in the second-level cache
_NUMBERS = {op: number for number, op in enumerate(Op)}
_MUL, _ADD, _SUB = _NUMBERS[Op.MUL], _NUMBERS[Op.ADD], _NUMBERS[Op.SUB]
_NO_TABLE = np.zeros(TABLE_SIZE, np.float32)
_NO_OPERANDS = np.zeros((1, 1, 1), np.float32)


def evaluate(codes: NDArray[Any], table: F32 | None, chain: tuple[tuple[Op, F32], ...], run: int, out: NDArray[Any]) -> None:
    """Give the float value of every code.

    codes : (rows, columns) int8, uint8, int16 or int32; any strides
    table : float32 value of each code; None: codes stand for themselves
    chain : operation and its operand, (rows, n_runs) float32; column k takes operand k // run
    out   : (rows, columns), written in full: float32, or another float type, rounded once from float32, ties to even,
            beyond its range to infinity where it has one; any strides

    Raises UsageError when the shapes disagree or a code lies outside the table.
    """
    _check(codes, table, chain, run, out)
    if not codes.size:
        return
    if out.dtype == np.float32 and is_regular(out) and out.strides[1] == out.itemsize:
        _fill(codes, table, chain, run, out)
        return
    step = max(1, SCRATCH_WEIGHTS // codes.shape[1])
    scratch = np.empty((min(step, codes.shape[0]), codes.shape[1]), np.float32)
    for low in range(0, codes.shape[0], step):
        rows = slice(low, min(low + step, codes.shape[0]))
        tile = scratch[: rows.stop - low]
        _fill(codes[rows], table, tuple((op, operand[rows]) for op, operand in chain), run, tile)
        put(tile, out[rows])


def _fill(codes: NDArray[Any], table: F32 | None, chain: tuple[tuple[Op, F32], ...], run: int, out: F32) -> None:
    """Evaluate into float32 rows, in passes of `MAX_STEPS` operations."""
    first, rest = chain[:MAX_STEPS], chain[MAX_STEPS:]
    if codes.strides[1] != codes.itemsize or not is_regular(codes):
        codes = np.ascontiguousarray(codes, codes.dtype.newbyteorder("="))
    operands = np.ascontiguousarray(np.stack([operand for _, operand in first]), np.float32) if first else _NO_OPERANDS
    data, at, steps = flat(codes)
    values, to, out_steps = flat(out, writeable=True)
    kernel = _evaluator(tuple(_NUMBERS[op] for op, _ in first), table is not None)
    with np.errstate(all="ignore"):  # infinities and NaN in stored scales are values like any other
        kernel(
            data,
            at,
            steps[0],
            _NO_TABLE if table is None else _full(table),
            operands,
            run,
            codes.shape,
            values,
            to,
            out_steps[0],
        )
        if rest:
            _fill(out, None, rest, run, out)


def _full(table: F32) -> F32:
    """Lay a table out at its full size, so that one compiled kernel takes them all."""
    full = np.zeros(max(TABLE_SIZE, table.size), np.float32)
    full[: table.size] = table
    return full


def check_table(codes: NDArray[Any], n_values: int) -> None:
    """Refuse codes that a table of so many values does not have. Raises UsageError with the worst."""
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= n_values:
        raise UsageError(f"code {low if low < 0 else high} is outside the table of {n_values} values", found=high)


def _check(codes: NDArray[Any], table: F32 | None, chain: tuple[tuple[Op, F32], ...], run: int, out: NDArray[Any]) -> None:
    if codes.ndim != 2 or out.shape != codes.shape:
        raise UsageError(f"out has shape {out.shape}, expected {codes.shape}")
    if not codes.size:
        return
    if run < 1:
        raise UsageError(f"runs of {run} columns, expected at least 1")
    shape = (codes.shape[0], -(-codes.shape[1] // run))
    for op, operand in chain:
        if operand.shape != shape:
            raise UsageError(f"operand of '{op.value}' has shape {operand.shape}, expected {shape}")
    if table is not None:
        check_table(codes, table.size)


@inlined
def _apply(op, value, operand):  # type: ignore[no-untyped-def]  # compiled
    if op == _MUL:
        return value * operand
    if op == _ADD:
        return value + operand
    if op == _SUB:
        return value - operand
    return value / operand


@lru_cache(maxsize=64)
def _evaluator(ops: tuple[int, ...], looked_up: bool) -> Kernel:
    """Make the kernel of a chain of operations."""
    n = len(ops)
    op_0, op_1, op_2, op_3 = (*ops, *(-1,) * (MAX_STEPS - n))

    def run(codes, at, step, table, operands, width, shape, out, to, out_step):  # type: ignore[no-untyped-def]  # compiled
        none = np.float32(0)
        for row in range(shape[0]):
            source, target = at + row * step, to + row * out_step
            for group in range(-(-shape[1] // width)):
                x_0 = operands[0, row, group] if n > 0 else none
                x_1 = operands[1, row, group] if n > 1 else none
                x_2 = operands[2, row, group] if n > 2 else none
                x_3 = operands[3, row, group] if n > 3 else none
                for k in range(group * width, min(group * width + width, shape[1])):
                    code = codes[np.uintp(source + k)]
                    value = table[np.uintp(code)] if looked_up else np.float32(code)
                    if n > 0:
                        value = _apply(op_0, value, x_0)
                    if n > 1:
                        value = _apply(op_1, value, x_1)
                    if n > 2:
                        value = _apply(op_2, value, x_2)
                    if n > 3:
                        value = _apply(op_3, value, x_3)
                    out[np.uintp(target + k)] = value

    return compiled(run)
