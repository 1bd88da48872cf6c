"""Matrices with rows and columns exchanged, as dense ones: read where they lie, decoded where they are packed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.bits import DTYPES
from qformat.formats.dense import dense
from qformat.scheme import Plain
from qformat.tensor import PackedTensor, assemble

MATRIX = 2  # axes
DECODED = "float32"
KEPT = 2  # matrices: while one is read to its end, the next is begun


@dataclass(frozen=True, slots=True)
class Flipped:
    """The bytes of a stack of matrices, each with rows and columns exchanged.

    A column is in every row, so that a matrix is taken as a whole; read piece by piece, it is taken once.

    dtype : of the values: the tensor's own, or that which it is decoded to
    kept  : matrices that were taken last, by number, while there is more to be read of them
    """

    tensor: PackedTensor
    dtype: str
    kept: dict[int, NDArray[Any]] = field(default_factory=dict, compare=False, repr=False)
    lock: Lock = field(default_factory=Lock, compare=False, repr=False)

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
            columns = self._matrix(matrix, is_last=stop >= (matrix + 1) * width * line)[:, low:high]
            pieces.append(np.ascontiguousarray(columns.T).reshape(-1).view(np.uint8))
        return np.concatenate(pieces)[start - first * line : stop - first * line]

    def _matrix(self, number: int, is_last: bool) -> NDArray[Any]:
        """Give a matrix as it lies, and keep it unless its last bytes are what is asked for."""
        with self.lock:  # whoever wants the same one waits for it
            found = self.kept.pop(number, None)
            if found is None:
                height = self.tensor.shape[-2]
                rows = slice(number * height, (number + 1) * height)
                found = self.tensor.codes(rows) if self.tensor.scheme.is_dense else self.tensor.dequantize(self.dtype, rows)
            if not is_last:
                self.kept[number] = found
                while len(self.kept) > KEPT:
                    del self.kept[next(iter(self.kept))]
        return found

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
