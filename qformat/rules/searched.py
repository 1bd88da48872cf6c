"""GGUF blocks whose scales are searched for, byte for byte as ggml's quantize tool packs them, with and without importance.

Which errors count how much, which candidates are tried and how scales become sub-scales is decided here; the searches
themselves are `qformat.kernels.search`. With an importance of columns, ggml counts errors and tries candidates differently.

Bytes differ where ggml's are accidents: a scale fitted below zero, as importance of mostly zeros allows, is 0 here and a
sub-scale cut to its low bits there; and where sums leave float32, which takes weights beyond 2^30.

Source: ggml-org/ggml at d99724f2: src/ggml-quants.c, quantize_row_{q2_K,q3_K,q4_K,q5_K,q6_K}_ref and _impl,
quantize_row_{q4_0,q4_1,q5_0,q5_1}_impl, quantize_row_iq4_nl_impl with 7 candidates to each side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.kernels import search
from qformat.rules import ggml
from qformat.rules.ggml import reciprocal
from qformat.rules.groups import Extremes, extremes, split
from qformat.rules.rule import Rule, Values
from qformat.scheme import Integers, Levels, Scheme

F32 = NDArray[np.float32]
Level = tuple[F32, NDArray[Any]]  # one scale per block, one integer share of it per group
Search = Callable[[F32, Scheme, F32 | None], Values]

SOURCE = "ggml d99724f2, src/ggml-quants.c"
BLOCK = 256
SIX_BITS = (-32, 31)
NOTHING = np.float32(1e-15)  # a block with no scale of this size becomes zeros
SMALLEST = np.finfo(np.float32).smallest_subnormal
# Steps beyond the largest code at first, increase, number: of Q2_K, Q4_K, Q5_K, Q4_1 and Q5_1 alike.
WITH_IMPORTANCE = (-0.9, 0.05, 37)


@dataclass(frozen=True, slots=True)
class Affine:
    """What differs between Q2_K, Q4_K and Q5_K.

    top      : largest share of a block's scale and minimum
    tries    : candidates without importance: steps beyond the largest code at first, increase, number
    by_size  : without importance a weight counts by its magnitude, and so does its error; else by its magnitude plus the
               root mean square of the group, and the error by its square
    variances: with importance, how often the mean square of the block counts
    """

    top: int
    tries: tuple[float, float, int]
    by_size: bool
    variances: int


def affine_blocks(how: Affine, rows: F32, scheme: Scheme, importance: F32 | None) -> Values:
    """Encode Q2_K, Q4_K, Q5_K: scale and minimum of each group searched, then made shares of two per block.

    Without importance the largest of a block has the share `how.top`; with it, shares are fitted as codes are.
    """
    groups, top = _groups(rows, scheme, "sub_scales"), _limits(scheme)[1]
    shape = (len(groups) * groups.shape[1] // BLOCK, BLOCK // groups.shape[1])
    if importance is None:
        counts = np.abs(groups)
        if not how.by_size:
            counts += np.sqrt(search.running_sums(groups * groups) / np.float32(groups.shape[1]))[:, None]
        codes, *fitted = search.fit_affine(groups, counts, top, _tries(top, *how.tries), how.by_size)
        levels = [_divide_largest(found.reshape(shape), how.top) for found in fitted]
    else:
        counts = _counts(rows, importance, BLOCK, how.variances).reshape(groups.shape)
        codes, *fitted = search.fit_affine(groups, counts, top, _tries(top, *WITH_IMPORTANCE), False)
        sums, tries = search.running_sums(counts).reshape(shape), _around(how.top, 4)
        levels = [search.fit_stepwise(found.reshape(shape), sums, 0, how.top, tries, 0)[::-1] for found in fitted]
    return _two_levels(rows, scheme, groups, codes, *levels)


def three_bit_blocks(rows: F32, scheme: Scheme, importance: F32 | None) -> Values:
    """Encode Q3_K: without importance one scale is tried and its codes changed; with it, scales and shares are searched."""
    groups, (low, high) = _groups(rows, scheme, "sub_scales"), _limits(scheme)
    shape = (len(groups) * groups.shape[1] // BLOCK, BLOCK // groups.shape[1])
    if importance is None:
        codes, scales = search.fit_stepwise(groups, None, low, high, _around(low, 0), -np.inf)
        level = _divide_signed(scales.reshape(shape), *SIX_BITS, SMALLEST, SIX_BITS[0])
    else:
        counts = _counts(rows, importance, BLOCK, 2).reshape(groups.shape)
        codes, scales = search.fit_signed(groups, counts, low, high, _around(low, 9))
        sums, tries = search.running_sums(counts).reshape(shape), _around(SIX_BITS[0], 9)
        level = search.fit_signed(scales.reshape(shape), sums, *SIX_BITS, tries)[::-1]
    return _two_levels(rows, scheme, groups, codes, level)


def six_bit_blocks(rows: F32, scheme: Scheme, importance: F32 | None) -> Values:
    """Encode Q6_K: scales searched, a weight counting by its square, or its importance alone; the largest is -128 shares."""
    groups, (low, high) = _groups(rows, scheme, "sub_scales"), _limits(scheme)
    counts = None if importance is None else np.broadcast_to(importance, rows.shape).reshape(groups.shape)
    codes, scales = search.fit_signed(groups, counts, low, high, _around(low, 9))
    blocks = scales.reshape(len(groups) * groups.shape[1] // BLOCK, BLOCK // groups.shape[1])
    codes.reshape(len(blocks), BLOCK)[extremes(blocks).magnitude < NOTHING] = low
    return _two_levels(rows, scheme, groups, codes, _divide_signed(blocks, -128, 127, NOTHING, 0))


def level_groups(rows: F32, scheme: Scheme, importance: F32 | None) -> Values:
    """Encode IQ4_NL: the scale of each group searched, codes from the float32 scale."""
    groups, levels = _groups(rows, scheme, "scales"), _levels(scheme)
    scales = _fit_levels(rows, groups, levels, importance, groups.shape[1])
    return _values(rows, scheme, search.nearest_levels(groups, reciprocal(scales), levels), scales=scales)


def level_blocks(rows: F32, scheme: Scheme, importance: F32 | None) -> Values:
    """Encode IQ4_XS: as IQ4_NL, the largest scale of a block being -32 shares; codes from the float32 products."""
    groups, levels = _groups(rows, scheme, "sub_scales"), _levels(scheme)
    scales = _fit_levels(rows, groups, levels, importance, BLOCK)
    blocks = scales.reshape(len(groups) * groups.shape[1] // BLOCK, BLOCK // groups.shape[1])
    d = extremes(blocks).largest / np.float32(SIX_BITS[0])
    shares = _whole(reciprocal(d)[:, None] * blocks, *SIX_BITS)
    codes = search.nearest_levels(groups, reciprocal(d[:, None] * shares).reshape(-1), levels)
    return _values(rows, scheme, codes, scales=d, sub_scales=shares)


def weighted_affine_groups(rows: F32, scheme: Scheme, importance: F32) -> Values:
    """Encode Q4_1 and Q5_1 with importance: codes, scale and minimum of each group as searched."""
    groups, top = _groups(rows, scheme, "scales"), _limits(scheme)[1]
    counts = _counts(rows, importance, rows.shape[1], 1).reshape(groups.shape)
    codes, scales, mins = search.fit_affine(groups, counts, top, _tries(top, *WITH_IMPORTANCE), False)
    return _values(rows, scheme, codes, scales=scales, biases=-mins)


def weighted_signed_groups(rows: F32, scheme: Scheme, importance: F32) -> Values:
    """Encode Q4_0 and Q5_0 with importance: codes and scale of each group as searched."""
    groups, (low, high) = _groups(rows, scheme, "scales"), _limits(scheme)
    counts = _counts(rows, importance, rows.shape[1], 1).reshape(groups.shape)
    codes, scales = search.fit_signed(groups, counts, low, high, _around(low, 9))
    return _values(rows, scheme, codes, scales=scales)


def _fit_levels(rows: F32, groups: F32, levels: tuple[float, ...], importance: F32 | None, run: int) -> F32:
    counts = None if importance is None else _counts(rows, importance, run, 2).reshape(groups.shape)
    tries = np.arange(-7, 8, dtype=np.float32) + np.float32(levels[0])
    return search.fit_levels(groups, counts, levels, tries)


def _counts(rows: F32, importance: F32, run: int, variances: int) -> F32:
    """Give importance * sqrt(variances * mean square over a run of columns + x^2), the shape of `rows`."""
    squares = rows * rows
    n_runs = rows.shape[1] // max(1, run)
    sums = search.running_sums(squares.reshape(len(rows) * n_runs, run))
    mean = np.float32(variances) * sums / np.float32(run)
    counts: F32 = importance * np.sqrt(np.repeat(mean.reshape(len(rows), n_runs), run, axis=1) + squares)
    return counts


def _tries(top: int, first: float, step: float, number: int) -> F32:
    return np.float32(first) + np.float32(step) * np.arange(number, dtype=np.float32) + np.float32(top)


def _around(steps: int, reach: int) -> F32:
    """Give the number of steps to the largest weight, then all that lie up to `reach` tenths of a step off, fewest first."""
    tenths = np.array([0, *range(-reach, 0), *range(1, reach + 1)], np.float32)
    tries: F32 = np.copysign(np.float32(0.1) * tenths + np.float32(abs(steps)), np.float32(steps))
    return tries


def _divide_largest(found: F32, top: int) -> Level:
    """Cut the largest value of each block into `top` shares and give every value its share."""
    largest = found.max(axis=1, initial=np.float32(0)) + np.float32(0)  # + 0: the larger of 0 and -0 may be either
    return largest / np.float32(top), _whole(np.float32(top) / largest[:, None] * found, 0, top)


def _divide_signed(found: F32, low: int, high: int, least: np.float32, empty: int) -> Level:
    """Cut the first value of largest magnitude into `low` shares; blocks below `least` have `empty` shares of 0."""
    extreme = extremes(np.asfortranarray(found))  # rows of few values are compared column by column
    factor = np.where(extreme.magnitude >= least, np.float32(low) / extreme.largest, np.float32(0))
    shares = _whole(factor[:, None] * found, low, high)
    return reciprocal(factor), np.where(factor[:, None] == 0, np.float32(empty), shares)


def _whole(values: F32, low: int, high: int) -> F32:
    """Round to integers within limits, ties to even; 0 for what a division by 0 or by a subnormal made infinite."""
    return np.where(np.isfinite(values), np.rint(values), np.float32(0)).clip(low, high)


def _two_levels(
    rows: F32, scheme: Scheme, groups: F32, codes: NDArray[np.int8], scale: Level, least: Level | None = None
) -> Values:
    """Choose the codes anew for the scales and minima that will be stored; where the scale is 0 the searched ones stay."""
    params = dict(zip(("scales", "sub_scales"), scale, strict=True))
    mins = np.zeros(len(groups), np.float32)
    if least is not None:
        params |= dict(zip(("mins", "sub_mins"), least, strict=True))
        mins = _products(least)
    search.recode(groups, _products(scale), mins, *_limits(scheme), codes)
    return _values(rows, scheme, codes, **params)


def _products(level: Level) -> F32:
    return (level[0].astype(np.float16).astype(np.float32)[:, None] * level[1].astype(np.float32)).reshape(-1)


def _values(rows: F32, scheme: Scheme, codes: NDArray[Any], **params: NDArray[Any]) -> Values:
    """Give codes and parameters the shapes and types that the scheme declares."""
    signed = isinstance(scheme.alphabet, Integers) and scheme.alphabet.low < 0
    values: Values = {"codes": codes.reshape(rows.shape).view(np.int8 if signed else np.uint8)}
    for name, found in params.items():
        param = scheme.param(name)
        values[name] = found.reshape(param.group.counts(*rows.shape)).astype(param.dtype)
    return values


def _groups(rows: F32, scheme: Scheme, name: str) -> F32:
    """Give the weights that share a parameter, (n_groups, n)."""
    groups = split(rows, scheme.param(name).group)
    return groups.reshape(groups.shape[0] * groups.shape[1], groups.shape[2])


def _limits(scheme: Scheme) -> tuple[int, int]:
    if not isinstance(scheme.alphabet, Integers):
        raise UsageError(f"scheme '{scheme.name}' has no integer codes")
    return scheme.alphabet.low, scheme.alphabet.high


def _levels(scheme: Scheme) -> tuple[float, ...]:
    if not isinstance(scheme.alphabet, Levels):
        raise UsageError(f"scheme '{scheme.name}' has no table of levels")
    return scheme.alphabet.levels


def _unweighted(fit: Search, rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    return fit(rows, scheme, None)


def _rule(formula: str, fit: Search) -> tuple[Rule, ...]:
    return (Rule("ggml", formula, SOURCE, partial(_unweighted, fit), fit),)


def _affine(top: int, first: float, number: int, by_size: bool, variances: int) -> tuple[Rule, ...]:
    formula = f"least squares of scale and min over {number} candidates per group, {top} shares per block; codes nearest"
    return _rule(formula, partial(affine_blocks, Affine(top, (first, 0.1, number), by_size, variances)))


_LEVELS = "scale of least error over 16 candidates per group; codes nearest, ties upwards"

# By block type, as ggml's functions are.
RULES = {
    "q2_k": _affine(15, -0.5, 16, True, 1),
    "q3_k": _rule("scale of least squares per group, codes changed while it helps, 6-bit shares per block", three_bit_blocks),
    "q4_k": _affine(63, -1.0, 21, False, 2),
    "q5_k": _affine(63, -0.5, 16, False, 2),
    "q6_k": _rule("scale of least squares over 19 candidates per group, 8-bit shares per block; codes nearest", six_bit_blocks),
    "iq4_nl": _rule(_LEVELS, level_groups),
    "iq4_xs": _rule(f"{_LEVELS}, 6-bit shares per block", level_blocks),
} | {
    name: tuple(replace(rule, weighted=weighted) for rule in ggml.RULES[name])
    for weighted, names in ((weighted_signed_groups, ("q4_0", "q5_0")), (weighted_affine_groups, ("q4_1", "q5_1")))
    for name in names
}
