"""A tensor of a checkpoint quantized by a method: the statistics that are its own, and what the method makes of its rows.

Must not know how a method works. Statistics are read when a tensor has its turn, and again for the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qconvert.calibration import Calibration
from qformat.calibration import Statistics
from qformat.errors import QFormatError, UsageError, about
from qformat.formats import Format
from qformat.methods import Method, Task
from qformat.methods.method import HELD_MATRICES, KEPT_MATRICES, SEEN_WEIGHTS, row_tiles
from qformat.rules.catalogue import find
from qformat.rules.rule import Values
from qformat.tensor import PackedTensor

OF_CALIBRATION = {field.name for field in fields(Statistics)}  # fields that an error may name


@dataclass(frozen=True, slots=True)
class Calibrated:
    """By what a tensor is quantized.

    form : the target, without what the method stores beside
    rule : its name
    name : of the weight in the file
    """

    method: Method
    form: Format
    rule: str
    calibration: Calibration
    name: str

    @property
    def n_kept(self) -> int:
        """Bytes that work on its rows holds beside them."""
        return KEPT_MATRICES * self._matrix_bytes

    @property
    def n_held(self) -> int:
        """Bytes that are held at most while it is made ready."""
        return HELD_MATRICES * self._matrix_bytes

    @property
    def _matrix_bytes(self) -> int:
        n_cols = self.calibration.columns[self.name]
        return n_cols * n_cols * np.dtype(np.float64).itemsize

    def rounded(self, tensor: PackedTensor) -> Callable[[int, int], Values]:
        """Prepare a tensor, once; give what makes codes and parameters of rows [first, last).

        Raises UsageError for statistics that the method cannot use, FileError for such as are not sound.
        """
        assert self.method.prepare is not None  # else there is nothing to prepare, and nobody asks

        def tiles() -> Iterator[NDArray[np.float32]]:
            parts = row_tiles(tensor.n_rows, tensor.n_cols, SEEN_WEIGHTS)
            return (tensor.dequantize(rows=part) for part in parts)

        with about(self.calibration.path, self.name):
            statistics = self.calibration[self.name]
        try:
            encode = self.method.prepare(Task(self.form, find(self.form, self.rule), tensor.shape, tiles, statistics))
        except QFormatError as error:
            if error.field in OF_CALIBRATION:  # else it is about weights, of another file
                error.path, error.tensor = str(self.calibration.path), self.name
            raise
        return partial(_encode, encode, tensor)


def hessian_of(names: Sequence[str], calibration: Calibration | None, n_cols: int) -> NDArray[np.float64] | None:
    """Give the Hessian of the inputs of a tensor of these names; None where nothing is known. Raises as `find_weight` does."""
    weight = "" if calibration is None else find_weight(names, calibration, n_cols)
    return calibration[weight].hessian if calibration is not None and weight else None


def held_by_hessian(names: Sequence[str], calibration: Calibration | None, n_cols: int) -> int:
    """Give the bytes that `hessian_of` takes at most, and what it gives."""
    weight = "" if calibration is None else find_weight(names, calibration, n_cols)
    return calibration.n_held(weight) if calibration is not None and weight else 0


def find_weight(names: Sequence[str], calibration: Calibration, n_cols: int) -> str:
    """Find by which of its names a tensor is in a file; empty where it is not, or where it is made of several that are.

    Raises UsageError where its columns are others there.
    """
    found = [name for name in dict.fromkeys(names) if name in calibration.columns]
    if len(found) != 1:
        return ""
    known = calibration.columns[found[0]]
    if known != n_cols:
        message = f"calibration of {known} columns, the weight has {n_cols}"
        raise UsageError(message, path=calibration.path, tensor=found[0], field="calibration", found=known, expected=n_cols)
    return found[0]


def _encode(encode: Callable[[NDArray[np.float32], int], Values], tensor: PackedTensor, first: int, last: int) -> Values:
    return encode(tensor.dequantize(rows=slice(first, last)), first)
