"""Products of matrices taken off a third, each sum in one order: the same bits whatever rows lie together.

A library's matrix product orders its sums by the sizes of what it is given, so that a row by itself need not come out as
among others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qformat.kernels.compiled import compiled

F64 = NDArray[np.float64]

COLUMNS = 256  # of a tile: its share of 128 rows of `right` is 256 KiB and stays in the second-level cache


def subtract_product(out: F64, left: F64, right: F64, first: int, column: int) -> None:
    """Take left^T @ right[first : first + k] off the columns of `out` from `column` on.

    Products are taken off one after the other; each and each difference is rounded once.

    out   : (m, n) float64, C order, changed in place
    left  : (k, m) float64, C order
    right : (at least first + k, n) float64, C order

    Raises ValueError for another order, and for shapes that do not fit one another.
    """
    (n_all, n_rows), (height, width) = left.shape, right.shape
    if not all(array.flags.c_contiguous for array in (out, left, right)):  # any other is compiled anew, and ten times slower
        raise ValueError("an array that is not contiguous in C order")
    if out.shape != (n_rows, width) or not 0 <= first <= height - n_all or not 0 <= column <= width:
        raise ValueError(f"shapes {out.shape}, {left.shape}, {right.shape} from {first}, {column} do not fit one another")
    _subtract(out, left, right, first, column, COLUMNS)


@compiled
def _subtract(out, left, right, first, column, width):  # type: ignore[no-untyped-def]  # compiled
    n_all, (n_rows, n_cols) = left.shape[0], out.shape
    n_fours = n_all // 4 * 4
    for low in range(column, n_cols, width):
        high = min(low + width, n_cols)
        for row in range(n_rows):
            into = out[row, low:high]
            for k in range(0, n_fours, 4):
                e_0, e_1, e_2, e_3 = left[k, row], left[k + 1, row], left[k + 2, row], left[k + 3, row]
                r_0, r_1 = right[first + k, low:high], right[first + k + 1, low:high]
                r_2, r_3 = right[first + k + 2, low:high], right[first + k + 3, low:high]
                for j in range(high - low):
                    into[j] = (((into[j] - e_0 * r_0[j]) - e_1 * r_1[j]) - e_2 * r_2[j]) - e_3 * r_3[j]
            for k in range(n_fours, n_all):
                e_0, r_0 = left[k, row], right[first + k, low:high]
                for j in range(high - low):
                    into[j] -= e_0 * r_0[j]
