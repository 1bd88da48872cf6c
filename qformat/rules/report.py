"""What quantizing cost: the difference between weights and their decode, summed in float64 tile by tile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.calibration import output_errors
from qformat.errors import UsageError
from qformat.tensor import PackedTensor


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """Error of a packed tensor x' against the weights x it was made from.

    max_abs         : max |x - x'|
    rms             : sqrt(mean((x - x')^2))
    sqnr_db         : 10 log10(sum(x^2) / sum((x - x')^2)) in decibels; infinite where the decode is exact
    bits_per_weight : stored bits per weight, parameters included
    output_sqnr_db  : the same of what rows come to with their inputs, 10 log10(sum(x H x^T) / sum((x - x') H (x - x')^T)) for
                      the inputs' Hessian H; None where that is not known
    """

    max_abs: float
    rms: float
    sqnr_db: float
    bits_per_weight: float
    output_sqnr_db: float | None = None


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over some weights, from which a report is made; those of two tiles add up.

    n_weights : weights seen
    max_abs   : max |x - x'|, NaN where a decode is
    signal    : sum of x^2
    noise     : sum of (x - x')^2
    outputs   : the same two of outputs, by rows: sums of x H x^T and of (x - x') H (x - x')^T; None where H is not known
    """

    n_weights: int = 0
    max_abs: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    outputs: tuple[float, float] | None = None

    def __add__(self, other: Sums) -> Sums:
        """Give the sums over both; those of outputs over what is known of them."""
        worst = float(np.maximum(self.max_abs, other.max_abs))
        known = [sums.outputs for sums in (self, other) if sums.outputs is not None]
        outputs = (sum(one[0] for one in known), sum(one[1] for one in known)) if known else None
        return Sums(self.n_weights + other.n_weights, worst, self.signal + other.signal, self.noise + other.noise, outputs)

    def report(self, bits_per_weight: float) -> ErrorReport:
        """Give the report over all weights seen."""
        rms = math.sqrt(self.noise / self.n_weights) if self.n_weights else 0.0
        of_outputs = None if self.outputs is None else _decibels(*self.outputs)
        return ErrorReport(self.max_abs, rms, _decibels(self.signal, self.noise), bits_per_weight, of_outputs)


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


def measure(weights: NDArray[Any], decoded: NDArray[Any], hessian: NDArray[np.float64] | None = None) -> Sums:
    """Sum up the difference of two arrays of one shape, in float64.

    hessian : (K, K), of the inputs of rows [..., K]; of outputs, last digits are up to the machine's BLAS
    """
    x = weights.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite decode makes an infinite error, not a warning
        difference = x - decoded.astype(np.float64)
        worst = float(np.abs(difference).max(initial=0.0))
        outputs = None
        if hessian is not None:
            outputs = float(output_errors(x, hessian).sum()), float(output_errors(difference, hessian).sum())
        # Not a dot product: its order of summation, and so its last digits, would be up to the machine's BLAS.
        signal, noise = (float(np.square(array.reshape(-1)).sum()) for array in (x, difference))
        return Sums(x.size, worst, signal, noise, outputs)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    if signal == 0 or math.isinf(noise):
        return -math.inf
    return 10 * math.log10(signal / noise)
