"""A scale of a whole tensor beside those of its groups (NVFP4): which number it is, and what is left for the groups.

A tensor that has one keeps it and the scales of its groups, the other way about where the target divides and the source
multiplies. One that has none gets 1, or a power of two. Whether weights are then the same is for the caller to check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from qconvert.grouping import Grouping
from qconvert.keeping import Derived, Keeper
from qconvert.represent import represent
from qconvert.second import read_held
from qformat.bits import DTYPES, values
from qformat.evaluate import F32, OPERATIONS, as_float32
from qformat.scheme import Grid, Op, Operand, Ref, refs
from qformat.tensor import PackedTensor

MAX_BITS = 8  # of a type whose values are few enough to look at each


class TensorScale:
    """The numbers of one tensor, or of each of a stack, in one format.

    rows : of a tensor; 0: all
    """

    def __init__(self, tensor: PackedTensor, keeper: Keeper, groups: Grouping, source: Operand, scales: Iterable[F32]) -> None:
        """Choose the numbers.

        keeper : of the scale, in two levels
        source : what the source's scale is made of
        scales : the effective ones of all rows, range by range
        """
        form, over = keeper.form, keeper.form.scheme.param(keeper.shared).group
        assert isinstance(over, Grid)  # as the keeper checks
        self.rows, self.op, self.name, self.groups = over.rows, keeper.held.op, keeper.shared, groups
        held = read_held(tensor.scheme, source)
        is_own = held is not None and held.coarse is not None and _is_alike(tensor, held.name, held.coarse, over)
        self.own = Ref(held.name) if held is not None and is_own else None
        if held is not None and held.coarse is not None and is_own:
            stored = groups.operands.operand(held.coarse, 0, tensor.n_rows)[0][:: self.rows or tensor.n_rows, :1]
            dtype = tensor.scheme.param(held.name).dtype
            present = np.unique(tensor.param(held.name).view(np.uint8))
            self.numbers = other_way(self.op, held.op, stored, as_float32(present, dtype))
        else:
            self.numbers = new_numbers(self.op, form.scheme.param(keeper.held.name).dtype, scales, self.rows)

    def put(self, found: Derived, scale: F32, factor: float, first: int, last: int) -> F32:
        """Store the numbers of lines [first, last), and give what is left for their groups.

        scale  : effective, of these lines
        factor : that scales were divided by
        """
        step = self.rows or max(1, last)
        mine = self.numbers[first // step : -(-last // step)]
        found.values[self.name] = mine
        found.reasons.append(
            f"scale of the tensor {mine[0, 0]:g}" if self.numbers.size == 1 else "a scale for each of the stack"
        )
        if self.own is not None:
            return self.groups.read("scale", self.own, first, last) / np.float32(factor)
        beside = np.repeat(mine, step, axis=0)[: last - first]
        with np.errstate(all="ignore"):
            return scale / beside if self.op is Op.MUL else scale * beside


def other_way(op: Op, other: Op, numbers: F32, present: F32) -> F32:
    """Give numbers of tensors for use by `op`, of those that are used by `other`: themselves, or one over them.

    present : values of groups beside them; of the floats next to one over a number, that which serves them all is taken

    The values of groups stay as they are. Whether all products do is not said.
    """
    if op is other:
        return numbers
    found = np.empty_like(numbers)
    with np.errstate(all="ignore"):
        for at, number in enumerate(numbers.flat):
            near = np.float32(1) / number
            wanted = OPERATIONS[other](present, number)
            tried = (near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf) * np.sign(near)))
            found.flat[at] = next((one for one in tried if np.array_equal(OPERATIONS[op](present, one), wanted)), near)
    return found


def new_numbers(op: Op, dtype: str, scales: Iterable[F32], rows: int) -> F32:
    """Give 1 to tensors that have no number, or the power of two that brings their largest scale to the top of a type.

    dtype  : of the scales of groups, where 1 is given to those whose scales it holds as they are
    scales : the effective ones, (rows, groups), of whole tensors one after the other, or all of one where `rows` is 0
    rows   : of each tensor
    returns: (tensors, 1)
    """
    top = max(level for level in values(dtype) if math.isfinite(level))
    largest, fits = [np.zeros(0, np.float32)], [np.zeros(0, np.bool_)]
    for array in scales:
        lines = array.reshape(-1, rows * array.shape[1]) if rows else array.reshape(1, -1)
        largest.append(np.where(np.isfinite(lines), np.abs(lines), np.float32(0)).max(axis=1, initial=0))
        fits.append(np.all(represent(lines, dtype)[1] == lines, axis=1))
    most, hold = np.concatenate(largest), np.concatenate(fits)
    if not rows:
        most, hold = most.max(keepdims=True, initial=0), np.array([hold.all()])
    with np.errstate(over="ignore"):
        powers = np.ldexp(np.float32(1), np.frexp(most)[1] - np.frexp(np.float32(top))[1])
        numbers = np.where(hold, np.float32(1), powers if op is Op.MUL else 1 / powers)
    return numbers.astype(np.float32).reshape(-1, 1)


def _is_alike(tensor: PackedTensor, fine: str, coarse: Operand, over: Grid) -> bool:
    """Tell whether a tensor's own two levels are a small float and a number of as many rows."""
    element = DTYPES[tensor.scheme.param(fine).dtype]
    groups = {tensor.scheme.param(name).group for name in refs(coarse)}
    return element.kind == "float" and element.bits <= MAX_BITS and groups == {over}
