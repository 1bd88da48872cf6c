"""Dense matrices with rows and columns exchanged, read where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qformat.tensor import PackedTensor, assemble, format_of

MATRIX = 2  # axes


@dataclass(frozen=True, slots=True)
class Flipped:
    """The bytes of a dense stack of matrices, each with rows and columns exchanged."""

    tensor: PackedTensor

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole."""
        return self.tensor.n_bytes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop), taken out of the columns of as many matrices as they are of."""
        height, width = self.tensor.shape[-2:]  # as they lie
        if stop <= start:
            return np.empty(0, np.uint8)
        n_item = self.tensor.n_bytes // self.tensor.n_weights
        line = height * n_item
        first, last = start // line, -(-stop // line)
        pieces = []
        for matrix in range(first // width, -(-last // width)):
            low, high = max(first - matrix * width, 0), min(last - matrix * width, width)
            values = self.tensor.codes(slice(matrix * height, (matrix + 1) * height))[:, low:high]
            pieces.append(np.ascontiguousarray(values.T).reshape(-1).view(np.uint8))
        return np.concatenate(pieces)[start - first * line : stop - first * line]


def flip(tensor: PackedTensor) -> PackedTensor:
    """Exchange the last two axes of a dense tensor; nothing is read before the result is."""
    if len(tensor.shape) < MATRIX:
        return tensor
    *outer, height, width = tensor.shape
    form = format_of(tensor)
    return assemble(form, (*outer, width, height), {form.parts[0].role: Flipped(tensor)}, tensor.dtype)
