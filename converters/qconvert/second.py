"""A second scale: one number for a tensor, by which the scales of its groups are multiplied or divided (NVFP4).

Decides which number a tensor gets that comes from a format without one, or with one that is used the other way about. Whether
the values are then the same is for the caller to check.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qformat.bits import values
from qformat.evaluate import F32, as_float32
from qformat.scheme import Apply, Grid, Op, Operand, Ref, Scheme
from qformat.tensor import PackedTensor


@dataclass(frozen=True, slots=True)
class Second:
    """Which parameters are the scale of a group and that of the tensor, and what is done with the two."""

    group: str
    tensor: str
    op: Op

    def part_of(self, scale: F32, number: np.float32) -> F32:
        """Give the scales of groups that make these effective scales with a number for the tensor."""
        with np.errstate(all="ignore"):
            return scale / number if self.op is Op.MUL else scale * number


def read_second(scheme: Scheme, scale: Sequence[tuple[Op, Operand]]) -> Second | None:
    """Read a scheme's scale as that of a group and one of the tensor; None where it is anything else."""
    if len(scale) != 1 or scale[0][0] is not Op.MUL or not isinstance(found := scale[0][1], Apply):
        return None
    left, right = found.left, found.right
    if found.op not in (Op.MUL, Op.DIV) or not isinstance(left, Ref) or not isinstance(right, Ref):
        return None
    return Second(left.name, right.name, found.op) if scheme.param(right.name).group == Grid(0, 0) else None


def same_number(wanted: Second, source: Second, tensor: PackedTensor) -> np.float32:
    """Give the number of a tensor that has one, the other way about where it is used so."""
    stored = as_float32(tensor.param(source.tensor), tensor.scheme.param(source.tensor).dtype).reshape(-1)
    with np.errstate(all="ignore"):
        return np.float32(stored[0] if wanted.op is source.op else np.float32(1) / stored[0])


def new_number(wanted: Second, dtype: str, scales: Iterable[F32]) -> np.float32:
    """Give 1 to a tensor that has none, or the power of two that brings its largest scale to the top of the type's range.

    dtype  : of the scales of groups
    scales : the effective ones, of all rows
    """
    levels = [level for level in values(dtype) if level > 0 and math.isfinite(level)]
    least, largest = math.inf, 0.0
    for array in scales:
        sizes = np.abs(array[np.isfinite(array) & (array != 0)])
        least, largest = min(least, float(sizes.min(initial=np.inf))), max(largest, float(sizes.max(initial=0)))
    if not largest or (largest <= max(levels) and least >= min(levels)):
        return np.float32(1)
    power = math.ldexp(1.0, math.frexp(largest)[1] - math.frexp(max(levels))[1])
    with np.errstate(over="ignore"):
        return np.float32(power if wanted.op is Op.MUL else 1 / power)
