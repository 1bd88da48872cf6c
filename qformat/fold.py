"""Rows of a packed tensor cut into shorter ones: the same bytes, the same weights in the same order, another shape.

A row of any length is then no longer the least that can be read by itself. Decides where rows may be cut: between blocks
and groups, in every part. Must not know why anybody wants them short.
"""

from __future__ import annotations

import math
from dataclasses import replace

from qformat.arrays import Part
from qformat.decoding import TILE_WEIGHTS
from qformat.formats.form import Format, matrix
from qformat.layout import CODES
from qformat.scheme import Flat, Grid, Opaque, Table
from qformat.tensor import PackedTensor, format_of
from qformat.tiling import ROWS


def narrower(tensor: PackedTensor, form: Format | None = None, n_weights: int = TILE_WEIGHTS) -> PackedTensor:
    """See a tensor with rows of at most `n_weights` weights, or as near to that as its blocks and groups let them be cut.

    form    : whose blocks and groups rows are to be cut between as well
    returns : the same bytes as a matrix; the tensor itself where its rows are short enough, or cannot be cut
    """
    n_rows, n_cols = matrix(tensor.shape)
    if n_cols <= n_weights:
        return tensor
    steps = [step_of(one, n_cols) for one in (format_of(tensor), form) if one is not None]
    unit = math.lcm(*steps)
    if not unit or n_cols % unit:
        return tensor
    width = unit * _largest_divisor(n_cols // unit, max(1, n_weights // unit))
    return refold(tensor, (n_rows * (n_cols // width), width))


def refold(tensor: PackedTensor, shape: tuple[int, int]) -> PackedTensor:
    """See the bytes of a tensor as a matrix of another shape, as many weights; its rows begin blocks and groups in both."""
    parts = tuple(_bound(part, tensor, shape) for part in tensor.parts)
    return replace(tensor, shape=shape, parts=parts)


def step_of(form: Format, n_cols: int) -> int:
    """Give the least number of weights that is whole blocks and whole groups within a row of every part; 0 where none is."""
    if isinstance(form.scheme.alphabet, Opaque) or form.scheme.input_scale:
        return 0
    step = 1
    for part in form.parts:
        if not part.layout.holds or (len(part.tiling.logical) > 1 and part.tiling.order != ROWS.order):
            return 0
        if part.layout.n_weights:
            step = math.lcm(step, part.layout.n_weights)
    for param in form.scheme.params:
        group = param.group
        if group == Grid(0, 0) or isinstance(group, Table):
            continue
        n_group = (
            group.n_weights if isinstance(group, Flat) else group.cols if isinstance(group, Grid) and group.rows == 1 else 0
        )
        layout = next(part.layout for part in form.parts if param.name in part.layout.holds)
        per_block = 1 if CODES in layout.holds else layout.n_items
        step = math.lcm(step, n_group * per_block)
    return step


def _bound(part: Part, tensor: PackedTensor, shape: tuple[int, int]) -> Part:
    dims = part.form.dims(tensor.scheme, *shape, part.source.n_bytes)
    return replace(part, bound=part.form.bind(dims))


def _largest_divisor(n: int, most: int) -> int:
    """Give the largest divisor of a number that is at most `most`; looks downward from there, however large the number is."""
    return next(divisor for divisor in range(min(n, most), 0, -1) if n % divisor == 0)
