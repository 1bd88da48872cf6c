"""Products of packed activations with packed weights, as integers: which schemes have them, zero points, scales, threads.

A value of such a scheme is (integer - zero) * scale, where the integer is the code or, as for E2M1, what the code stands for
times a power of two. Over the columns that share every scale and zero point of both sides, a group, products are added up in
32 bits, exactly; zero points come off afterwards, by sums of integers. Floats begin after that. Kernels know none of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from qformat.decoding import SHARED_WEIGHTS, TILE_WEIGHTS
from qformat.errors import UsageError
from qformat.evaluate import F32, Operands, common_run, operand_run
from qformat.scheme import Alphabet, Apply, Const, Indexed, Integers, Levels, Op, Operand, Strided
from qformat.streamed import Rows, codes_of
from qformat.tensor import PackedTensor
from qformat.threads import n_threads, spread

MOST = (1 << 31) - 1  # that 32 bits hold
LARGEST = 255  # integer that kernels multiply, either way
LARGEST_ZERO = 1 << 16
HALVINGS = 8  # of a step at which the levels of an alphabet are looked for as integers
FEW_ROWS = 4  # of activations: weights are read once
AGAIN = 1 << 21  # weights that stay in the last cache, where more rows read them again
SHARES = 4  # of a thread
HELD = 1 << 22  # integers that a share holds

ONE = Const(1.0)


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
    product = _Product(x, w)
    out = np.empty((x.n_rows, w.n_rows), np.float32)
    n_each = max(1, len(product.x) * product.n_groups)  # integers of a row of weights
    workers = n_threads() if x.n_rows * w.n_weights >= 2 * SHARED_WEIGHTS else 1
    n_share = -(-w.n_rows // (SHARES * workers if workers > 1 else 1)) * w.n_cols
    n_most = TILE_WEIGHTS if not product.in_place else n_share if len(product.x) <= FEW_ROWS else AGAIN
    n_weights = min(n_share, n_most, HELD // n_each * w.n_cols)

    def work(rows: tuple[int, int]) -> None:
        out[:, rows[0] : rows[1]] = product.rows(*rows)[2]

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
    product = _Product(x, w)
    accumulators, corrections, values = product.rows(0, w.n_rows)
    if corrections is None:
        corrections = np.zeros(accumulators.shape, np.int64)
    lead = (*x.shape[:-1], w.n_rows)
    return IntegerProduct(
        accumulators.reshape(*lead, product.n_groups), corrections.reshape(*lead, product.n_groups), values.reshape(lead)
    )


class _Factor:
    """One side of a product: a tensor whose values are (integer - zero) * scale * step."""

    def __init__(self, tensor: PackedTensor, which: str) -> None:
        self.tensor, self.which = tensor, which
        scheme, steps = tensor.scheme, list(tensor.scheme.steps)
        self.table, self.step = _integers(scheme.alphabet, self._refuse)
        self.zero = steps.pop(0).operand if steps and steps[0].op is Op.SUB else None
        self.scale: Operand = ONE
        for step in steps:
            if step.op not in (Op.MUL, Op.DIV):
                raise self._refuse("a bias is added to its values")
            self.scale = step.operand if step.op is Op.MUL and self.scale == ONE else Apply(step.op, self.scale, step.operand)
        if scheme.input_scale:
            raise self._refuse("every column has a scale of its own")
        if self.zero is not None and self.table:
            raise self._refuse("zero points are subtracted from levels")
        if any(isinstance(param.group, Indexed | Strided) for param in scheme.params):
            raise self._refuse("weights that share a scale lie apart")
        self.operands = Operands(scheme, tensor.n_cols, tensor.param)

    @property
    def largest(self) -> int:
        """Largest magnitude of an integer."""
        alphabet = self.tensor.scheme.alphabet
        return max(-alphabet.low, alphabet.high) if isinstance(alphabet, Integers) else max(map(abs, self.table))

    @property
    def run(self) -> int:
        """Columns that share scale and zero point; 0 for a tensor without columns."""
        n_cols = self.tensor.n_cols
        runs = (operand_run(self.tensor.scheme, operand, n_cols) for operand in (self.scale, self.zero) if operand is not None)
        return reduce(lambda one, other: common_run(one, other, n_cols), runs, n_cols)

    def integers(self, first: int, last: int) -> NDArray[np.int16]:
        """Give the integers of rows [first, last), contiguous."""
        codes = self.tensor.codes(slice(first, last))
        if not self.table:
            return np.ascontiguousarray(codes, np.int16)
        if codes.size and int(codes.max()) >= len(self.table):
            raise self._refuse(f"code {int(codes.max())} is outside its {len(self.table)} levels")
        found: NDArray[np.int16] = np.array(self.table, np.int16)[codes]
        return found

    def scales(self, first: int, last: int, run: int) -> F32:
        """Give the scales of rows [first, last), (rows, groups) float32."""
        return np.ascontiguousarray(self._spread(self.scale, first, last, run))

    def zeros(self, first: int, last: int, run: int) -> NDArray[np.int64] | None:
        """Give the zero points of rows [first, last), (rows, groups); None where the scheme has none."""
        if self.zero is None:
            return None
        found = self._spread(self.zero, first, last, run)
        if not ((np.rint(found) == found) & (np.abs(found) <= LARGEST_ZERO)).all():
            raise self._refuse("not all of its zero points are integers")
        return found.astype(np.int64)

    def _spread(self, operand: Operand, first: int, last: int, run: int) -> F32:
        found, own = self.operands.operand(operand, first, last)
        return self.operands.spread(found, own, run)

    def _refuse(self, why: str) -> UsageError:
        name = self.tensor.scheme.name
        message = f"{self.which} in '{name}' have no integer product: {why}; dequantize one side and use matmul"
        return UsageError(message, field="scheme", found=name)


class _Product:
    """What all rows of weights are multiplied with.

    x    : (rows of activations, K) int16, and a row of ones where sums of weights are wanted; arranged for the kernel
    sums : of the integers of each row and group, where zero points of weights take them off
    """

    def __init__(self, x: PackedTensor, w: PackedTensor) -> None:
        for which, side in (("activations", x), ("weights", w)):
            if not isinstance(side, PackedTensor):
                found = type(side).__name__
                raise UsageError(f"{which} are {found}, expected a PackedTensor: quantize them", field=which, found=found)
        if len(w.shape) != 2 or not x.shape or x.n_cols != w.n_cols:
            message = f"activations {x.shape} and weights {w.shape}, expected [..., K] and [out, K]"
            raise UsageError(message, field="shape", found=(x.shape, w.shape))
        left, self.weights = _Factor(x, "activations"), _Factor(w, "weights")
        n_cols = w.n_cols
        self.run = max(1, common_run(left.run, self.weights.run, n_cols) if n_cols else 1)
        self.n_groups = -(-n_cols // self.run)
        most = MOST // max(1, left.largest * self.weights.largest)
        if min(self.run, n_cols) > most:
            message = f"groups of {self.run} columns, of which 32 bits hold {most} products of these schemes for certain"
            raise UsageError(message, field="K", found=self.run, expected=most)
        self.step = left.step * self.weights.step
        self.n_rows = x.n_rows
        self.scales, self.zeros = left.scales(0, x.n_rows, self.run), left.zeros(0, x.n_rows, self.run)
        self.x = left.integers(0, x.n_rows).reshape(x.n_rows, n_cols)
        self.sums = self._group_sums(self.x) if self.weights.zero is not None else None
        if self.zeros is not None:
            self.x = np.concatenate([self.x, np.ones((1, n_cols), np.int16)])
        self.vectors = self._vectors()
        if self.vectors is not None:
            from qformat.kernels.vector.dots import arranged

            self.x = arranged(self.x)

    @property
    def in_place(self) -> bool:
        """Whether weights are read where they lie."""
        return self.vectors is not None and self.vectors.in_place

    def rows(self, first: int, last: int) -> tuple[NDArray[np.int32], NDArray[np.int64] | None, F32]:
        """Give accumulators, corrections and values for rows [first, last) of the weights."""
        from qformat.kernels.dots import add_up

        sums = self._dots(first, last)
        accumulators = sums[: self.n_rows]
        corrections = self._corrections(sums[self.n_rows :], self.weights.zeros(first, last, self.run))
        totals = accumulators if corrections is None else accumulators + corrections
        values = np.empty((self.n_rows, last - first), np.float32)
        add_up(totals, self.scales, self.weights.scales(first, last, self.run), self.step, values)
        return accumulators, corrections, values

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

    def _vectors(self) -> Rows | None:
        """Give what binds weights for vector kernels; None where they cannot read them, or not these groups."""
        from qformat.kernels.cpu import has_vectors

        if not (has_vectors() and self.weights.tensor.n_weights):
            return None
        from qformat.kernels.vector.dots import fits

        rows = codes_of(self.weights.tensor)
        return rows if rows is not None and fits(rows.reading.unit, self.run, len(self.weights.table)) else None

    def _group_sums(self, integers: NDArray[np.int16]) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.add.reduceat(integers.astype(np.int64), np.arange(0, integers.shape[1], self.run), axis=1)
        return found


def _integers(alphabet: Alphabet, refuse: Callable[[str], UsageError]) -> tuple[tuple[int, ...], float]:
    """Give the integers that codes stand for, none where that is themselves, and the step that they count."""
    if isinstance(alphabet, Integers) and max(-alphabet.low, alphabet.high) <= LARGEST:
        return (), 1.0
    if not isinstance(alphabet, Levels):
        raise refuse("its codes stand for no small integers")
    for halvings in range(HALVINGS):
        counts = [level * 2**halvings for level in alphabet.levels]
        if all(math.isfinite(count) and count.is_integer() for count in counts):
            if not all(-128 <= count <= 127 for count in counts):
                break
            return tuple(map(int, counts)), 0.5**halvings
    raise refuse("its levels are no small integers times a power of two")
