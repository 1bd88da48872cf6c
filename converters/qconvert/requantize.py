"""Quantizing a tensor of a checkpoint anew: its decoded rows, through a named rule, to a target's arrays or bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.calibrated import Calibrated
from qconvert.imatrix import Entry
from qformat.formats import Format
from qformat.rules import encode, encode_parts, importance_of_rows, prepare
from qformat.rules.catalogue import find
from qformat.rules.fused import fuse
from qformat.rules.soundness import check_parameter
from qformat.scheme import Flat, Plain
from qformat.tensor import PackedTensor


class Requantizer:
    """One tensor on its way through a rule; a first pass over it where one group covers the whole.

    entry : the importance of its columns, for a rule that has a use for it
    """

    def __init__(self, tensor: PackedTensor, form: Format, rule: str, entry: Entry | None = None) -> None:
        self.tensor, self.form, self.rule = tensor, form, rule
        self.state = prepare(form, (tensor.dequantize(rows=slice(*tile)) for tile in tensor.tiles()))
        self.importance = None if entry is None else importance_of_rows(entry.importance(), tensor.shape)
        self.chosen = find(form, rule)
        self.dtype = tensor.scheme.alphabet.dtype if isinstance(tensor.scheme.alphabet, Plain) else "float32"
        is_counted = self.importance is not None and self.chosen.weighted is not None
        self.fused = None if is_counted else fuse(form, self.chosen, tensor.n_cols, self.dtype, in_place=True)
        self.is_flat = any(isinstance(param.group, Flat) for param in form.scheme.params)

    def values(self, first: int, last: int) -> dict[str, NDArray[Any]]:
        """Give the codes and parameters of rows [first, last).

        Raises UsageError for a weight that is not finite, NotExact for weights too large for the parameters of the format.
        """
        rows = self.tensor.dequantize(rows=slice(first, last))
        given = rows.reshape(1, -1) if self.is_flat else rows
        importance = None if self.importance is None else self.importance(first, last)
        if importance is not None and self.is_flat:
            importance = np.ascontiguousarray(np.broadcast_to(importance, rows.shape)).reshape(given.shape)
        made = encode(given, self.form, self.rule, self.state, first * self.tensor.n_cols, self.tensor.shape, importance)
        for name, array in made.items():
            check(self.form, name, array, self.chosen.limited, first, last)
        return made

    def parts(self, first: int, last: int) -> dict[str, NDArray[np.uint8]]:
        """Give the stored bytes of rows [first, last), by role, where there is a kernel. Raises what `values` does."""
        assert self.fused is not None  # who calls has looked
        rows, n_cols = slice(first, last), self.tensor.n_cols
        given = self.tensor.codes(rows) if isinstance(self.tensor.scheme.alphabet, Plain) else self.tensor.dequantize(rows=rows)
        return encode_parts(given, self.fused, self.chosen, first * n_cols, self.tensor.shape, must_hold=True)


def by_method(tensor: PackedTensor, form: Format, by: Calibrated) -> Callable[[int, int], dict[str, NDArray[Any]]]:
    """Prepare a tensor for a method; give what makes codes and parameters of rows [first, last), as `Requantizer.values`."""
    rounded, limited = by.rounded(tensor), find(by.form, by.rule).limited

    def values(first: int, last: int) -> dict[str, NDArray[Any]]:
        made = rounded(first, last)
        for name, array in made.items():
            check(form, name, array, limited, first, last)
        return made

    return values


def check(form: Format, name: str, array: NDArray[Any], limited: bool, first: int, last: int) -> None:
    """Refuse parameters of rows [first, last) that their type does not hold; `limited` as for `check_parameter`."""
    if array.dtype.kind == "f":
        check_parameter(form, name, array, limited, first, last)
