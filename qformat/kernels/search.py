"""Searches scales for groups of weights: candidates are tried in order, the first of the best stays.

Every sum is a float32 added to weight by weight, as its definition says, so a group cannot be cut into vector lanes.
Whole groups can: `LANES` of them lie side by side, each lane a group, and every loop over lanes becomes vector code.
It knows neither formats nor why one error counts more than another.

Source: ggml-org/ggml at d99724f2: src/ggml-quants.c, make_qkx2_quants, make_qkx3_quants (affine), make_qx_quants (signed),
make_q3_quants, make_qp_quants (stepwise), quantize_row_iq4_nl_impl (table).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qformat.kernels import lanes
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.stepwise import stepwise

F32 = NDArray[np.float32]
Codes = NDArray[np.int8]


def fit_affine(groups: F32, counts: F32, top: int, tries: F32, absolute: bool) -> tuple[Codes, F32, F32]:
    """Fit x = scale * code - min to each group, 0 <= code <= top and min >= 0.

    groups  : (n_groups, n) float32, n <= 32
    counts  : same shape, >= 0: how much an error in each weight counts
    tries   : float32; a candidate divides the range of a group, from its present min, into so many steps, and then takes
              scale and min from the least squares, counted so, of the codes that result
    absolute: whether errors count by magnitude, not by square
    returns : codes (n_groups, n) int8, scales and mins (n_groups,) float32; a group of one value, 0 or less, has scale 0
    """
    codes, scales = _results(groups)
    mins = np.empty_like(scales)
    settings = np.float32(top), _fixed(tries), absolute
    lanes.affine(_fixed(groups), _fixed(counts), *settings, _scratch(groups), codes, scales, mins)
    return codes, scales, mins


def fit_signed(groups: F32, counts: F32 | None, low: int, high: int, tries: F32) -> tuple[Codes, F32]:
    """Fit x = scale * code to each group, low <= code <= high.

    counts  : the squares of the weights if absent
    tries   : float32; a candidate gives the first weight of largest magnitude so many steps
    returns : codes (n_groups, n) int8, scales (n_groups,) float32; a group of zeros has scale 0 and `low` for codes

    Other arrays are those of `fit_affine`.
    """
    codes, scales = _results(groups)
    settings = np.float32(low), np.float32(high), _fixed(tries)
    lanes.signed(_fixed(groups), _counted(groups, counts), *settings, _scratch(groups), codes, scales)
    return codes, scales


def fit_stepwise(groups: F32, counts: F32 | None, low: int, high: int, tries: F32, floor: float) -> tuple[Codes, F32]:
    """Fit as `fit_signed` does, but choose the candidate by its error and then change single codes while that helps.

    floor : a code is changed only if the squares of all others, counted, sum to more than this

    >>> fit_stepwise(np.array([[1, 2, 4]], np.float32), np.ones((1, 3), np.float32), 0, 8, np.float32([8]), 0)
    (array([[2, 4, 8]], dtype=int8), array([0.5], dtype=float32))
    """
    codes, scales = _results(groups)
    settings = np.float32(low), np.float32(high), _fixed(tries), np.float32(floor)
    memory = _scratch(groups), _scratch(groups), np.empty((2, lanes.LANES), np.int64)
    stepwise(_fixed(groups), _counted(groups, counts), *settings, *memory, codes, scales)
    return codes, scales


def fit_levels(groups: F32, counts: F32 | None, levels: tuple[float, ...], tries: F32) -> F32:
    """Fit x = scale * levels[code] to each group.

    counts : the squares of the weights if absent
    levels : ascending
    tries  : float32; a candidate puts the first weight of largest magnitude there; before them, at minus the first level
    returns: scales (n_groups,) float32, 0 for a group of zeros

    Other arrays are those of `fit_affine`.
    """
    _, scales = _results(groups)
    memory = _scratch(groups), scales
    lanes.level_fitter(levels, _middles(levels))(_fixed(groups), _counted(groups, counts), _fixed(tries), *memory)
    return scales


def nearest_levels(groups: F32, factors: F32, levels: tuple[float, ...]) -> NDArray[np.uint8]:
    """Give the index of the level nearest to x * factor, ties upwards.

    groups : (n_groups, n) float32
    factors: (n_groups,) float32
    returns: (n_groups, n) uint8
    """
    codes = np.empty(groups.shape, np.uint8)
    _level_finder(_middles(levels))(_fixed(groups), _fixed(factors), codes)
    return codes


def recode(groups: F32, scales: F32, mins: F32, low: int, high: int, codes: Codes) -> None:
    """Choose codes anew for given scales: (x + min) / scale, nearest, ties to even, limited; none where the scale is 0.

    groups      : (n_groups, n) float32
    scales, mins: (n_groups,) float32
    codes       : (n_groups, n) int8, changed
    """
    lanes.recode(_fixed(groups), _fixed(scales), _fixed(mins), np.float32(low), np.float32(high), codes)


def running_sums(values: F32) -> F32:
    """Add up each row from its left end, rounding every sum to float32: (n_rows, n) to (n_rows,)."""
    sums = np.zeros(values.shape[0], np.float32)
    _running_sums(_fixed(values), sums)
    return sums


def _fixed(array: F32) -> F32:
    """Give an array in C order and read-only: one type for numba, whoever owns the bytes."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def _counted(groups: F32, counts: F32 | None) -> F32:
    """Give counts as kernels take them: none of them stand for squares."""
    return _fixed(groups[:0] if counts is None else counts)


def _results(groups: F32) -> tuple[Codes, F32]:
    return np.empty(groups.shape, np.int8), np.empty(groups.shape[0], np.float32)


def _middles(levels: tuple[float, ...]) -> tuple[float, ...]:
    return tuple((low + high) / 2 for low, high in pairwise(levels))


def _scratch(groups: F32) -> F32:
    return np.empty((3 * groups.shape[1] + lanes.STATES, lanes.LANES), np.float32)


@compiled
def _running_sums(values, sums):  # type: ignore[no-untyped-def]  # compiled
    whole = values.shape[0] // 8 * 8
    for first in range(0, whole, 8):  # eight sums at a time, as each must wait for its own last one
        for i in range(values.shape[1]):
            for lane in range(8):
                sums[first + lane] += values[first + lane, i]
    for row in range(whole, values.shape[0]):
        for i in range(values.shape[1]):
            sums[row] += values[row, i]


@lru_cache(maxsize=8)
def _level_finder(middles: tuple[float, ...]) -> Kernel:
    between = np.array(middles, np.float32)

    def run(groups, factors, codes):  # type: ignore[no-untyped-def]  # compiled
        for group in range(groups.shape[0]):
            for i in range(groups.shape[1]):
                scaled, code = factors[group] * groups[group, i], np.uint8(0)
                for k in range(between.size):
                    code = code if scaled < between[k] else np.uint8(k + 1)
                codes[group, i] = code

    return compiled(run)
