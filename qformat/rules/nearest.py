"""The codes nearest to weights once parameters are chosen, and what codes stand for: a scheme's steps undone, and done.

Decides how ties go and what becomes of parameters that say nothing. Must not know how parameters are chosen, nor where
groups lie: parameters come as arrays that broadcast against the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.evaluate import OPERATIONS, alphabet_table, as_float32
from qformat.scheme import Apply, Const, Integers, Levels, Lookup, Op, Operand, Scheme

F32 = NDArray[np.float32]
Params = Mapping[str, NDArray[Any]]

OPPOSITE = {Op.MUL: Op.DIV, Op.DIV: Op.MUL, Op.ADD: Op.SUB, Op.SUB: Op.ADD}


@dataclass(frozen=True, slots=True)
class Ranks:
    """Levels in ascending order, those that are equal once.

    thresholds : the largest float32 that goes to the level below, for each but the first
    codes      : of each level, the lowest of equal ones
    values     : the levels
    """

    thresholds: F32
    codes: NDArray[np.uint8]
    values: F32


def codes_of(weights: F32, scheme: Scheme, params: Params, limits: tuple[int, int] | None = None) -> NDArray[Any]:
    """Give the code of each weight: the steps of the scheme undone in float32, last first, then the nearest of the alphabet.

    weights : float32, any shape
    params  : each parameter as it is stored, of shapes that broadcast with that of the weights; a table as a whole
    limits  : lowest and highest integer code to use; those of the alphabet if absent, and for levels
    returns : int8 or uint8, shape of the weights; a tie goes to the even code, between two even or odd ones to the larger
              level; of levels that are equal, as 0 and -0, the lower code is used

    Where a scale is 0 or no finite number, so that no code says anything, a weight is taken for 0. An input scale is left out.
    Raises UsageError where codes are neither integers nor levels.

    >>> from qformat.formats import find
    >>> codes_of(np.float32([[0.3, -9, 1.25]]), find("int4_g128").scheme, {"scales": np.float16([[0.5]])}, (-7, 7)).tolist()
    [[1, -7, 2]]
    """
    undone = _undo_all(weights, scheme, params)
    if isinstance(scheme.alphabet, Integers):
        return _whole(undone, scheme.alphabet, limits).astype(np.int8 if scheme.alphabet.low < 0 else np.uint8)
    return _ranks(_levels(scheme)).codes[_rank(undone, _levels(scheme))]


def nearest_values(weights: F32, scheme: Scheme, params: Params, limits: tuple[int, int] | None = None) -> F32:
    """Give `values_of` of `codes_of`, but for the sign of zeros, without the codes."""
    undone = _undo_all(weights, scheme, params)
    if isinstance(scheme.alphabet, Integers):
        return _do_all(_whole(undone, scheme.alphabet, limits), scheme, params)
    return _do_all(_ranks(_levels(scheme)).values[_rank(undone, _levels(scheme))], scheme, params)


def values_of(codes: NDArray[Any], scheme: Scheme, params: Params) -> F32:
    """Give what codes stand for, the bits that decoding gives without an input scale.

    codes, params : as `codes_of` gives and takes them
    returns       : float32, shape of the codes

    Raises UsageError where codes are neither integers nor levels.
    """
    is_number = isinstance(scheme.alphabet, Integers)
    return _do_all(codes.astype(np.float32) if is_number else alphabet_table(_levels(scheme))[codes], scheme, params)


def _undo_all(weights: F32, scheme: Scheme, params: Params) -> F32:
    """Give the numbers that the steps of a scheme make the weights of."""
    for step in reversed(scheme.steps):
        weights = _undo(step.op, weights, _operand(step.operand, scheme, params))
    return weights


def _do_all(found: F32, scheme: Scheme, params: Params) -> F32:
    """Give what the steps of a scheme make of the values of an alphabet."""
    with np.errstate(all="ignore"):  # infinities and NaN in scales are values like any other
        for step in scheme.steps:
            found = OPERATIONS[step.op](found, _operand(step.operand, scheme, params))
    return found


def _whole(weights: F32, alphabet: Integers, limits: tuple[int, int] | None) -> F32:
    """Round to integers within limits, ties to even."""
    low, high = limits or (alphabet.low, alphabet.high)
    found: F32 = np.rint(weights)
    np.maximum(found, np.float32(low), out=found)
    return np.minimum(found, np.float32(high), out=found)


def _rank(weights: F32, levels: tuple[float, ...]) -> NDArray[np.uint8]:
    """Count the thresholds below each weight."""
    rank = np.zeros(weights.shape, np.uint8)
    for threshold in _ranks(levels).thresholds:
        rank += weights > threshold
    return rank


def _undo(op: Op, weights: F32, operand: F32) -> F32:
    """Do the opposite of a step; what no number undoes gives 0."""
    with np.errstate(all="ignore"):  # what overflows is beyond every code
        found = OPERATIONS[OPPOSITE[op]](weights, operand)
    says = np.isfinite(operand) & ((operand != 0) | (op in (Op.ADD, Op.SUB)))
    return found if says.all() else np.where(says, found, np.float32(0))


def _operand(operand: Operand, scheme: Scheme, params: Params) -> F32:
    """Give an operand's value for each group."""
    if isinstance(operand, Const):
        return np.full(1, operand.value, np.float32)
    if isinstance(operand, Apply):
        left, right = (_operand(side, scheme, params) for side in (operand.left, operand.right))
        with np.errstate(all="ignore"):
            found: F32 = OPERATIONS[operand.op](left, right)
        return found
    if isinstance(operand, Lookup):
        table = as_float32(params[operand.table], scheme.param(operand.table).dtype)
        return table.reshape(-1)[params[operand.index]]
    return as_float32(params[operand.name], scheme.param(operand.name).dtype)


def _levels(scheme: Scheme) -> tuple[float, ...]:
    if not isinstance(scheme.alphabet, Levels):
        raise UsageError(f"scheme '{scheme.name}' has neither integer codes nor levels, so none is nearest", field="codes")
    return scheme.alphabet.levels


@lru_cache(maxsize=64)
def _ranks(levels: tuple[float, ...]) -> Ranks:
    """Put the levels of an alphabet in order."""
    table = alphabet_table(levels).astype(np.float64)
    finite = np.flatnonzero(np.isfinite(table))
    values, first = np.unique(table[finite], return_index=True)
    codes = finite[first].astype(np.uint8)
    middle = (values[:-1] + values[1:]) / 2
    thresholds = middle.astype(np.float32)
    goes_up = (codes[1:] % 2 == 0) & (thresholds == middle)
    above = (thresholds > middle) | goes_up
    thresholds = np.where(above, np.nextafter(thresholds, np.float32(-np.inf)), thresholds)
    return Ranks(thresholds, codes, values.astype(np.float32))
