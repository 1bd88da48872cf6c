"""Runs the search that changes single codes: tile by tile as `lanes` does, and again for those groups alone that changed.

After two rounds of changes most groups stay as they are. The others wait in a tile of their own until it is full, and only then
is the next round run for them.
"""

from __future__ import annotations

import numpy as np

from qformat.kernels.compiled import compiled, inlined
from qformat.kernels.lanes import (
    LANES,
    NOTHING,
    ONE,
    ZERO,
    choose,
    divide,
    find_codes,
    find_peaks,
    near,
    signed_sums,
    store,
    to_level,
    weigh,
)

ROUNDS = 5  # at most
TOGETHER = 2  # of them: to take a fifth of the groups apart takes as long as the second round of all


@inlined
def _change_codes(tile, n, low, high, floor, change):  # type: ignore[no-untyped-def]  # compiled
    """Try each code anew, the scale being free; tell which groups have one that was changed."""
    x, w, codes, sum_lx, sum_l2 = tile[:n], tile[n : 2 * n], tile[2 * n : 3 * n], tile[3 * n], tile[3 * n + 1]
    change[:] = ZERO
    for i in range(n):
        for lane in range(LANES):
            product, old = w[i, lane] * x[i, lane], codes[i, lane]
            others_lx, others_l2 = sum_lx[lane] - product * old, sum_l2[lane] - w[i, lane] * old * old
            code = to_level(x[i, lane] * others_l2 / others_lx, low, high)
            new_lx, new_l2 = others_lx + product * code, others_l2 + w[i, lane] * code * code
            gains = new_lx * new_lx * sum_l2[lane] > sum_lx[lane] * sum_lx[lane] * new_l2
            better = (others_lx > ZERO) & (others_l2 > floor) & (code != old) & (new_l2 > ZERO) & gains
            codes[i, lane] = choose(better, code, old)
            sum_lx[lane] = choose(better, new_lx, sum_lx[lane])
            sum_l2[lane] = choose(better, new_l2, sum_l2[lane])
            change[lane] += ONE if better else ZERO


@inlined
def _move(source, lane, n_rows, target, to):  # type: ignore[no-untyped-def]  # compiled
    for row in range(n_rows):
        target[row, to] = source[row, lane]


@inlined
def _run_again(waiting, n, marks, n_waiting, low, high, floor, codes, scales):  # type: ignore[no-untyped-def]  # compiled
    """Change codes of all groups that wait; write those that are done, and give how many are not."""
    change, number, rounds, n_left = waiting[3 * n + 2], marks[0], marks[1], 0
    _change_codes(waiting, n, low, high, floor, change)
    for lane in range(n_waiting):
        if change[lane] > ZERO and rounds[lane] + 1 < ROUNDS:
            _move(waiting, lane, 3 * n + 2, waiting, n_left)
            number[n_left], rounds[n_left] = number[lane], rounds[lane] + 1
            n_left += 1
        else:
            sum_lx, sum_l2 = waiting[3 * n, lane], waiting[3 * n + 1, lane]
            scales[number[lane]] = sum_lx / sum_l2 if sum_l2 > ZERO else ZERO
            for i in range(n):
                codes[number[lane], i] = np.int8(waiting[2 * n + i, lane])
    return n_left


@compiled
def stepwise(groups, counts, low, high, tries, floor, tile, waiting, marks, codes, scales):  # type: ignore[no-untyped-def]  # compiled
    n, n_waiting = groups.shape[1], 0
    x, w, found, state = tile[:n], tile[n : 2 * n], tile[2 * n : 3 * n], tile[3 * n :]
    sum_lx, sum_l2, change, peak, factor, error, best, kept = (
        state[0],
        state[1],
        state[2],
        state[3],
        state[4],
        state[5],
        state[6],
        state[7],
    )
    for first in range(0, groups.shape[0], LANES):
        weigh(groups, counts, first, x, w)
        find_peaks(x, peak)
        divide(tries[0], peak, kept)
        for number in range(tries.size if tries.size > 1 else 0):
            divide(tries[number], peak, factor)
            error[:] = ZERO
            for i in range(n):
                for lane in range(LANES):
                    off = x[i, lane] - ONE / factor[lane] * near(factor[lane] * x[i, lane], low, high)
                    error[lane] += w[i, lane] * off * off
            for lane in range(LANES):
                better = (number == 0) | (error[lane] < best[lane])
                best[lane] = choose(better, error[lane], best[lane])
                kept[lane] = choose(better, factor[lane], kept[lane])
        signed_sums(x, w, kept, low, high, sum_lx, sum_l2)
        find_codes(x, kept, low, high, found)
        for _ in range(TOGETHER):  # a group of which no code is changed stays as it is
            _change_codes(tile, n, low, high, floor, change)
        for lane in range(LANES):
            factor[lane] = sum_lx[lane] / sum_l2[lane] if sum_l2[lane] > ZERO else ZERO
        store(first, found, factor, peak, low, codes, scales)
        for lane in range(min(LANES, groups.shape[0] - first)):
            if change[lane] > ZERO and abs(peak[lane]) >= NOTHING:
                _move(tile, lane, 3 * n + 2, waiting, n_waiting)
                marks[0, n_waiting], marks[1, n_waiting] = first + lane, TOGETHER
                n_waiting += 1
                while n_waiting == LANES:
                    n_waiting = _run_again(waiting, n, marks, n_waiting, low, high, floor, codes, scales)
    while n_waiting > 0:
        n_waiting = _run_again(waiting, n, marks, n_waiting, low, high, floor, codes, scales)
