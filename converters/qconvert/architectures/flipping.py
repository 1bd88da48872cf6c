"""Matrices with rows and columns exchanged, as dense ones: read where they lie, decoded where they are packed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qformat.bits import DTYPES
from qformat.formats.dense import dense
from qformat.scheme import Plain
from qformat.tensor import PackedTensor, assemble

MATRIX = 2  # axes
DECODED = "float32"


@dataclass(frozen=True, slots=True)
class Flipped:
    """The bytes of a stack of matrices, each with rows and columns exchanged.

    dtype : of the values: the tensor's own, or that which it is decoded to
    """

    tensor: PackedTensor
    dtype: str

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole."""
        return self.tensor.n_weights * self._item_bytes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop), taken out of the columns of as many matrices as they are of."""
        if stop <= start:
            return np.empty(0, np.uint8)
        height, width = self.tensor.shape[-2:]  # as they lie
        line = height * self._item_bytes
        first, last = start // line, -(-stop // line)
        pieces = []
        for matrix in range(first // width, -(-last // width)):
            low, high = max(first - matrix * width, 0), min(last - matrix * width, width)
            rows = slice(matrix * height, (matrix + 1) * height)
            values = self.tensor.codes(rows) if self.tensor.scheme.is_dense else self.tensor.dequantize(self.dtype, rows)
            pieces.append(np.ascontiguousarray(values[:, low:high].T).reshape(-1).view(np.uint8))
        return np.concatenate(pieces)[start - first * line : stop - first * line]

    @property
    def _item_bytes(self) -> int:
        return DTYPES[self.dtype].bits // 8


def flip(tensor: PackedTensor) -> PackedTensor:
    """Exchange the last two axes of a tensor, which is dense then: of its own type, or float32 if it was packed.

    Nothing is read before the result is.
    """
    if len(tensor.shape) < MATRIX or not math.prod(tensor.shape):
        return tensor
    *outer, height, width = tensor.shape
    alphabet = tensor.scheme.alphabet
    form = dense(alphabet.dtype if isinstance(alphabet, Plain) else DECODED)
    return assemble(form, (*outer, width, height), {form.parts[0].role: Flipped(tensor, form.name)}, form.name)
