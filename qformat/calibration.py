"""What is known of the inputs of a weight: sums over samples, from which methods tell which errors count.

Decides what is summed up, and when such sums are sound. Must not know files, nor which methods use them. Sums are float64;
samples are seen a batch at a time and forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError, about

F64 = NDArray[np.float64]

SOURCES = ("float16", "bfloat16", "float32", "float64")
AT_ONCE = 1 << 20  # numbers that are made float64 at a time
SEEN = 1 << 16  # that are looked at
MOST_SAMPLES = (1 << 63) - 1  # as files count them
ASYMMETRY = 1e-4  # of sqrt(H[i, i] * H[j, j]): what sums in float32 may be off, for any number of samples


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Statistics:
    """Sums over the inputs x of a weight [..., K], one x of K numbers for each sample.

    hessian   : 2 * sum(x x^T), (K, K) float64, symmetric: the second derivative of the squared output error of a row
    mean_abs  : mean |x| of every column, (K,) float64
    n_samples : how many samples; 0 where it is not known

    Raises UsageError for other types or sizes, numbers that are not finite, a negative mean or sum of squares, and a Hessian
    that is not symmetric.
    """

    hessian: F64
    mean_abs: F64
    n_samples: int

    def __post_init__(self) -> None:
        for name, array in (("hessian", self.hessian), ("mean_abs", self.mean_abs)):
            if array.dtype != np.float64:
                raise UsageError(f"{array.dtype}, expected float64", field=name, found=array.dtype.name, expected="float64")
        n_cols = self.hessian.shape[-1] if self.hessian.ndim else 0
        if self.hessian.shape != (n_cols, n_cols) or not n_cols:
            raise _wrong_shape("hessian", self.hessian.shape, "a square matrix")
        if self.mean_abs.shape != (n_cols,):
            raise _wrong_shape("mean_abs", self.mean_abs.shape, f"({n_cols},), a number for each column of the Hessian")
        check_sums(self.hessian, self.mean_abs, self.n_samples)

    def __repr__(self) -> str:
        sizes = f"{self.n_cols} columns, {self.n_samples} samples, {self.hessian.nbytes + self.mean_abs.nbytes} bytes"
        return f"Statistics({sizes})"

    @property
    def n_cols(self) -> int:
        """Columns of the weight, K."""
        return len(self.mean_abs)

    @property
    def importance(self) -> NDArray[np.float32]:
        """How much an error in each column counts: the Hessian's diagonal, (K,) float32, its largest value 1.

        All are 1 where the diagonal is 0. A value below float32 becomes 0.
        """
        return importance_of(self.hessian.diagonal())

    def merge(self, other: Statistics) -> Statistics:
        """Give the statistics over the samples of both.

        Raises UsageError where the columns differ, or one does not know its number of samples.
        """
        if other.n_cols != self.n_cols:
            message = f"statistics of {self.n_cols} and of {other.n_cols} columns, expected one width"
            raise UsageError(message, field="hessian", found=other.n_cols, expected=self.n_cols)
        if not (self.n_samples and other.n_samples):
            raise UsageError("the number of samples is not known, and means cannot be merged without it", field="n_samples")
        n_samples = self.n_samples + other.n_samples
        means = self.mean_abs * (self.n_samples / n_samples) + other.mean_abs * (other.n_samples / n_samples)
        return Statistics(self.hessian + other.hessian, means, n_samples)


class Accumulator:
    """Sums over samples seen so far, for one weight of `n_cols` columns."""

    def __init__(self, n_cols: int) -> None:
        if n_cols < 1:
            raise _wrong_shape("inputs", (n_cols,), "at least 1 column")
        self.n_samples = 0
        self._products = np.zeros((n_cols, n_cols))
        self._sums = np.zeros(n_cols)

    def add(self, inputs: NDArray[Any]) -> None:
        """Count in some samples.

        inputs : [..., K] float16, bfloat16, float32 or float64

        Raises UsageError for another type or width, and for a number that is NaN or infinite.
        """
        for wide in pieces(inputs, len(self._sums), self.n_samples):
            with np.errstate(over="ignore"):  # what left float64 is refused as infinite
                self._products += wide.T @ wide
                self._sums += np.abs(wide).sum(axis=0)
            self.n_samples += len(wide)

    def statistics(self) -> Statistics:
        """Give what was seen. Raises UsageError where that is nothing."""
        _check_any(self.n_samples)
        with np.errstate(over="ignore"):
            return Statistics(2 * self._products, self._sums / self.n_samples, self.n_samples)


def calibrate(batches: Iterable[Mapping[str, NDArray[Any]]]) -> dict[str, Statistics]:
    """Sum up the inputs of weights, batch by batch.

    batches : by the name of a weight [..., K], some of its inputs [..., K]; float16, bfloat16, float32 or float64. A batch need
              not have all names. None is kept: memory is a (K, K) float64 matrix for each weight.
    returns : by name, in the order of first appearance

    Raises UsageError that names the weight, as `Accumulator` does.

    >>> calibrate([{"w": np.float32([[1, -2]])}, {"w": np.float32([[3, 0]])}])["w"].hessian.tolist()
    [[20.0, -4.0], [-4.0, 8.0]]
    """
    found: dict[str, Accumulator] = {}
    for batch in batches:
        if not isinstance(batch, Mapping):
            found_type = type(batch).__name__
            raise UsageError(
                f"a batch is {found_type}, expected inputs by name: calibrate([{{name: inputs}}, ...])", field="inputs"
            )
        for name, inputs in batch.items():
            with about(None, name):
                if not isinstance(inputs, np.ndarray):
                    raise UsageError(f"inputs are {type(inputs).__name__}, expected an array", field="inputs")
                if name not in found:
                    found[name] = Accumulator(inputs.shape[-1] if inputs.ndim else 0)
                found[name].add(inputs)
    made = {}
    for name, accumulator in found.items():
        with about(None, name):
            made[name] = accumulator.statistics()
    return made


def pieces(inputs: NDArray[Any], n_cols: int, n_before: int = 0) -> Iterator[F64]:
    """Make samples float64, some at a time.

    inputs   : [..., K] float16, bfloat16, float32 or float64
    n_before : samples before these, for the number of one that is wrong

    Raises UsageError for another type or width, and for a number that is NaN or infinite.
    """
    if inputs.dtype.name not in SOURCES:
        message = f"inputs are {inputs.dtype.name}, expected one of {', '.join(SOURCES)}"
        raise UsageError(message, field="inputs", found=inputs.dtype.name, expected=SOURCES)
    if not inputs.ndim or inputs.shape[-1] != n_cols:
        raise _wrong_shape("inputs", inputs.shape, f"{n_cols} columns")
    rows = inputs.reshape(-1, n_cols)
    step = max(1, AT_ONCE // n_cols)
    for first in range(0, len(rows), step):
        wide = rows[first : first + step].astype(np.float64)
        _check_numbers("inputs", wide, (n_before + first) * n_cols)
        yield wide


def diagonal_of(inputs: NDArray[Any]) -> F64:
    """Give the diagonal of the Hessian of inputs, (n, K), in memory for a few of them: (K,) float64.

    Sums are in another order than those of `Accumulator`, and equal but for the last digits.

    Raises UsageError as `pieces` does, for no inputs, and for sums that float64 does not hold.
    """
    _check_any(len(inputs))
    squares = np.zeros(inputs.shape[-1])
    with np.errstate(over="ignore"):  # refused below
        for wide in pieces(inputs, len(squares)):
            squares += np.square(wide).sum(axis=0)
        diagonal = 2 * squares
    _check_numbers("hessian", diagonal, 0, step=len(diagonal) + 1)
    return diagonal


def importance_of(diagonal: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Give how much an error in each column counts, by the diagonal of a Hessian: see `Statistics.importance`."""
    wide = diagonal.astype(np.float64)
    largest = wide.max()
    return np.ones(len(wide), np.float32) if largest == 0 else (wide / largest).astype(np.float32)


