"""Turns codes into floats: a table or the code itself, then a chain of float32 operations, each rounded once.

Operands arrive worked out, one value per row and run of columns. Where they come from is not its business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.scheme import Op

F32 = NDArray[np.float32]

_OPERATIONS: dict[Op, Callable[[Any, Any], Any]] = {
    Op.MUL: np.multiply,
    Op.ADD: np.add,
    Op.SUB: np.subtract,
    Op.DIV: np.divide,
}


def evaluate(codes: NDArray[Any], table: F32 | None, chain: tuple[tuple[Op, F32], ...], run: int, out: NDArray[Any]) -> None:
    """Give the float value of every code.

    codes : (rows, columns) integers
    table : float32 value of each code; None: codes stand for themselves
    chain : operation and its operand, (rows, n_runs) float32; column k takes operand k // run
    out   : (rows, columns), written in full: float32, or another float type, rounded once from float32
    """
    with np.errstate(all="ignore"):
        value = codes.astype(np.float32) if table is None else table[codes]
        for op, operand in chain:
            value = _OPERATIONS[op](value, np.repeat(operand, run, axis=1)[:, : codes.shape[1]])
        out[...] = value
