"""Whether values are representable in an element type, and their stored form.

One function for every type, floats of any width and integers alike, so that "fits" means one thing everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.bits import DTYPES, values
from qformat.evaluate import as_float32
from qformat.fields import numpy_dtype


def represent(
    array: NDArray[np.float32], dtype: str, bounds: tuple[int, int] | None = None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Round values into an element type and back.

    array   : float32, any shape
    dtype   : element type of the stored form
    bounds  : lowest and highest integer that the field can hold, where it is narrower than its type
    returns : (stored, in the type's NumPy dtype, and the float32 values that it stands for); an element of the second that
              differs from `array` was not representable
    """
    element = DTYPES[dtype]
    if element.kind in ("int", "uint"):
        low, high = bounds or integer_range(dtype)
        with np.errstate(all="ignore"):
            rounded = np.clip(np.nan_to_num(np.rint(array)), low, high)
        return rounded.astype(numpy_dtype(dtype)), rounded.astype(np.float32)
    if element.bits <= 8:
        return _nearest_level(array, dtype)
    with np.errstate(all="ignore"):
        stored = array.astype(numpy_dtype(dtype))
    return stored, as_float32(stored, dtype)


def integer_range(dtype: str) -> tuple[int, int]:
    """Give the lowest and highest integer of an integer type."""
    bits = DTYPES[dtype].bits
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if DTYPES[dtype].kind == "int" else (0, (1 << bits) - 1)


def _nearest_level(array: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Take the nearest level of a small type, the lower code at a tie; NaN where the type has one."""
    levels = np.array(values(dtype), np.float32)
    codes = np.arange(levels.size)[np.isfinite(levels)]
    order = codes[np.argsort(levels[codes], kind="stable")]
    steps = levels[order].astype(np.float64)
    middle = (steps[1:] + steps[:-1]) / 2
    stored = order[np.searchsorted(middle, array, side="left")].astype(np.uint8)
    nan = np.flatnonzero(np.isnan(levels))
    if nan.size:
        stored = np.where(np.isnan(array), np.uint8(nan[0]), stored)
    return stored.view(numpy_dtype(dtype)), levels[stored]
