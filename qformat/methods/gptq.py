"""GPTQ: columns are rounded one after the other, and those still to come make up for the error, as the inputs' Hessian says.

With H = 2 X^T X of the inputs, damped, and U the upper Cholesky factor of its inverse, the error e = (w_j - q_j) / U_jj of
column j changes every later column k by -e * U_jk. So each column is rounded for what the output has lost already. The scale
of a group comes from its weights as they are when the first of its columns has its turn. Rows do not depend on one another.

Three orders of columns:

    by position                     the usual one
    by descending diagonal of H     the groups stay where they are, their scales are those of the original weights
    the same, with an index         in a format whose groups are lists of columns (`Indexed`): groups form in that order

A worked example is much told: w = [1.3, 2.7, 2.2], H^-1 = [[4, 0, -2], [0, 1, 1], [-2, 1, 3]], scale 1, "in order of the
diagonal", with q = [1, 3, 3]. Two things in such a telling are not the published algorithm. The order: it goes by the
diagonal of H, here (1/2, 2, 1), so columns 2, 3, 1, which is not the descending order of the diagonal of H^-1, columns 1, 3,
2; that gives [1, 3, 2]. The inverse: once a column is rounded, its row and column leave H^-1 by a step of elimination, which
the factor U has in it; using H^-1 as it was divides by diagonals that are too large. Column 2 gives 3 and error -0.3, which
makes column 3 2.5; a stale inverse gives column 1 1.3 - 0.5 / 3 * 2 = 0.967, the right one 1.3 - 0.5 / 2 * 2 = 0.8, both 1.
And 2.5 lies between two codes: up gives [1, 3, 3], to even [2, 3, 2]; both have the error e H e^T = 0.235, rounding to
nearest has 0.535. By position the result is [1, 3, 3] without a tie.

Source: Frantar et al. 2022, arXiv 2210.17323, algorithm 1; IST-DASLab/gptq: gptq.py (GPTQ.fasterquant). There a scale is taken
from weights that the updates of the present block have not all reached; here they have. There the weights of a dead column,
whose inputs were all 0, become 0 before scales are chosen; here they are kept and rounded to nearest, since an input that was
not seen may still come. Scales cover these weights, which is all that other columns feel of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.evaluate import as_float32
from qformat.fields import numpy_dtype
from qformat.formats.form import Format
from qformat.kernels.subtract import subtract_product
from qformat.methods.hessian import DAMPING, Factor, check_damping, factorise
from qformat.methods.indexed import index_of, neighbours
from qformat.methods.method import Encode, Method, Task, check_columns, columns_of
from qformat.rules.encoding import prepare as extremes_of
from qformat.rules.groups import Extremes
from qformat.rules.nearest import codes_of, values_of
from qformat.rules.rule import Rule, Values
from qformat.rules.soundness import check_finite, check_parameter
from qformat.scheme import Integers, Levels, Scheme

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

BLOCK = 128  # columns that are rounded before what lies behind them is brought up to date


def gptq(name: str, summary: str, damping: float = DAMPING, by_diagonal: bool = False) -> Method:
    """Make the method.

    damping     : this share of the mean diagonal of the Hessian is added to it
    by_diagonal : round columns in order of descending diagonal; where the format has an index that is so anyhow

    Raises UsageError for a damping that is no finite number of 0 or more.
    """
    check_damping(damping)
    work, damped = partial(prepare, damping, by_diagonal), partial(gptq, name, summary, by_diagonal=by_diagonal)
    return Method(name, summary, stored=check, prepare=work, damping=damping, damped=damped)


def check(form: Format, n_cols: int) -> Format:
    """Give the format, if each parameter is one number for a group of columns in a row, or for the tensor.

    Raises UsageError for any other.
    """
    scheme, simple = form.scheme, neighbours(form.scheme)
    groups = {param.group for param in simple.params}
    sizes = {columns_of(group, n_cols) for group in groups}
    if not isinstance(scheme.alphabet, Integers | Levels) or len(groups) != 1 or -1 in sizes or scheme.input_scale:
        levels = len(groups) > 1 and isinstance(scheme.alphabet, Integers | Levels)
        found = "has two levels of scales" if levels else f"has no scale for each group of a row of {n_cols} weights"
        works = "intN, uintN, nf4 in whole blocks, mxfp4, gguf:q4_0 and others of one level, or method rtn"
        raise UsageError(f"gptq cannot round to '{form.name}', which {found}: use {works}", field="method", found=form.name)
    if index_of(scheme) and scheme.param(index_of(scheme)).group.counts(1, n_cols) != (n_cols,):
        listed = scheme.param(index_of(scheme)).group.counts(1, n_cols)[0]
        raise UsageError(f"'{form.name}' lists {listed} columns, the weight has {n_cols}", field=index_of(scheme), found=listed)
    return form


def prepare(damping: float, by_diagonal: bool, task: Task) -> Encode:
    """Factor the Hessian of a tensor, once; give what encodes rows.

    Raises UsageError as `check` and `factorise` do, and for statistics of other columns.
    """
    n_cols = task.shape[-1]
    check(task.form, n_cols)
    check_columns(task.statistics, n_cols)
    is_indexed = bool(index_of(task.form.scheme))
    factor = factorise(task.statistics.hessian, damping, by_diagonal or is_indexed)
    state = extremes_of(task.form, task.tiles())
    simple = neighbours(task.form.scheme)
    size = columns_of(simple.params[0].group, n_cols)
    grouping = Grouping(size or n_cols, (by_diagonal and not is_indexed) or not size)
    return partial(encode, Rounding(task.form, task.shape, simple, task.rule, state, grouping, factor))


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which columns share a scale.

    size     : columns of a group, neighbours in the order of rounding unless `is_fixed`
    is_fixed : whether groups are of neighbours in the weight, their parameters known before any column is rounded
    """

    size: int
    is_fixed: bool


