"""Sees a strided array as the run of memory that it covers, so that kernels take one kind of array whatever its strides."""

from __future__ import annotations

from typing import Any

from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray


def flat(array: NDArray[Any], writeable: bool = False) -> tuple[NDArray[Any], int, tuple[int, ...]]:
    """Give the memory of a non-empty array.

    array  : any strides that are multiples of its item, as `is_regular` tells
    returns: the contiguous run from its lowest item to its highest, the place of its first item there, its strides in items
    """
    steps = tuple(stride // array.itemsize for stride in array.strides)
    if array.flags.c_contiguous:
        run, first = array.reshape(-1), 0
    else:
        upright = array[tuple(slice(None, None, -1 if step < 0 else 1) for step in steps)]
        spans = [(n - 1) * step for n, step in zip(array.shape, steps, strict=True)]
        first = -sum(span for span in spans if span < 0)
        run = as_strided(upright, (1 + sum(abs(span) for span in spans),), (array.itemsize,), writeable=writeable)
    if not writeable:
        run = run.view()
        run.flags.writeable = False  # one type for numba, whoever owns the bytes
    return run, first, steps


def is_regular(array: NDArray[Any]) -> bool:
    """Tell whether an array lies at whole, aligned items of native byte order, as `flat` and the kernels need."""
    return bool(array.flags.aligned and array.dtype.isnative and all(stride % array.itemsize == 0 for stride in array.strides))
