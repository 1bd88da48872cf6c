"""Runs the searches of `search.py`: whole groups side by side, `LANES` of them, so that every loop over lanes is vector code.

Sums are float32, added to weight by weight in order, within a lane. Arrays arrive checked; scratch memory is the caller's:
rows of weights `x`, of counts `w` (how much their errors count), of codes, and of what a search remembers of each lane.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from qformat.kernels.compiled import Kernel, compiled, inlined

LANES = 64  # with 32 weights and counts per group 16 KiB, half of a first-level cache
STATES = 16  # rows of scratch memory beside weights, counts and codes
NOTHING = np.float32(1e-15)  # a group whose largest magnitude is below it counts as zeros
MAGIC = np.float32(3 << 22)  # adding it to |x| < 2**22 leaves the nearest integer, ties to even, in the low bits
MASK, HALF = np.int32((1 << 23) - 1), np.int32(1 << 22)
ZERO, ONE, INFINITE, NAN = np.float32(0), np.float32(1), np.float32(np.inf), np.float32(np.nan)


@inlined
def to_level(value, low, high):  # type: ignore[no-untyped-def]  # compiled
    """Round to a code; what is no number gives 0, what is beyond 2**22 some code, always the same."""
    bits = np.int32(np.float32(value + MAGIC).view(np.int32) & MASK)  # every step wrapped, or 64-bit integers result
    code = np.int32(bits - HALF)
    code = code if code < np.int32(high) else np.int32(high)
    return np.float32(code if code > np.int32(low) else np.int32(low))


@inlined
def near(value, low, high):  # type: ignore[no-untyped-def]  # compiled
    """Round to a code as `to_level` does, in half the time, a value within 2**22; what is no number gives `low`."""
    code = (value + MAGIC) - MAGIC
    code = code if code > low else low
    return code if code < high else high


@inlined
def choose(better, found, kept):  # type: ignore[no-untyped-def]  # compiled
    """Select; the sum with 0 makes it a plain store where `kept` stands, as a masked one is many times slower."""
    return (found if better else kept) + ZERO


@inlined
def load(groups, first, tile):  # type: ignore[no-untyped-def]  # compiled
    """Lay groups side by side, (n, LANES); zeros stand for groups beyond the last."""
    n_groups = min(LANES, groups.shape[0] - first)
    if n_groups < LANES:
        tile[:] = ZERO
    for lane in range(n_groups):
        for i in range(tile.shape[0]):
            tile[i, lane] = groups[first + lane, i]


@inlined
def weigh(groups, counts, first, x, w):  # type: ignore[no-untyped-def]  # compiled
    """Lay weights and counts side by side; where no counts are given, those are the squares of the weights."""
    load(groups, first, x)
    if counts.shape[0] > 0:
        load(counts, first, w)
        return
    for i in range(x.shape[0]):
        for lane in range(LANES):
            w[i, lane] = x[i, lane] * x[i, lane]


@inlined
def divide(steps, peak, factor):  # type: ignore[no-untyped-def]  # compiled
    for lane in range(LANES):
        factor[lane] = steps / peak[lane]


@inlined
def find_peaks(x, peak):  # type: ignore[no-untyped-def]  # compiled
    peak[:] = ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            peak[lane] = choose(abs(x[i, lane]) > abs(peak[lane]), x[i, lane], peak[lane])


@inlined
def _keep_best(first, factor, sum_lx, sum_l2, best, scale, kept):  # type: ignore[no-untyped-def]  # compiled
    """Keep what explains more of the squares; the first candidate is kept if it explains any."""
    for lane in range(LANES):
        square = sum_lx[lane] * sum_lx[lane]
        better = (sum_l2[lane] > ZERO) & (first | (square > best[lane] * sum_l2[lane]))
        found = sum_lx[lane] / sum_l2[lane]
        scale[lane] = choose(better, found, scale[lane])
        best[lane] = choose(better, found * sum_lx[lane], best[lane])
        kept[lane] = choose(better, factor[lane], kept[lane])


@inlined
def store(first, level, scale, peak, low, codes, scales):  # type: ignore[no-untyped-def]  # compiled
    """Write what was found; a group of zeros gets the lowest code and the scale 0."""
    for lane in range(min(LANES, codes.shape[0] - first)):
        if abs(peak[lane]) < NOTHING:
            scales[first + lane] = ZERO
            codes[first + lane] = np.int8(low)
        else:
            scales[first + lane] = scale[lane]
            for i in range(level.shape[0]):
                codes[first + lane, i] = np.int8(level[i, lane])


@inlined
def _find_range(x, w, low, high, sum_w, sum_x):  # type: ignore[no-untyped-def]  # compiled
    low[:], high[:], sum_w[:], sum_x[:] = INFINITE, -INFINITE, ZERO, ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            low[lane] = x[i, lane] if x[i, lane] < low[lane] else low[lane]
            high[lane] = x[i, lane] if x[i, lane] > high[lane] else high[lane]
            sum_w[lane] += w[i, lane]
            sum_x[lane] += w[i, lane] * x[i, lane]


@inlined
def _affine_sums(x, w, top, factor, low, sum_l, sum_l2, sum_lx):  # type: ignore[no-untyped-def]  # compiled
    sum_l[:], sum_l2[:], sum_lx[:] = ZERO, ZERO, ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            code = near(factor[lane] * (x[i, lane] - low[lane]), ZERO, top)
            weighted = w[i, lane] * code
            sum_l[lane] += weighted
            sum_l2[lane] += weighted * code
            sum_lx[lane] += weighted * x[i, lane]


@inlined
def _affine_errors(x, w, top, factor, low, scale, bias, absolute, error):  # type: ignore[no-untyped-def]  # compiled
    error[:] = ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            code = near(factor[lane] * (x[i, lane] - low[lane]), ZERO, top)
            off = scale[lane] * code + bias[lane] - x[i, lane]
            error[lane] += w[i, lane] * (abs(off) if absolute else off * off)


@compiled
def affine(groups, counts, top, tries, absolute, scratch, codes, scales, mins):  # type: ignore[no-untyped-def]  # compiled
    n = groups.shape[1]
    x, w, state = scratch[:n], scratch[n : 2 * n], scratch[2 * n :]
    low, high, sum_w, sum_x, sum_l, sum_l2, sum_lx = state[0], state[1], state[2], state[3], state[4], state[5], state[6]
    factor, scale, bias, error = state[7], state[8], state[9], state[10]
    best, best_scale, kept_factor, kept_low, next_low = state[11], state[12], state[13], state[14], state[15]
    for first in range(0, groups.shape[0], LANES):
        weigh(groups, counts, first, x, w)
        _find_range(x, w, low, high, sum_w, sum_x)
        for lane in range(LANES):
            low[lane] = ZERO if low[lane] > ZERO else low[lane]
            kept_low[lane], next_low[lane] = low[lane], low[lane]
            kept_factor[lane] = top / (high[lane] - low[lane])
            best_scale[lane] = ONE / kept_factor[lane] if high[lane] > low[lane] else ZERO
        _affine_errors(x, w, top, kept_factor, low, best_scale, low, absolute, best)
        for steps in tries:
            for lane in range(LANES):
                low[lane] = next_low[lane]  # each candidate divides the range from the min that is best so far
                factor[lane] = steps / (high[lane] - low[lane])
            _affine_sums(x, w, top, factor, low, sum_l, sum_l2, sum_lx)
            for lane in range(LANES):
                spread = sum_w[lane] * sum_l2[lane] - sum_l[lane] * sum_l[lane]
                slope = (sum_w[lane] * sum_lx[lane] - sum_x[lane] * sum_l[lane]) / spread
                at = (sum_l2[lane] * sum_x[lane] - sum_l[lane] * sum_lx[lane]) / spread
                slope = sum_lx[lane] / sum_l2[lane] if at > ZERO else slope
                scale[lane] = slope if spread > ZERO else NAN  # and so its error, which is never the least
                bias[lane] = ZERO if at > ZERO else at
            _affine_errors(x, w, top, factor, low, scale, bias, absolute, error)
            for lane in range(LANES):
                better = error[lane] < best[lane]
                best[lane] = choose(better, error[lane], best[lane])
                best_scale[lane] = choose(better, scale[lane], best_scale[lane])
                kept_factor[lane] = choose(better, factor[lane], kept_factor[lane])
                kept_low[lane] = choose(better, low[lane], kept_low[lane])
                next_low[lane] = bias[lane] if better else low[lane]
        for i in range(n):
            for lane in range(LANES):
                x[i, lane] = to_level(kept_factor[lane] * (x[i, lane] - kept_low[lane]), ZERO, top)
        factor[:] = INFINITE  # here no group counts as zeros
        store(first, x, best_scale, factor, ZERO, codes, scales)
        for lane in range(min(LANES, groups.shape[0] - first)):
            mins[first + lane] = -next_low[lane]


@inlined
def find_codes(x, factor, low, high, level):  # type: ignore[no-untyped-def]  # compiled
    for i in range(x.shape[0]):
        for lane in range(LANES):
            level[i, lane] = near(factor[lane] * x[i, lane], low, high)


@inlined
def signed_sums(x, w, factor, low, high, sum_lx, sum_l2):  # type: ignore[no-untyped-def]  # compiled
    sum_lx[:], sum_l2[:] = ZERO, ZERO
    for i in range(x.shape[0]):
        for lane in range(LANES):
            code = near(factor[lane] * x[i, lane], low, high)
            sum_lx[lane] += w[i, lane] * x[i, lane] * code
            sum_l2[lane] += w[i, lane] * code * code


@compiled
def signed(groups, counts, low, high, tries, scratch, codes, scales):  # type: ignore[no-untyped-def]  # compiled
    n = groups.shape[1]
    x, w, state = scratch[:n], scratch[n : 2 * n], scratch[2 * n :]
    peak, factor, sum_lx, sum_l2, best, scale, kept = state[0], state[1], state[2], state[3], state[4], state[5], state[6]
    for first in range(0, groups.shape[0], LANES):
        weigh(groups, counts, first, x, w)
        find_peaks(x, peak)
        divide(tries[0], peak, kept)
        best[:], scale[:] = ZERO, ZERO
        for number in range(tries.size):
            divide(tries[number], peak, factor)
            signed_sums(x, w, factor, low, high, sum_lx, sum_l2)
            _keep_best(number == 0, factor, sum_lx, sum_l2, best, scale, kept)
        find_codes(x, kept, low, high, x)
        store(first, x, scale, peak, low, codes, scales)


@compiled
def recode(groups, scales, mins, low, high, codes):  # type: ignore[no-untyped-def]  # compiled
    for group in range(groups.shape[0]):
        scale, least = scales[group], mins[group]
        if scale != ZERO:
            for i in range(groups.shape[1]):
                codes[group, i] = np.int8(to_level((groups[group, i] + least) / scale, low, high))


@lru_cache(maxsize=8)
def level_fitter(levels: tuple[float, ...], middles: tuple[float, ...]) -> Kernel:
    """Make the search for a table: its levels, and the points from which on the upper of two is nearest."""
    values, between = np.array(levels, np.float32), np.array(middles, np.float32)

    def run(groups, counts, tries, scratch, scales):  # type: ignore[no-untyped-def]  # compiled
        n = groups.shape[1]
        x, w, state = scratch[:n], scratch[n : 2 * n], scratch[2 * n :]
        peak, factor, sum_lx, sum_l2, best, scale, kept = state[0], state[1], state[2], state[3], state[4], state[5], state[6]
        for first in range(0, groups.shape[0], LANES):
            weigh(groups, counts, first, x, w)
            find_peaks(x, peak)
            best[:], scale[:] = ZERO, ZERO
            for number in range(tries.size + 1):
                for lane in range(LANES):
                    # The first one is a reciprocal of a rounded scale, the others are quotients.
                    factor[lane] = tries[number - 1] / peak[lane] if number else ONE / (-peak[lane] / values[0])
                sum_lx[:], sum_l2[:] = ZERO, ZERO
                for i in range(n):
                    for lane in range(LANES):
                        scaled, level = factor[lane] * x[i, lane], values[0]
                        for k in range(between.size):
                            level = level if scaled < between[k] else values[k + 1]
                        weighted = w[i, lane] * level
                        sum_lx[lane] += weighted * x[i, lane]
                        sum_l2[lane] += weighted * level
                _keep_best(number == 0, factor, sum_lx, sum_l2, best, scale, kept)
            for lane in range(min(LANES, groups.shape[0] - first)):
                scales[first + lane] = ZERO if abs(peak[lane]) < NOTHING else scale[lane]

    return compiled(run)
