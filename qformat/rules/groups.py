"""Which weights share a parameter, as arrays: rows cut into groups, and the extreme values of each group.

It decides nothing about codes. A short last group is filled up with +0, which changes no extreme because 0 is always
counted among a group's values here: a scale that could not say 0 is never wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.scheme import Flat, Grid, Group

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Extremes:
    """Extreme values of groups, each array (n_rows, n_groups) float32.

    low     : smallest value or 0
    high    : largest value or 0
    largest : the first value of largest magnitude, with its sign; +0 for a group of zeros
    """

    low: F32
    high: F32
    largest: F32

    @property
    def magnitude(self) -> F32:
        """Largest absolute value."""
        return np.maximum(self.high, -self.low) + np.float32(0)  # + 0: the larger of 0 and -0 may be either

    def merge(self, later: Extremes) -> Extremes:
        """Give the extremes of these values followed by `later` ones."""
        return Extremes(
            np.minimum(self.low, later.low),
            np.maximum(self.high, later.high),
            np.where(np.abs(later.largest) > np.abs(self.largest), later.largest, self.largest),
        )


def split(rows: F32, group: Group) -> F32:
    """Cut rows into groups.

    rows   : (n_rows, K) float32
    returns: (n_rows, n_groups, weights of a group), a view where nothing had to be filled up; a group that covers the
             whole tensor, or crosses rows, gives (1, n_groups, weights)
    """
    n_rows, n_cols = rows.shape
    if isinstance(group, Flat):
        return _cut(rows.reshape(1, -1), group.n_weights)
    if isinstance(group, Grid) and group.rows == 0 and group.cols == 0:
        return rows.reshape(1, 1, -1)
    if isinstance(group, Grid) and group.rows == 1:
        return _cut(rows, group.cols) if group.cols else rows.reshape(n_rows, 1, n_cols)
    raise UsageError(f"groups of {group} cannot be quantized, expected groups within a row, flat ones, or the whole tensor")


def join(groups: NDArray[np.generic], n_rows: int, n_cols: int) -> NDArray[np.generic]:
    """Undo `split`: give (n_rows, n_cols), the filling dropped."""
    if groups.shape[0] == n_rows:
        return groups.reshape(n_rows, groups.shape[1] * groups.shape[2])[:, :n_cols]
    return groups.reshape(-1)[: n_rows * n_cols].reshape(n_rows, n_cols)


def extremes(groups: F32) -> Extremes:
    """Find the extreme values of groups, (n_rows, n_groups, weights) float32."""
    low = groups.min(axis=-1, initial=np.float32(0))
    high = groups.max(axis=-1, initial=np.float32(0))
    largest = np.where(high >= -low, high, low)
    tied = (high == -low) & (high > 0)
    if tied.any():
        both = groups[tied]
        largest[tied] = np.take_along_axis(both, np.abs(both).argmax(axis=-1)[:, None], axis=-1)[:, 0]
    return Extremes(low + np.float32(0), high + np.float32(0), largest + np.float32(0))  # + 0: no group ends in -0


def _cut(rows: F32, size: int) -> F32:
    n_rows, n_cols = rows.shape
    short = -n_cols % size
    if short:
        rows = np.concatenate([rows, np.zeros((n_rows, short), np.float32)], axis=1)
    return rows.reshape(n_rows, -1, size) if rows.size else np.zeros((n_rows, -(-n_cols // size), size), np.float32)
