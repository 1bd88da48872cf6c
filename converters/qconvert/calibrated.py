"""A tensor of a checkpoint quantized by a method: the statistics that are its own, and what the method makes of its rows.

Must not know how a method works. Statistics are read when a tensor has its turn, and again for the proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod

import numpy as np
from numpy.typing import NDArray

from qconvert.calibration import Calibration
from qformat.calibration import Statistics
from qformat.errors import QFormatError, UsageError, about, show
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


def hessian_of(names: Sequence[str], calibration: Calibration | None, tensor: PackedTensor) -> NDArray[np.float64] | None:
    """Give the Hessian of the inputs of a tensor of these names; None where none is known of the whole of it.

    Raises as `find_weights` does.
    """
    return None if (known := _find_whole(names, calibration, tensor)) is None else known[0][known[1]].hessian


def held_by_hessian(names: Sequence[str], calibration: Calibration | None, tensor: PackedTensor) -> int:
    """Give the bytes that `hessian_of` takes at most, and what it gives."""
    return 0 if (known := _find_whole(names, calibration, tensor)) is None else known[0].n_held(known[1])


def knows_none(calibration: Calibration) -> UsageError:
    """Say that a file has nothing about any of the tensors at hand."""
    return UsageError("has no calibration for any of the tensors", path=calibration.path, field="calibration")


def _find_whole(names: Sequence[str], calibration: Calibration | None, tensor: PackedTensor) -> tuple[Calibration, str] | None:
    """Find where the inputs of the whole of a tensor are told, and by which name; None: nowhere, or not of the whole."""
    known = () if calibration is None else find_weights(names, calibration, tensor)
    return (calibration, known[0]) if calibration is not None and len(known) == 1 else None


def find_weights(names: Sequence[str], calibration: Calibration, tensor: PackedTensor) -> tuple[str, ...]:
    """Find by which of its names a tensor is in a file: by its own or its source's, or a stack by those of all its matrices.

    names : its own, then those of the source's tensors that it is made of

    Empty where it is not. Raises UsageError where it is there twice, or its columns are others there.
    """
    own, *sources = dict.fromkeys(names)
    found = tuple(name for name in (own, *sources) if name in calibration.columns)
    if len(sources) > 1 and own not in found:
        found = found if len(found) == len(sources) == prod(tensor.shape[:-2]) else ()
    elif len(found) > 1:
        message = f"calibration of one weight by {len(found)} names, {show(found[0], quote=True)} and this: leave one out"
        raise UsageError(message, path=calibration.path, tensor=found[1], field="calibration", found=found)
    for name in found:
        known = calibration.columns[name]
        if known != tensor.n_cols:
            message = f"calibration of {known} columns, the weight has {tensor.n_cols}"
            raise UsageError(
                message, path=calibration.path, tensor=name, field="calibration", found=known, expected=tensor.n_cols
            )
    return found


def _encode(encode: Callable[[NDArray[np.float32], int], Values], tensor: PackedTensor, first: int, last: int) -> Values:
    return encode(tensor.dequantize(rows=slice(first, last)), first)
