"""One side of a product by integers: a tensor whose values are (integer - zero) * scale, read off its scheme.

The integer is the code or, as for E2M1, what the code stands for times a power of two. Decides which schemes are of this kind,
and how kernels read their rows. What becomes of two sides is the business of `integer_products`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from qformat.affine import not_whole, read_affine
from qformat.errors import UsageError
from qformat.evaluate import F32, Operands, common_run, operand_run
from qformat.scheme import Alphabet, Indexed, Integers, Levels, Operand, Strided
from qformat.units import LEAST, Packed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.streamed import Rows
    from qformat.tensor import PackedTensor
else:
    from qformat.deferred import np

LARGEST = 255  # integer that kernels multiply, either way
HALVINGS = 8  # of a step at which the levels of an alphabet are looked for as integers
WIDE = 2 * LEAST  # codes of a unit, where rows are whole ones: a line of the cache of integers of a byte
NIBBLE = 4  # bits
SIDE = 8 * LEAST  # codes of a unit of blocks side by side


@dataclass(frozen=True, slots=True)
class IntegerRows:
    """How kernels read the rows of a tensor that is multiplied by integers; None each where they cannot.

    codes  : its codes alone
    blocks : its codes, and its scale as the one step
    fields : integer that each stored field of a code of `blocks` stands for
    """

    codes: Rows | None
    blocks: Rows | None
    fields: tuple[int, ...]


class Factor:
    """One side of a product: a tensor whose values are (integer - zero) * scale * step."""

    def __init__(self, tensor: PackedTensor, which: str) -> None:
        self.tensor, self.which = tensor, which
        scheme, affine = tensor.scheme, read_affine(tensor.scheme, is_scaled=True)
        self.table, self.step = integers_of(scheme.alphabet, self._refuse)
        if affine is None or affine.bias is not None:
            raise self._refuse("a bias is added to its values")
        self.zero, self.scale = affine.zero, affine.scale
        if scheme.input_scale:
            raise self._refuse("every column has a scale of its own")
        if self.zero is not None and self.table:
            raise self._refuse("zero points are subtracted from levels")
        if any(isinstance(param.group, Indexed | Strided) for param in scheme.params):
            raise self._refuse("weights that share a scale lie apart")
        self.operands = Operands(scheme, tensor.n_cols, tensor.param)

    @property
    def bounds(self) -> tuple[int, int]:
        """Least and greatest integer."""
        alphabet = self.tensor.scheme.alphabet
        return (alphabet.low, alphabet.high) if isinstance(alphabet, Integers) else (min(self.table), max(self.table))

    @property
    def largest(self) -> int:
        """Largest magnitude of an integer."""
        return max(map(abs, self.bounds))

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
        if not_whole(found).any():
            raise self._refuse("not all of its zero points are integers")
        return found.astype(np.int64)

    def _spread(self, operand: Operand, first: int, last: int, run: int) -> F32:
        found, own = self.operands.operand(operand, first, last)
        return self.operands.spread(found, own, run)

    def _refuse(self, why: str) -> UsageError:
        name = self.tensor.scheme.name
        message = f"{self.which} in '{name}' have no integer product: {why}; dequantize one side and use matmul"
        return UsageError(message, field="scheme", found=name)


def integer_rows(tensor: PackedTensor) -> IntegerRows:
    """Bind the rows of a tensor that has integers."""
    from qformat.streamed import codes_of

    factor = Factor(tensor, "weights")
    codes = codes_of(tensor, None, WIDE) or codes_of(tensor, None, LEAST)
    blocks = codes_of(tensor, factor.scale, SIDE) if factor.zero is None else None
    stored = blocks.reading.unit.codes if blocks else None
    if not isinstance(stored, Packed) or stored.width > NIBBLE:
        return IntegerRows(codes, None, ())
    sign = 1 << (stored.width - 1) if stored.signed else 0
    numbers = tuple((field ^ sign) - sign - stored.minus for field in range(1 << stored.width))
    return IntegerRows(codes, blocks, tuple(factor.table[number] for number in numbers) if factor.table else numbers)


def integers_of(alphabet: Alphabet, refuse: Callable[[str], UsageError]) -> tuple[tuple[int, ...], float]:
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
