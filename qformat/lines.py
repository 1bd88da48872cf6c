"""What bytes a row is: found in a part as it lies, or made where rows have no bytes of their own.

A line is the bytes of one row, or, of a parameter that several rows share, of these together. Which lines go where is decided
by `rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from qformat.arrays import ByteSource, Part, build
from qformat.errors import NotExact
from qformat.evaluate import Operands
from qformat.fields import numpy_dtype
from qformat.formats.form import PartForm, packed
from qformat.layout import CODES, Layout
from qformat.scheme import Flat, Grid, Group, Indexed, Integers, Levels, Opaque, Plain, Stored, Strided
from qformat.tensor import PackedTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np


def rows_of_line(groups: Sequence[Group]) -> int:
    """Give the rows that share what a part holds, 0: all."""
    return next((group.rows for group in groups if isinstance(group, Grid)), 1)


def line_bytes(tensor: PackedTensor, part: Part | None) -> int | None:
    """Give the bytes of a row, or of the rows that share a parameter, where these lie one after the other; else None."""
    if part is None:
        return None
    holds, tiling, layout = part.form.layout.holds, part.bound.tiling, part.form.layout
    groups = [tensor.scheme.param(name).group for name in holds if name != CODES]
    of_line = rows_of_line(groups)
    if tiling.logical[0][0] != tiling.stored[0][0] or (of_line != 1 and len(holds) > 1):
        return None
    if len(tiling.logical) > 1:
        n_lines = -(-tensor.n_rows // of_line) if of_line else 1
        is_line = len(tiling.logical[0]) == 1 and part.bound.dims[0] == n_lines
        return part.bound.total_bytes // max(1, n_lines) if is_line else None
    if isinstance(tensor.scheme.alphabet, Opaque) and not layout.n_weights:
        n_bytes, rest = divmod(part.bound.total_bytes, max(1, tensor.n_rows))
        return None if rest else n_bytes
    n_items, rest = tensor.n_cols, 0
    for group in groups:
        if not isinstance(group, Flat) or len(holds) > 1:
            return None
        n_items, rest = divmod(tensor.n_cols, group.n_weights)
    is_line = not rest and n_items % layout.n_items == 0 and len(tiling.stored) == 1
    return n_items // layout.n_items * layout.n_bytes if is_line else None


def stored_lines(source: ByteSource, n_bytes: int, first: int, last: int) -> NDArray[np.uint8]:
    """Give lines [first, last) as they are stored."""
    return source.read(first * n_bytes, last * n_bytes).reshape(last - first, n_bytes)


def made_lines(tensor: PackedTensor, form: PartForm, name: str, width: int, first: int, last: int) -> NDArray[np.uint8]:
    """Pack the codes, or a parameter of `width` values, of some rows."""
    values: NDArray[Any]
    if name == CODES:
        values = tensor.codes(slice(first, last))
    else:
        param = tensor.scheme.param(name)
        values = tensor.param(name, first, last) if isinstance(param.group, Indexed) else _spread(tensor, name, first, last)
        values = values.astype(numpy_dtype(param.dtype), copy=False)
    return build(form, (last - first, width), {name: values}).reshape(last - first, -1)


def by_row(group: Group, n_cols: int, together: int) -> Group:
    """Give the groups of a parameter when they no longer cross rows."""
    if isinstance(group, Grid):
        return Grid(together, group.cols)
    if isinstance(group, Flat):
        return Grid(1, math.gcd(n_cols, group.n_weights))
    return Grid(1, 1) if isinstance(group, Strided) else group  # of strided groups neighbours are never the same


def codes_layout(form: PartForm, tensor: PackedTensor) -> Layout:
    """Give the layout of codes that lie row by row: whole bytes of as few bits as the alphabet takes."""
    alphabet = tensor.scheme.alphabet
    match alphabet:
        case Plain():
            return form.layout
        case Opaque():
            message = f"rows of '{alphabet.name}' cannot be told apart: its codes are copied as a whole, or not at all"
            raise NotExact(message, field=CODES)
        case Integers(low, high):
            n_codes, minus = high - low + 1, -low
        case Levels():
            n_codes, minus = len(alphabet.levels), 0
        case Stored():
            (n_codes,), minus = tensor.scheme.param(alphabet.table).group.counts(1, 1), 0
    bits = (n_codes - 1).bit_length()
    return packed(f"uint{bits}{f'_minus{minus}' if minus else ''}", bits, CODES, minus=minus)


def _spread(tensor: PackedTensor, name: str, first: int, last: int) -> NDArray[Any]:
    return Operands(tensor.scheme, tensor.n_cols, tensor.param).by_row(name, first, last)[0]
