"""A scale of a whole tensor beside those of its groups (NVFP4): which number it is, and what is left for the groups.

A tensor that has one keeps it and the scales of its groups, the other way about where the target divides and the source
multiplies. One that has none gets 1, or a power of two. Whether weights are then the same is for the caller to check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from qconvert.grouping import Grouping
from qconvert.keeping import Derived, Keeper
from qconvert.represent import represent
from qconvert.second import read_held
from qformat.bits import DTYPES, values
from qformat.errors import NotExact
from qformat.evaluate import F32, OPERATIONS, as_float32
from qformat.scheme import Grid, Op, Operand, Ref, Scheme, refs
from qformat.tensor import PackedTensor

MAX_BITS = 8  # of a type whose values are few enough to look at each


class TensorScale:
    """The numbers of one tensor, or of each of a stack, in one format.

    rows : of a tensor; 0: all
    """

    def __init__(
        self, tensor: PackedTensor, keeper: Keeper, groups: Grouping, source: Operand, scales: Callable[[int, int], F32]
    ) -> None:
        """Choose the numbers.

        keeper : of the scale, in two levels
        source : what the source's scale is made of
        scales : gives the effective ones of a range of lines
        """
        form, over = keeper.form, keeper.form.scheme.param(keeper.shared).group
        assert isinstance(over, Grid)  # as the keeper checks
        self.rows, self.op, self.name, self.groups = over.rows, keeper.held.op, keeper.shared, groups
        levels = _own_levels(tensor.scheme, source, over)
        self.own = None if levels is None else levels[0]
        if levels is None:
            all_scales = (scales(*groups.lines(*tile)) for tile in tensor.tiles(together=self.together))
            self.numbers = new_numbers(self.op, form.scheme.param(keeper.held.name).dtype, all_scales, self.rows)
            self.stored, self.errors = self.numbers, np.zeros(self.numbers.shape)
        else:
            fine, coarse, op = levels
            self.stored = groups.operands.operand(coarse, 0, tensor.n_rows)[0][:: self.rows or tensor.n_rows, :1]
            present = as_float32(np.unique(tensor.param(fine.name).view(np.uint8)), tensor.scheme.param(fine.name).dtype)
            self.numbers, self.errors = other_way(self.op, op, self.stored, present)

    @property
    def together(self) -> int:
        """Rows that begin a tensor of the stack, and a group, are this many apart."""
        return math.lcm(self.groups.together, self.rows or 1)

    def put(self, found: Derived, scale: F32, factor: float, first: int, last: int, rounding: bool) -> F32:
        """Store the numbers of lines [first, last), and give what is left for their groups.

        scale    : effective, of these lines
        factor   : that scales were divided by
        rounding : let one over a number round, and count it

        Raises NotExact for a number that there is no other for which the products of all groups stay.
        """
        step = self.rows or max(1, last)
        low, high = first // step, -(-last // step)
        mine, errors = self.numbers[low:high], self.errors[low:high]
        if errors.any():
            at = int(np.argmax(errors > 0))
            value = self.stored[low + at, 0]
            if not (rounding and np.isfinite(errors).all()):
                message = f"scale of the tensor {value!s}: no float32 is one over it with which scales stay the same"
                raise NotExact(message, field=self.name, index=low + at, found=float(value))
            found.n_rounded += int(np.count_nonzero(errors)) if self.rows or not first else 0
            found.max_rel_error = max(found.max_rel_error, float(errors.max()))
            found.first = found.first or (self.name, low + at, float(value))
        found.values[self.name] = mine
        found.reasons.append(
            f"scale of the tensor {mine[0, 0]:g}" if self.numbers.size == 1 else "a scale for each of the stack"
        )
        if self.own is not None:
            return self.groups.read("scale", self.own, first, last) / np.float32(factor)
        beside = np.repeat(mine, step, axis=0)[: last - first]
        with np.errstate(all="ignore"):
            return scale / beside if self.op is Op.MUL else scale * beside


def other_way(op: Op, other: Op, numbers: F32, present: F32) -> tuple[F32, NDArray[np.float64]]:
    """Give numbers of tensors for use by `op`, of those that are used by `other`: themselves, or one over them.

    present : values of groups beside them, which stay; of the floats next to one over a number, that which serves them all is
              taken, or one over it
    returns : the numbers, and the largest relative error of a product with each; 0 where all stay
    """
    if op is other:
        return numbers, np.zeros(numbers.shape)
    found, errors = np.empty_like(numbers), np.zeros(numbers.shape)
    with np.errstate(all="ignore"):
        for at, number in enumerate(numbers.flat):
            near = np.float32(1) / number
            wanted = OPERATIONS[other](present, number)
            tried = (np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf) * np.sign(near)), near)
            products = [OPERATIONS[op](present, one) for one in tried]
            best = next((n for n, product in enumerate(products) if np.array_equal(product, wanted, equal_nan=True)), -1)
            found.flat[at] = tried[best]
            off = np.abs(products[best].astype(np.float64) / wanted - 1)
            errors.flat[at] = 0 if best >= 0 else np.nan_to_num(off[wanted != 0], nan=np.inf).max(initial=0) or np.inf
    return found, errors


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


def _own_levels(scheme: Scheme, scale: Operand, over: Grid) -> tuple[Ref, Operand, Op] | None:
    """Read a scale as a small float, a number of as many rows or of more, and what is done with the two; else None."""
    held = read_held(scheme, scale)
    if held is None or held.coarse is None:
        return None
    element, groups = DTYPES[scheme.param(held.name).dtype], [scheme.param(name).group for name in refs(held.coarse)]
    shared = all(isinstance(group, Grid) and not group.cols and _covers(group.rows, over.rows) for group in groups)
    is_small = element.kind == "float" and element.bits <= MAX_BITS
    return (Ref(held.name), held.coarse, held.op) if is_small and shared else None


def _covers(rows: int, fewer: int) -> bool:
    """Tell whether groups of rows are whole groups of so many of them; 0: all there are."""
    return rows == fewer or (fewer > 0 and rows % fewer == 0)
