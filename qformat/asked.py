"""What a caller asks of a decode: an element type, a range of rows, an array to write to, in whatever spelling.

Refuses what cannot be meant, in one line. Must not know what is decoded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformat.arrays import aligned
from qformat.errors import UsageError
from qformat.fields import numpy_dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np


def asked_dtype(asked: Any, own: str) -> np.dtype[Any]:
    """Give the NumPy dtype of a name, a NumPy type or a dtype: a float, or the element type that weights have.

    own : that type, where weights are dense; empty where they are packed

    Raises UsageError for anything else.
    """
    try:
        found = numpy_dtype(asked if isinstance(asked, str) else np.dtype(asked).name)
    except (TypeError, ValueError, AttributeError) as err:
        message = f"element type {asked!r}, expected a float of NumPy or ml_dtypes: 'float32', 'float16', 'bfloat16'"
        raise UsageError(message, field="dtype", found=str(asked), expected="float32") from err
    is_float = found.kind == "f" or (found.kind == "V" and found.name.startswith(("float", "bfloat")))
    if not is_float and not (own and numpy_dtype(own) == found):
        message = f"element type {found}, expected a float{f' or {own}' if own else ''}"
        raise UsageError(message, field="dtype", found=found.name, expected=own or "float32")
    return found


def asked_rows(asked: slice | None, n_rows: int) -> tuple[int, int]:
    """Give first and last of some rows, all if absent. Raises UsageError for what is no slice of integers in steps of 1."""
    if asked is None:
        return 0, n_rows
    try:
        first, last, step = asked.indices(n_rows)
    except (AttributeError, TypeError) as err:
        raise UsageError(f"rows {asked!r}, expected a slice of integers", field="rows", found=str(asked)) from err
    if step != 1:
        raise UsageError(f"rows step {step}, expected 1", field="rows", found=step, expected=1)
    return first, max(first, last)


def asked_out(asked: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Give the array to write to, a new one if absent. Raises UsageError for another shape or type, and a read-only one."""
    if asked is None:
        return aligned(shape, dtype)
    if isinstance(asked, np.ndarray) and asked.shape == shape and asked.dtype == dtype and asked.flags.writeable:
        return asked
    found = str(asked)
    if isinstance(asked, np.ndarray):
        found = f"{'' if asked.flags.writeable else 'read-only '}{asked.dtype} {asked.shape}"
    raise UsageError(f"out is {found}, expected {dtype} {shape}", field="out", found=found, expected=f"{dtype} {shape}")
