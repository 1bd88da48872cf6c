"""How much errors count: the importance that a caller gives for columns, as rows and tiles of a tensor see it.

What a rule makes of it is the rule's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.formats.form import Format, matrix
from qformat.scheme import Flat

F32 = NDArray[np.float32]


def importance_of_rows(importance: F32, shape: tuple[int, ...]) -> Callable[[int, int], F32]:
    """Give a function from a range of rows to their importance, (1 or n_rows, K) float32.

    importance : float32 [K], or [E, K] for the E matrices of a stack
    shape      : of the tensor, [..., out, K]

    Raises UsageError where it is no float32, the width is not K, the matrices are not E, or a value is negative or not finite.
    """
    if importance.dtype != np.float32:
        message = f"importance is {importance.dtype}, expected float32"
        raise UsageError(message, field="importance", found=importance.dtype.name, expected="float32")
    n_rows, n_cols = matrix(shape)
    table = np.atleast_2d(importance)
    n_matrices = len(table)
    if table.ndim != 2 or table.shape[1] != n_cols or n_matrices not in (1, math.prod(shape[:-2])):
        message = f"importance of shape {importance.shape}, expected {n_cols} columns, for all or for each matrix"
        raise UsageError(message, field="importance", found=importance.shape, expected=n_cols)
    if not (np.isfinite(table).all() and (table >= 0).all()):
        where = int(np.argmax(~(np.isfinite(table) & (table >= 0))))
        value = float(table.reshape(-1)[where])
        message = f"importance[{where}] is {value}, expected a finite number of 0 or more"
        raise UsageError(message, field="importance", found=value)
    if n_matrices == 1:
        return lambda first, last: table
    return lambda first, last: table[np.arange(first, last) * n_matrices // n_rows]


def importance_of(counts: Callable[[int, int], F32], form: Format, first: int, tile: F32, n_cols: int) -> F32:
    """Give the importance of the weights of a tile, of which the first has this number."""
    row = first // max(1, n_cols)
    if not isinstance(form.scheme.param("scales").group, Flat):
        return counts(row, row + len(tile))
    last = -(-(first + tile.size) // max(1, n_cols))
    flat = np.broadcast_to(counts(row, last), (last - row, n_cols)).reshape(1, -1)
    return flat[:, first - row * n_cols :][:, : tile.size]
