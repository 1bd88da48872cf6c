"""What becomes of a Hessian before columns are rounded one after the other: damped, ordered, inverted, factored.

Linear algebra is LAPACK's, in float64. Must not know weights, formats, or which column is rounded how.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError

F64 = NDArray[np.float64]

DAMPING = 0.01
SMALL = 64  # columns of a triangle that is inverted at once


@dataclass(frozen=True, slots=True)
class Factor:
    """A Hessian made ready.

    order : (K,) which column is rounded first, second, ...
    upper : (K, K) float64 upper triangle U with U^T U the inverse of the damped Hessian, rows and columns in `order`
    """

    order: NDArray[np.intp]
    upper: F64


def factorise(hessian: F64, damping: float, by_diagonal: bool) -> Factor:
    """Damp a Hessian and factor its inverse.

    hessian     : (K, K) float64, symmetric
    damping     : this share of the mean of the diagonal is added to the diagonal
    by_diagonal : columns in order of descending diagonal, equal ones by position; else by position

    A dead column, 0 on the diagonal, gets 1 there before anything else, as in the source. As it is 0 beside the diagonal too,
    so are its row and column of U.

    Raises UsageError as `check_definite` does.
    Source: IST-DASLab/gptq at 2d65066e: gptq.py (GPTQ.fasterquant).
    """
    diagonal, damped = _diagonals(hessian, damping)
    order = np.argsort(-diagonal, kind="stable") if by_diagonal else np.arange(len(diagonal))
    ordered = hessian[np.ix_(order, order)]
    np.fill_diagonal(ordered, damped[order])
    # H = R R^T with R upper, from the lower factor of H turned round; then U = R^-1 has U^T U = H^-1.
    upper = np.ascontiguousarray(_root(ordered[::-1, ::-1], damping)[::-1, ::-1])
    _invert(upper)
    return Factor(order, upper)


def check_definite(hessian: F64, damping: float = DAMPING) -> None:
    """Refuse what is no sum of squares, by which some errors would be less than none.

    Raises UsageError for a Hessian that is not finite, or not positive definite after damping as by `factorise`, and for a
    damping that is no finite number of 0 or more.
    """
    damped = hessian.copy()
    np.fill_diagonal(damped, _diagonals(hessian, damping)[1])
    _root(damped, damping)


def check_damping(damping: float) -> None:
    """Raise UsageError for a damping that is no finite number of 0 or more."""
    if not (math.isfinite(damping) and damping >= 0):
        raise UsageError(f"damping {damping}, expected a finite number of at least 0", field="damping", found=damping)


def _diagonals(hessian: F64, damping: float) -> tuple[F64, F64]:
    """Give the diagonal, dead columns 1, and the same damped."""
    check_damping(damping)
    if not np.isfinite(hessian).all():
        raise UsageError("the Hessian holds a number that is not finite", field="hessian", expected="finite")
    diagonal = hessian.diagonal().copy()
    dead = np.flatnonzero(diagonal == 0)
    beside = hessian[dead].any(axis=1)
    if beside.any():
        column = int(dead[beside][0])
        message = f"the Hessian is not positive semi-definite: column {column} is 0 on the diagonal and not beside it"
        raise UsageError(message, field="hessian", index=column, expected="positive semi-definite")
    diagonal[dead] = 1
    with np.errstate(over="ignore"):  # what left float64 is refused below
        damped = diagonal + damping * diagonal.mean()
    if not np.isfinite(damped).all():
        raise UsageError("the damped Hessian is not finite", field="hessian", expected="finite")
    return diagonal, damped


def _root(damped: F64, damping: float) -> F64:
    """Give the lower Cholesky factor."""
    try:
        return np.linalg.cholesky(damped).astype(np.float64, copy=False)
    except np.linalg.LinAlgError as err:
        message = f"the Hessian is not positive definite after damping by {damping} of its mean diagonal; use more"
        raise UsageError(message, field="hessian", found=damping, expected="positive definite") from err


def _invert(upper: F64) -> None:
    """Invert an upper triangle in place, by halves: products of matrices take most of the work."""
    n = len(upper)
    if n <= SMALL:
        upper[...] = np.triu(np.linalg.inv(upper))
        return
    half = n // 2
    first, last, between = upper[:half, :half], upper[half:, half:], upper[:half, half:]
    _invert(first)
    _invert(last)
    between[...] = -(first @ between @ last)
