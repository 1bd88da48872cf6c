"""What weights and parameters have to be: of a type that is quantized, finite, within what a format can hold.

Must not know rules, nor how codes are chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.bits import DTYPES, largest_of
from qformat.coding import SOURCES
from qformat.errors import NotExact, UsageError
from qformat.evaluate import as_float32
from qformat.formats.form import Format
from qformat.tensor import PackedTensor

F32 = NDArray[np.float32]

BYTE = 8  # bits

# Weights of at most this magnitude give finite parameters of a type: no rule makes one that is four times as large.
SURE = {"float16": 2.0**14, **dict.fromkeys(("bfloat16", "float32", "float8_e8m0fnu", "float8_e8m0half"), 2.0**124)}


def surely_holds(form: Format, largest: float) -> bool:
    """Tell whether no parameter can leave its type where no weight is of a larger magnitude, without looking at any."""
    floats = (param.dtype for param in form.scheme.params if DTYPES[param.dtype].kind == "float")
    return all(largest <= SURE.get(dtype, 0.0) for dtype in floats)


def check_dtype(array: NDArray[Any]) -> None:
    """Raise UsageError for weights of a type that nothing quantizes."""
    if array.dtype.name not in SOURCES:
        message = f"weights are {array.dtype.name}, expected float32, float16 or bfloat16"
        raise UsageError(message, field="dtype", found=array.dtype.name, expected=SOURCES)


def check_parameters(packed: PackedTensor, form: Format, limited: bool, first: int = 0) -> PackedTensor:
    """Give a tensor whose parameters its type holds, of rows from `first` on; raise NotExact for another.

    limited : whether the rule makes the largest number of a type of what is beyond it: then that is not believed
    """
    for param in packed.scheme.params:
        values = as_float32(packed.param(param.name), param.dtype)
        check_parameter(form, param.name, values, limited, first, first + packed.n_rows)
    return packed


def check_parameter(
    form: Format, name: str, values: NDArray[Any], limited: bool, first: int, last: int, way_out: str = ""
) -> None:
    """Raise NotExact for floats that a parameter of rows [first, last) came to and that its type does not hold.

    limited : as for `check_parameters`
    """
    dtype = form.scheme.param(name).dtype
    is_limited = limited and DTYPES[dtype].kind == "float" and DTYPES[dtype].bits > BYTE
    wrong = ~(np.abs(values) < largest_of(dtype)) if is_limited else ~np.isfinite(values)
    if wrong.any():
        value = float(values[wrong][0])
        limit = f", the largest {dtype}," if np.isfinite(value) else ""
        message = f"{name} of {value}{limit} in rows {first} to {last - 1}, expected weights that {form.name} can hold{way_out}"
        raise NotExact(message, field=name, found=value)


def check_finite(rows: F32, first: int, shape: tuple[int, ...]) -> None:
    """Raise UsageError for a weight that is NaN or infinite, by its index in a tensor of this shape.

    first : number of the first weight in the tensor
    """
    bad = ~np.isfinite(rows)
    if not bad.any():
        return
    at = int(np.flatnonzero(bad)[0])
    place, rest = [], first + at
    for n in reversed(shape[1:]):
        place.append(rest % n)
        rest //= n
    index = [rest, *reversed(place)][: max(1, len(shape))]
    value = float(rows.reshape(-1)[at])
    raise UsageError(f"weight {index} is {value}, expected a finite number", field="weights", found=value, expected="finite")
