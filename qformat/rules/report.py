"""What quantizing cost: the difference between weights and their decode, summed in float64 tile by tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.tensor import PackedTensor


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """Error of a packed tensor x' against the weights x it was made from.

    max_abs         : max |x - x'|
    rms             : sqrt(mean((x - x')^2))
    sqnr_db         : 10 log10(sum(x^2) / sum((x - x')^2)) in decibels; infinite where the decode is exact
    bits_per_weight : stored bits per weight, parameters included
    """

    max_abs: float
    rms: float
    sqnr_db: float
    bits_per_weight: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over some weights, from which a report is made; those of two tiles add up.

    n_weights : weights seen
    max_abs   : max |x - x'|, NaN where a decode is
    signal    : sum of x^2
    noise     : sum of (x - x')^2
    """

    n_weights: int = 0
    max_abs: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        """Give the sums over both."""
        worst = float(np.maximum(self.max_abs, other.max_abs))
        return Sums(self.n_weights + other.n_weights, worst, self.signal + other.signal, self.noise + other.noise)

    def report(self, bits_per_weight: float) -> ErrorReport:
        """Give the report over all weights seen."""
        rms = math.sqrt(self.noise / self.n_weights) if self.n_weights else 0.0
        return ErrorReport(self.max_abs, rms, self._decibels(), bits_per_weight)

    def _decibels(self) -> float:
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)


def error(array: NDArray[Any], tensor: PackedTensor) -> ErrorReport:
    """Compare weights with the decode of a packed tensor.

    array  : the weights, any float type, shape of the tensor

    Raises UsageError when the shapes differ.
    """
    if tuple(array.shape) != tensor.shape:
        raise UsageError(f"weights have shape {array.shape}, the packed tensor {tensor.shape}", field="shape")
    rows = array.reshape(tensor.n_rows, tensor.n_cols)
    total = Sums()
    for low, high in tensor.tiles():
        total += measure(rows[low:high], tensor.dequantize(rows=slice(low, high)))
    return total.report(tensor.bits_per_weight)


def measure(weights: NDArray[Any], decoded: NDArray[Any]) -> Sums:
    """Sum up the difference of two arrays of one shape, in float64."""
    x = weights.astype(np.float64).reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite decode makes an infinite error, not a warning
        difference = x - decoded.astype(np.float64).reshape(-1)
        worst = float(np.abs(difference).max(initial=0.0))
        # Not a dot product: its order of summation, and so its last digits, would be up to the machine's BLAS.
        return Sums(x.size, worst, float(np.square(x).sum()), float(np.square(difference).sum()))