@dataclass(frozen=True, slots=True)
class Rounding:
    """All that rows of a tensor are rounded by: a Hessian's factor, not itself.

    form     : the target
    shape    : of the tensor
    scheme   : the format's, groups that are listed taken for neighbours
    state    : extremes of the whole tensor where one scale covers it
    """

    form: Format
    shape: tuple[int, ...]
    scheme: Scheme
    rule: Rule
    state: Extremes | None
    grouping: Grouping
    factor: Factor

    def parameters(self, rows: F32, first: int) -> Values:
        """Choose parameters for whole groups of rows, the first of which has this number.

        returns : each (n, groups), or (1, 1) of the tensor

        Raises NotExact for weights too large for the parameters of the format.
        """
        made = self.rule.encode(rows, self.scheme, self.state)
        shape = (1, 1) if self.state is not None else (len(rows), -(-rows.shape[1] // self.grouping.size))
        found = {name: array.reshape(shape) for name, array in made.items() if name != "codes"}
        for name, array in found.items():
            values = as_float32(array, self.scheme.param(name).dtype)
            way_out = "" if self.grouping.is_fixed else ", or more damping"
            check_parameter(self.form, name, values, self.rule.limited, first, first + len(rows), way_out)
        return found


def encode(how: Rounding, rows: F32, first: int) -> Values:
    """Round rows of a tensor, (n, K) float32, the first of which has this number.

    Raises UsageError for one that is not finite, or does not stay so, and NotExact as `Rounding.parameters` does.
    """
    check_finite(rows, first * rows.shape[1], how.shape)
    with np.errstate(all="ignore"):  # what rules do at the ends of the number range is part of their definition
        return _rounded(how, rows, first)


def _rounded(how: Rounding, rows: F32, first: int) -> Values:
    n_rows, n_cols = rows.shape
    factor, grouping, scheme = how.factor, how.grouping, how.scheme
    # In the order of rounding; those of a block are left to `block` below. An indexed array is in Fortran order by itself.
    left = rows[:, factor.order].astype(np.float64, order="C")
    is_signed = isinstance(scheme.alphabet, Integers) and scheme.alphabet.low < 0
    codes = np.empty((n_cols, n_rows), np.int8 if is_signed else np.uint8)
    fixed = how.parameters(rows, first) if grouping.is_fixed else None
    chosen: list[Values] = []
    limits = how.rule.limits(scheme)
    for low, high in _blocks(n_cols, grouping):
        block = np.ascontiguousarray(left[:, low:high].T)
        errors = np.empty_like(block)
        for at in range(low, high):
            if fixed is not None:
                group = factor.order[at] // grouping.size
                used = {name: array[:, group : group + 1] if array.shape[1] > 1 else array for name, array in fixed.items()}
            elif at % grouping.size == 0:
                last = min(at + grouping.size, n_cols)
                members = np.concatenate([block[at - low : last - low].T, left[:, high:last]], axis=1)
                used = how.parameters(np.ascontiguousarray(members, np.float32), first)
                chosen.append(used)
            weights = block[at - low].astype(np.float32)[:, None]
            found = codes_of(weights, scheme, used, limits)
            codes[at] = found[:, 0]
            errors[at - low] = (block[at - low] - values_of(found, scheme, used)[:, 0]) / factor.upper[at, at]
            block[at - low + 1 :] -= factor.upper[at, at + 1 : high, None] * errors[at - low]
        if not np.isfinite(errors).all():
            raise UsageError("weights leave float64 while errors are made up for: use more damping", field="hessian")
        subtract_product(left, errors, factor.upper, low, high)
    found = np.empty((n_rows, n_cols), codes.dtype)
    found[:, factor.order] = codes.T
    return {"codes": found, **_stored(how, chosen, fixed, (n_rows, n_cols))}


def _blocks(n_cols: int, grouping: Grouping) -> Iterator[tuple[int, int]]:
    """Cut columns into blocks; a group begins a block, or lies in one, unless its parameters are known before."""
    size = n_cols if grouping.is_fixed else grouping.size
    whole = max(1, BLOCK // size) * size
    for start in range(0, n_cols, whole):
        end = min(start + whole, n_cols)
        for low in range(start, end, BLOCK):
            yield low, min(low + BLOCK, end)


def _stored(how: Rounding, chosen: list[Values], fixed: Values | None, shape: tuple[int, int]) -> Values:
    """Give the parameters in the shapes that the format's groups have."""
    scheme = how.form.scheme
    found: Values = {}
    for param in scheme.params:
        if param.name == index_of(scheme):
            index = np.empty(shape[1], numpy_dtype(param.dtype))
            index[how.factor.order] = np.arange(shape[1]) // how.grouping.size
            found[param.name] = index
        else:
            whole = fixed[param.name] if fixed is not None else np.concatenate([each[param.name] for each in chosen], axis=1)
            found[param.name] = whole.reshape(param.group.counts(*shape))
    return found
