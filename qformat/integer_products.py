"""Products of packed activations with packed weights, as integers: which kernel, zero points, scales, threads.

A value of either side is (integer - zero) * scale. Over the columns that share every scale and zero point of both sides, a
group, products are added up in 32 bits, exactly; zero points come off afterwards, by sums of integers. Floats begin after that.
Where groups are blocks of few bits without zero points, and nobody asks for the integers, one kernel does all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qformat.decoding import SHARED_WEIGHTS, TILE_WEIGHTS
from qformat.errors import UsageError
from qformat.evaluate import F32, common_run
from qformat.factors import LARGEST, Factor
from qformat.streamed import Rows
from qformat.tensor import PackedTensor
from qformat.threads import n_threads, spread
from qformat.units import LEAST

MOST = (1 << 31) - 1  # that 32 bits hold
FEW_ROWS = 4  # of activations: weights are read once
AGAIN = 1 << 21  # weights that stay in the last cache, where more rows read them again
SHARES = 2  # of a thread: one that is late costs less than beginning more often
HELD = 1 << 18  # integers that a share holds, and that stay in the caches until they are multiplied by scales

# Writes values for rows [first, last) of weights: (rows of activations, rows of weights).
Multiply = Callable[[int, int, F32], None]


@dataclass(frozen=True, slots=True)
class IntegerProduct:
    """A product and the integers that it is made of.

    accumulators : int32 [..., out, groups], sums of products of integers over the columns of a group
    corrections  : int64, the same shape: what zero points z of x and v of w add,
                   -z * sum(w) - v * sum(x) + columns * z * v; 0 where neither has any
    values       : float32 [..., out]
    """

    accumulators: NDArray[np.int32]
    corrections: NDArray[np.int64]
    values: F32

    @property
    def totals(self) -> NDArray[np.int64]:
        """Sums of products of integers less their zero points, exact."""
        return self.accumulators + self.corrections


def integer_matmul(x: PackedTensor, w: PackedTensor) -> F32:
    """Multiply packed activations with packed weights, x W^T, by integers; W is never decoded, and work is spread over threads.

    x      : [..., K], such as `quantize` gives: integer codes, or levels that are small integers times a power of two (E2M1,
             IQ4_NL), with scales and integer zero points over the row or runs of columns
    w      : [out, K], likewise
    returns: float32 [..., out]. For each group the exact integer total is multiplied by scale * scale in float64 and rounded to
             float32; groups are added up in float32 from the first to the last, beginning with +0. A scale of two levels is
             the float32 product of both. NaN where a scale is NaN, or infinite under a total of 0

    Above float32's subnormals that is within (groups + 8) * 2^-24 * sum |x| |w| of both sides decoded and multiplied exactly:
    a rounding for each group, one for each addition of groups, and those of decoding, which are none for 16-bit scales.

    Raises UsageError for a scheme that is not of this kind, widths that differ, and groups so wide that 32 bits might not hold
    an accumulator: 131 071 columns of int8 with int8.
    """
    product = _Product(x, w, are_seen=False)
    out = np.empty((x.n_rows, w.n_rows), np.float32)
    multiply = product.by_blocks() or product.by_groups()
    n_x, n_each = len(product.x), len(product.x) * product.n_groups
    workers = n_threads() if x.n_rows * w.n_weights >= 2 * SHARED_WEIGHTS else 1
    n_share = -(-w.n_rows // (SHARES * workers if workers > 1 else 1)) * w.n_cols
    n_most = TILE_WEIGHTS if not product.in_place else n_share if n_x <= FEW_ROWS else AGAIN
    n_weights = min(n_share, n_most, HELD // max(1, n_each) * w.n_cols if product.holds else n_share)

    def work(rows: tuple[int, int]) -> None:
        multiply(*rows, out[:, rows[0] : rows[1]])

    for _ in spread(work, w.tiles(n_weights=n_weights), threads=workers):
        pass
    return out.reshape(*x.shape[:-1], w.n_rows)


def integer_product(x: PackedTensor, w: PackedTensor) -> IntegerProduct:
    """Multiply as `integer_matmul` does, and give the integers as well: 12 bytes for each group of each value.

    >>> from qformat.rules import quantize
    >>> x = quantize(np.array([[3, -1, 0.5, 2]], np.float32), "int8_channel")
    >>> integer_product(x, x).accumulators.tolist()
    [[[25559]]]
    """
    product = _Product(x, w, are_seen=True)
    values = np.empty((x.n_rows, w.n_rows), np.float32)
    product.by_groups()
    accumulators, corrections = product.rows(0, w.n_rows, values)
    if corrections is None:
        corrections = np.zeros(accumulators.shape, np.int64)
    lead = (*x.shape[:-1], w.n_rows)
    return IntegerProduct(
        accumulators.reshape(*lead, product.n_groups), corrections.reshape(*lead, product.n_groups), values.reshape(lead)
    )


class _Product:
    """What all rows of weights are multiplied with; `are_seen` tells whether its integers are asked for.

    x       : (rows of activations, K) int16, and a row of ones where sums of weights are wanted
    sums    : of the integers of each row and group, where zero points of weights take them off
    vectors : what binds weights for vector kernels; None where these cannot read them
    holds   : whether the sums of all groups are held on the way to values
    held    : scales and zero points of all rows of weights, where they are few: reading them row by row costs more
    """

    def __init__(self, x: PackedTensor, w: PackedTensor, are_seen: bool) -> None:
        for which, side in (("activations", x), ("weights", w)):
            if not isinstance(side, PackedTensor):
                found = type(side).__name__
                raise UsageError(f"{which} are {found}, expected a PackedTensor: quantize them", field=which, found=found)
        if len(w.shape) != 2 or not x.shape or x.n_cols != w.n_cols:
            message = f"activations {x.shape} and weights {w.shape}, expected [..., K] and [out, K]"
            raise UsageError(message, field="shape", found=(x.shape, w.shape))
        left, self.weights = Factor(x, "activations"), Factor(w, "weights")
        n_cols = w.n_cols
        self.run = max(1, common_run(left.run, self.weights.run, n_cols) if n_cols else 1)
        self.n_groups = -(-n_cols // self.run)
        most = MOST // max(1, left.largest * self.weights.largest)
        if min(self.run, n_cols) > most:
            message = f"groups of {self.run} columns, of which 32 bits hold {most} products of these schemes for certain"
            raise UsageError(message, field="K", found=self.run, expected=most)
        self.step = left.step * self.weights.step
        self.n_rows, self.bounds = x.n_rows, left.bounds
        self.scales, self.zeros = left.scales(0, x.n_rows, self.run), left.zeros(0, x.n_rows, self.run)
        self.x = left.integers(0, x.n_rows).reshape(x.n_rows, n_cols)
        if self.zeros is not None and not are_seen:
            self._take_off_zeros(self.zeros)
        self.sums = self._group_sums(self.x) if self.weights.zero is not None else None
        if self.zeros is not None:
            self.x = np.concatenate([self.x, np.ones((1, n_cols), np.int16)])
        self.vectors: Rows | None = None
        self.holds = True
        self.held: tuple[F32, NDArray[np.int64] | None] | None = None

    def _take_off_zeros(self, zeros: NDArray[np.int64]) -> None:
        """Take zero points off the integers of x, where what is left multiplies likewise: the same totals, no row more."""
        left = self.x - np.repeat(zeros, self.run, axis=1)[:, : self.x.shape[1]]
        most = MOST // (LARGEST * max(1, self.weights.largest))
        if min(self.run, left.shape[1]) <= most and (np.abs(left) <= LARGEST).all():
            self.x, self.zeros, self.bounds = left.astype(np.int16), None, (-LARGEST, LARGEST)

    @property
    def in_place(self) -> bool:
        """Whether weights are read where they lie."""
        return self.vectors is not None and self.vectors.in_place

    def by_groups(self) -> Multiply:
        """Multiply group by group, whatever groups are."""
        if self._has_vectors():
            from qformat.kernels.vector.dots import arranged, fits

            rows = self.weights.tensor.integers.codes
            if rows is not None and fits(rows.reading.unit, self.run, len(self.weights.table)):
                self.vectors, self.x = rows, arranged(self.x)
        n_rows = self.weights.tensor.n_rows
        if n_rows * self.n_groups <= HELD:
            self.held = self._params(0, n_rows)
        return self._write

    def by_blocks(self) -> Multiply | None:
        """Multiply blocks of few bits, scales included; None where groups are none, or integers are wanted of them."""
        if self.run != LEAST or self.zeros is not None or self.weights.zero is not None or not self._has_vectors():
            return None
        from qformat.kernels.vector.blocks import Factors, fits, multiply, order_of

        rows, fields = self.weights.tensor.integers.blocks, self.weights.tensor.integers.fields
        if rows is None or not fits(rows.reading.unit, fields, self.bounds):
            return None
        unit = rows.reading.unit
        ordered = self.x.reshape(self.n_rows, rows.n_units, unit.n_weights)[:, :, order_of(unit)]
        integers = np.ascontiguousarray(ordered.reshape(self.x.shape), np.int8)
        offsets = (self._group_sums(self.x) * min(fields)).astype(np.int32)
        factors = Factors(self.bounds, integers, offsets, self.scales.astype(np.float64) * self.step)
        self.vectors, self.holds = rows, False

        def write(first: int, last: int, out: F32) -> None:
            bound, number, _kept = rows.bind(first, last)
            multiply(unit, fields, bound, number, factors, out)

        return write

    def _write(self, first: int, last: int, out: F32) -> None:
        self.rows(first, last, out)

    def rows(self, first: int, last: int, out: F32) -> tuple[NDArray[np.int32], NDArray[np.int64] | None]:
        """Write values for rows [first, last) of the weights, and give accumulators and corrections."""
        from qformat.kernels.dots import add_up

        sums = self._dots(first, last)
        accumulators = sums[: self.n_rows]
        scales, zeros = self._params(first, last)
        corrections = self._corrections(sums[self.n_rows :], zeros)
        totals = accumulators if corrections is None else accumulators + corrections
        add_up(totals, self.scales, scales, self.step, out)
        return accumulators, corrections

    def _params(self, first: int, last: int) -> tuple[F32, NDArray[np.int64] | None]:
        """Give scales and zero points of rows [first, last) of the weights."""
        if self.held is None:
            return self.weights.scales(first, last, self.run), self.weights.zeros(first, last, self.run)
        scales, zeros = self.held
        return scales[first:last], None if zeros is None else zeros[first:last]

    def _corrections(self, of_weights: NDArray[np.int32], zeros: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Give what zero points add; `of_weights` are the sums of the weights' integers where x has zero points."""
        if self.zeros is None and zeros is None:
            return None
        n_rows = of_weights.shape[1] if zeros is None else len(zeros)
        found = np.zeros((self.n_rows, n_rows, self.n_groups), np.int64)
        if self.zeros is not None:
            found -= self.zeros[:, None] * of_weights
        if zeros is not None and self.sums is not None:
            offset = 0 if self.zeros is None else self.zeros * self._group_sums(self.x[-1:])
            found -= (self.sums - offset)[:, None] * zeros
        return found

    def _dots(self, first: int, last: int) -> NDArray[np.int32]:
        """Give the sums of products of rows [first, last) with every row of x, by group."""
        out = np.empty((len(self.x), last - first, self.n_groups), np.int32)
        if self.vectors is None:
            from qformat.kernels import dots

            dots.dots(self.weights.integers(first, last), self.run, self.x, out)
            return out
        from qformat.kernels.vector import dots as in_vectors

        bound, number, _kept = self.vectors.bind(first, last)
        unit = self.vectors.reading.unit
        in_vectors.dots(unit, self.weights.table, bound, number, self.run, self.x, out)
        return out

    def _has_vectors(self) -> bool:
        from qformat.kernels.cpu import has_vectors

        return has_vectors() and self.weights.tensor.n_weights > 0 and self.n_rows > 0

    def _group_sums(self, integers: NDArray[np.int16]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.add.reduceat(integers.astype(np.int64), np.arange(0, integers.shape[1], self.run), axis=1)
        return found
