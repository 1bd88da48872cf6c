"""A scheme's steps read as zero, scale and bias: what two schemes must share for codes to go from one to the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qformat.errors import NotExact
from qformat.evaluate import F32
from qformat.scheme import Integers, Levels, Op, Operand, Ref, Scheme

MAX_ZERO = 1 << 16  # larger than any code that is stored


@dataclass(frozen=True, slots=True)
class Affine:
    """A scheme's steps read as zero, scale and bias; each an operand or absent."""

    zero: Operand | None
    scale: tuple[tuple[Op, Operand], ...]
    bias: tuple[Op, Operand] | None

    def names(self) -> tuple[str, str, str]:
        """Name the stored parameters that hold zero, scale and bias, where each is one parameter; else empty."""
        scale = self.scale[0] if len(self.scale) == 1 else None
        return (
            _name(self.zero),
            _name(scale[1]) if scale is not None and scale[0] is Op.MUL else "",
            _name(self.bias[1]) if self.bias is not None else "",
        )


def read_affine(scheme: Scheme) -> Affine | None:
    """Read a scheme's steps as zero, scale and bias in this order; None where they are anything else."""
    steps = list(scheme.steps)
    zero = steps.pop(0).operand if steps and steps[0].op is Op.SUB else None
    scale = []
    while steps and steps[0].op in (Op.MUL, Op.DIV):
        scale.append((steps[0].op, steps.pop(0).operand))
    bias = (steps[0].op, steps.pop(0).operand) if steps else None
    if steps or scheme.input_scale or not isinstance(scheme.alphabet, Integers | Levels):
        return None
    return Affine(zero, tuple(scale), bias)


def zero_of(bias: F32, scale: F32) -> F32:
    """Recognise biases as -zero * scale for integer zeros. Raises NotExact for one that is none."""
    with np.errstate(all="ignore"):
        zero = np.where(scale == 0, np.float32(0), np.rint(-bias / scale)).astype(np.float32)
        wrong = -zero * scale != bias
    if wrong.any() or np.abs(zero).max(initial=0) > MAX_ZERO:
        where = int(np.argmax(wrong))
        value = float(bias.reshape(-1)[where])
        raise NotExact(f"bias {value!r} is no integer multiple of its scale", field="bias", found=value)
    return zero + np.float32(0)


def whole(zero: F32) -> F32:
    """Give zero points that can be subtracted from integer codes. Raises NotExact for one that is no integer."""
    wrong = ~((np.rint(zero) == zero) & (np.abs(zero) <= MAX_ZERO))
    if wrong.any():
        where = int(np.argmax(wrong))
        value = float(zero.reshape(-1)[where])
        raise NotExact(f"zero {value!r} of group {where} of the rows is no integer", field="zeros", found=value)
    return zero


def _name(operand: Operand | None) -> str:
    return operand.name if isinstance(operand, Ref) else ""
