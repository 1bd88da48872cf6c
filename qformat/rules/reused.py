"""Memory of a tensor that is quantized into once more: the system need not clear new memory, which takes as long as rounding.

Decides which tensors have such memory, and what is written where a rule has made arrays of its own. Knows no rule.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.arrays import Memory
from qformat.errors import UsageError
from qformat.formats.form import Format
from qformat.tensor import PackedTensor

Arrays = dict[str, NDArray[np.uint8]]  # stored bytes by the role of the part


def arrays_of(out: PackedTensor, form: Format, weights: NDArray[Any]) -> Arrays:
    """Give the arrays that hold a tensor, for weights of its shape.

    Raises UsageError where it is no tensor, format or shape are others, bytes lie in no memory that can be written from end to
    end, or in that of the weights.
    """
    if not isinstance(out, PackedTensor):
        found_type = type(out).__name__
        raise UsageError(f"out is {found_type}, expected a PackedTensor that quantize gave", field="out", found=found_type)
    if (out.shape, out.scheme, tuple(part.form for part in out.parts)) != (weights.shape, form.scheme, form.parts):
        message = f"out is {out.form.name} {out.shape}, expected {form.name} {weights.shape}"
        raise UsageError(message, field="out", found=(out.form.name, out.shape), expected=(form.name, weights.shape))
    found = Arrays()
    for part in out.parts:
        data = part.source.data if isinstance(part.source, Memory) and not part.swapped else None
        if data is None or not (data.flags.writeable and data.flags.c_contiguous and data.dtype == np.uint8):
            message = f"out cannot be written: expected what quantize gave, not read from a file ({part.form.role})"
            raise UsageError(message, field="out", found=part.form.role)
        found[part.form.role] = data
        if np.may_share_memory(data, weights):
            raise UsageError("out lies in the memory of the weights, expected its own", field="out")
    return found


def rewritten(made: PackedTensor, arrays: Arrays | None) -> PackedTensor:
    """Give a tensor as it is held by these arrays; as it is if they are absent."""
    if arrays is None:
        return made
    for part in made.parts:
        arrays[part.form.role][:] = part.source.read(0, part.source.n_bytes)
    return replace(made, parts=tuple(replace(part, source=Memory(arrays[part.form.role])) for part in made.parts))
