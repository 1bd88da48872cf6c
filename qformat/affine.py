"""A scheme's steps read as zero, scale and bias: what two schemes must share for codes to go from one to the other.

    value = ((code - zero) * scale) + bias        any of zero, scale, bias may be absent

Knows declarations and arrays of parameters; which tensor they are of, and where in it, the caller says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qformat.evaluate import F32
from qformat.scheme import Apply, Const, Integers, Levels, Op, Operand, Scheme, Stored

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

MAX_ZERO = 1 << 16  # larger than any code that is stored
ONE = Const(1.0)


@dataclass(frozen=True, slots=True)
class Affine:
    """A scheme's steps read as zero, scale and bias.

    zero  : subtracted from the code; None: nothing
    scale : what codes are multiplied with
    bias  : whether it is added or subtracted, and what; None: nothing
    """

    zero: Operand | None
    scale: Operand
    bias: tuple[Op, Operand] | None


def read_affine(scheme: Scheme, is_scaled: bool = False) -> Affine | None:
    """Read a scheme's steps as zero, scale and bias in this order; None where they are anything else.

    is_scaled : pass over a scale of columns that comes after them; else that is anything else
    """
    steps = list(scheme.steps)
    zero = steps.pop(0).operand if steps and steps[0].op is Op.SUB else None
    scale: Operand = ONE
    while steps and steps[0].op in (Op.MUL, Op.DIV):
        step = steps.pop(0)
        scale = step.operand if step.op is Op.MUL and scale == ONE else Apply(step.op, scale, step.operand)
    bias = (steps[0].op, steps.pop(0).operand) if steps else None
    if steps or (scheme.input_scale and not is_scaled) or not isinstance(scheme.alphabet, Integers | Levels | Stored):
        return None
    return Affine(zero, scale, bias)


def zero_of(bias: F32, scale: F32) -> tuple[F32, NDArray[np.bool_]]:
    """Read biases as -zero * scale for integer zeros: the zeros, and where there is none."""
    with np.errstate(all="ignore"):
        zero = np.where(scale == 0, np.float32(0), np.rint(-bias / scale)).astype(np.float32)
        wrong = (-zero * scale != bias) | ~(np.abs(zero) <= MAX_ZERO)
    return zero + np.float32(0), wrong


def not_whole(zero: F32) -> NDArray[np.bool_]:
    """Tell which zero points cannot be subtracted from integer codes: those that are no integers, or too large."""
    return np.asarray(~((np.rint(zero) == zero) & (np.abs(zero) <= MAX_ZERO)))
