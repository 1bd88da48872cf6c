"""Adds up products of integers group by group, and sums of groups by their scales: plain loops, on any machine.

Integers are exact wherever the caller keeps a group within 32 bits. A float sum has one order, whoever computes it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qformat.kernels.compiled import compiled


def dots(codes: NDArray[np.int16], run: int, x: NDArray[np.int16], out: NDArray[np.int32]) -> None:
    """Multiply rows of integers with rows of integers, group by group.

    codes, x : (rows, columns), contiguous
    run      : columns of a group; the last may be short
    out      : (rows of x, rows of codes, groups), written in full, contiguous; exact where a sum has 32 bits
    """
    _dots(codes, run, x, out)


def add_up(
    totals: NDArray[np.integer], left: NDArray[np.float32], right: NDArray[np.float32], step: float, out: NDArray[np.float32]
) -> None:
    """Multiply the integers of groups by their scales and add them up.

    totals : (rows, columns, groups) int32 or int64, contiguous
    left   : (rows, groups), scales of each row, contiguous; right: (columns, groups), of each column
    step   : power of two that all are multiplied by
    out    : (rows, columns): total * (left * right * step) in float64, rounded to float32, the first group's added to +0, the
             next one's to that in float32, and so on; any strides
    """
    _add_up(totals, left, right, step, out)


@compiled
def _dots(codes, run, x, out):  # type: ignore[no-untyped-def]  # compiled
    for i in range(out.shape[0]):
        for row in range(out.shape[1]):
            for group in range(out.shape[2]):
                found = 0
                for k in range(group * run, min(group * run + run, codes.shape[1])):
                    found += int(codes[row, k]) * int(x[i, k])
                out[i, row, group] = found


@compiled
def _add_up(totals, left, right, step, out):  # type: ignore[no-untyped-def]  # compiled
    for i in range(out.shape[0]):
        for row in range(out.shape[1]):
            found = np.float32(0)
            for group in range(totals.shape[2]):
                scale = np.float64(left[i, group]) * np.float64(right[row, group]) * step
                found = np.float32(found + np.float32(np.float64(totals[i, row, group]) * scale))
            out[i, row] = found