def check_sums(hessian: NDArray[np.floating[Any]], mean_abs: NDArray[np.floating[Any]], n_samples: int) -> None:
    """Raise UsageError for sums over inputs, (K, K) and (K,), that are not sound: see `Statistics`."""
    if not 0 <= n_samples <= MOST_SAMPLES:
        message = f"{n_samples} samples, expected 0 to {MOST_SAMPLES}"
        raise UsageError(message, field="n_samples", found=n_samples)
    _check_symmetric(hessian)
    _check_numbers("mean_abs", mean_abs, 0, mean_abs < 0, "a number of at least 0")


def output_errors(errors: F64, hessian: F64) -> F64:
    """Give e H e^T of each row e of errors, (n, K) or (..., K): (n,) or (...,); infinite where that is no number.

    The library's product, by all its threads: equal to the last digit only for the same rows asked for by one thread.
    """
    with np.errstate(all="ignore"):
        return finite_errors((errors @ hessian * errors).sum(axis=-1))


def finite_errors(errors: F64) -> F64:
    """Give errors, infinite where they are no numbers."""
    return np.where(np.isfinite(errors), errors, np.inf)


def _check_any(n_samples: int) -> None:
    if not n_samples:
        raise UsageError("0 samples, expected at least 1", field="inputs", found=0)


def _check_symmetric(hessian: NDArray[np.floating[Any]]) -> None:
    """Refuse numbers that are not finite, a negative diagonal, and halves that differ by more than rounding."""
    n_cols = len(hessian)
    step = max(1, SEEN // n_cols)
    for first in range(0, n_cols, step):
        _check_numbers("hessian", hessian[first : first + step], first * n_cols)
    diagonal = hessian.diagonal().astype(np.float64)
    _check_numbers("hessian", diagonal, 0, diagonal < 0, "a sum of squares on the diagonal", n_cols + 1)
    sizes = np.sqrt(diagonal)
    for first in range(0, n_cols, step):
        rows = slice(first, first + step)
        mine, other = (part.astype(np.float64, copy=False) for part in (hessian[rows], hessian[:, rows].T))
        apart = np.abs(mine - other) > ASYMMETRY * sizes[rows, None] * sizes
        if apart.any():
            row, column = map(int, np.argwhere(apart)[0])
            row += first
            found, expected = float(hessian[row, column]), float(hessian[column, row])
            message = (
                f"hessian[{row}, {column}] is {found} and hessian[{column}, {row}] is {expected}, expected a symmetric matrix"
            )
            raise UsageError(message, field="hessian", index=row * n_cols + column, found=found, expected=expected)


def _check_numbers(
    name: str,
    array: NDArray[np.floating[Any]],
    first: int,
    wrong: NDArray[np.bool_] | None = None,
    expected: str = "a finite number",
    step: int = 1,
) -> None:
    """Refuse the first number that is not finite, or `wrong`; `first` and `step` make its index of that in `array`."""
    bad = ~np.isfinite(array) if wrong is None else ~np.isfinite(array) | wrong
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        value, index = float(array.reshape(-1)[at]), first + at * step
        raise UsageError(f"value {index} is {value}, expected {expected}", field=name, index=index, found=value)


def _wrong_shape(name: str, found: tuple[int, ...], expected: str) -> UsageError:
    shape = tuple(int(n) for n in found)
    return UsageError(f"shape {shape}, expected {expected}", field=name, found=shape, expected=expected)
