"""Scales searched for: those that another rule gives to a group times a number, and the best of them.

Decides which numbers are tried and what is best: the least sum of squared errors of the decoded values, each times the
importance of its column. Which parameters a multiplied group has is the other rule's business, which code is nearest that of
`nearest`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.bits import DTYPES
from qformat.rules.groups import Extremes, extremes, join, split
from qformat.rules.nearest import codes_of, nearest_values, values_of
from qformat.rules.rule import Rule, Values
from qformat.scheme import Flat, Grid, Integers, Levels, Scheme

F32 = NDArray[np.float32]

NAME = "mse"
AT_ONCE = 1 << 16  # weights: what is made of them for one number stays in cache
SEEN = 3  # weights of a group that its parameters may depend on: the first of largest magnitude, the least and the greatest
POWERS = 16  # numbers are powers of 2^(1/16), 4.4 % apart
WIDE, NARROW, WHOLE = range(-20, 11), range(-36, 5), range(-POWERS, POWERS + 1, POWERS)
FEW = 4  # codes, whose best scale lies far below the one that reaches the largest weight


@lru_cache(maxsize=256)
def searching(base: Rule, scheme: Scheme) -> Rule | None:
    """Give the rule that searches among the scales of another; None where parameters are not all of one group within a row."""
    groups = {param.group for param in scheme.params}
    alphabet = scheme.alphabet
    if len(groups) != 1 or len(scheme.steps) != len(scheme.params) or not isinstance(alphabet, Integers | Levels):
        return None
    group = next(iter(groups))
    if not isinstance(group, Flat) and not (isinstance(group, Grid) and group.rows == 1):
        return None
    n_codes = alphabet.high - alphabet.low + 1 if isinstance(alphabet, Integers) else len(alphabet.levels)
    is_whole = not DTYPES[scheme.params[0].dtype].mantissa and DTYPES[scheme.params[0].dtype].kind == "float"
    powers = WHOLE if is_whole else NARROW if n_codes <= FEW else WIDE
    factors = [2.0 ** (k / POWERS) for k in powers if k]
    formula = (
        f"scales that '{base.name}' gives to the group times 2^(k/{POWERS}), k from {powers[0]} to {powers[-1]}"
        f"{f' by {powers.step}' if powers.step > 1 else ''}, those of least sum of importance * (x - decode)^2; code = nearest"
    )
    return Rule(
        NAME,
        formula,
        "a search of the clipping range by squared error, codes against the scale as stored, ties to the even code",
        partial(_encode, base, factors),
        partial(_search, base, factors),
        limited=base.limited,
        mirrored=base.mirrored,
    )


def _encode(base: Rule, factors: list[float], rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    return _search(base, factors, rows, scheme, None)


def _search(base: Rule, factors: list[float], rows: F32, scheme: Scheme, importance: F32 | None) -> Values:
    """Search for all rows, a piece of whole groups at a time."""
    if not rows.size:
        return base.encode(rows, scheme, None)
    group, shape = scheme.params[0].group, rows.shape
    counts = None if importance is None else np.broadcast_to(importance, shape)
    if isinstance(group, Flat):
        rows = rows.reshape(1, -1)
        counts = None if counts is None else counts.reshape(1, -1)
        step = max(1, AT_ONCE // group.n_weights) * group.n_weights
        pieces = [(slice(None), slice(first, first + step)) for first in range(0, max(1, rows.size), step)]
    else:
        step = max(1, AT_ONCE // max(1, shape[1]))
        pieces = [(slice(first, first + step), slice(None)) for first in range(0, max(1, len(rows)), step)]
    made = [_search_piece(base, factors, rows[at], scheme, None if counts is None else counts[at]) for at in pieces]
    found = {name: np.concatenate([piece[name] for piece in made]) for name in made[0] if name != "codes"}
    along = 1 if isinstance(group, Flat) else 0
    return {**found, "codes": np.concatenate([piece["codes"] for piece in made], axis=along).reshape(shape)}


def _search_piece(base: Rule, factors: list[float], rows: F32, scheme: Scheme, counts: F32 | None) -> Values:
    group = scheme.params[0].group
    found = base.encode(rows, scheme, None)
    groups = split(rows, group)
    if counts is not None or groups.size != rows.size:  # what a short group is filled up with does not count
        counts = split(np.ones_like(rows) if counts is None else np.ascontiguousarray(counts), group)
    params = {name: array.reshape(*groups.shape[:2], 1) for name, array in found.items() if name != "codes"}
    codes = split(found["codes"].astype(np.float32), group).astype(found["codes"].dtype)
    of_base = params
    least = _errors(groups, values_of(codes, scheme, params), counts, np.float32)
    seen, narrow = (_seen(groups), _of_three(scheme)) if base.coded else (rows, scheme)
    for factor in factors:
        tried = base.encode(seen * np.float32(factor), narrow, None)
        candidate = {name: tried[name].reshape(array.shape) for name, array in params.items()}
        error = _errors(groups, nearest_values(groups, scheme, candidate, base.limits(scheme)), counts, np.float32)
        params = _choose(error < least, candidate, params)
        least = np.minimum(error, least)
    new = codes_of(groups, scheme, params, base.limits(scheme))
    # Once more without rounding, so that nothing is worse than what the base gives.
    old_error, error = (
        _errors(groups, values_of(*pair), counts, np.float64) for pair in ((codes, scheme, of_base), (new, scheme, params))
    )
    is_better = error < old_error
    params, codes = _choose(is_better, params, of_base), np.where(is_better[..., None], new, codes)
    return {"codes": join(codes, *rows.shape)} | {name: array.reshape(found[name].shape) for name, array in params.items()}


def _errors(groups: F32, values: F32, counts: F32 | None, dtype: type[np.floating[Any]]) -> NDArray[Any]:
    """Give the sum of squared errors of each group, in arithmetic of this type; infinite where a value is no number."""
    errors: NDArray[Any] = np.subtract(values, groups, dtype=dtype)
    errors *= errors
    if counts is not None:
        errors *= counts
    found: NDArray[Any] = errors.sum(axis=-1)
    return np.where(np.isnan(found), dtype(np.inf), found)


def _choose(is_first: NDArray[np.bool_], first: Values, second: Values) -> Values:
    """Give the parameters of each group from one of two choices."""
    return {name: np.where(is_first[..., None], first[name], array) for name, array in second.items()}


def _seen(groups: F32) -> F32:
    """Give, for each group, the weights that a coding may depend on, as rows of groups of three."""
    seen = np.stack([extremes(groups).largest, groups.min(axis=-1), groups.max(axis=-1)], axis=-1)
    return seen.reshape(len(groups), groups.shape[1] * SEEN)


@lru_cache(maxsize=256)
def _of_three(scheme: Scheme) -> Scheme:
    """Give the same scheme for groups of three weights."""
    group = Flat(SEEN) if isinstance(scheme.params[0].group, Flat) else Grid(1, SEEN)
    return replace(scheme, params=tuple(replace(param, group=group) for param in scheme.params))
