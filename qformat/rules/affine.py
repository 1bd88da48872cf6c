"""Integer codes with a scale, and a zero point or a minimum: symmetric, min/max and their kin.

All arithmetic is float32, each operation rounded to nearest even. The scale is rounded to its stored type first, and the
codes are computed against the scale **as stored**, because that is what they will be multiplied with. A scale never becomes
infinite (it stops at the largest finite value, and codes saturate) and never vanishes under a nonzero group (it stops at the
smallest subnormal), so that no weight becomes NaN. A group of zeros has scale +0 and codes that decode to +0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.bits import DTYPES, largest_of
from qformat.coding import Coding, Do, Expression, Integer, Kept, Name, Nearest, Number, Rounded, Word
from qformat.errors import UsageError
from qformat.fields import numpy_dtype
from qformat.rules.groups import Extremes, extremes, join, split
from qformat.rules.rule import Rule, Values
from qformat.scheme import Integers, Scheme

F32 = NDArray[np.float32]
STORED_SCALE = Do(Word.DIVISOR, (Name("scales"),))
ScaleOf = Callable[[Extremes, Integers], F32]

USUAL = "the usual definition, codes against the scale as stored, ties to even"


def symmetric(found: Extremes, codes: Integers) -> F32:
    """Give scales amax / (2^(N-1) - 1): both signs reach equally far, the lowest code stays unused."""
    return found.magnitude / np.float32(codes.high)


def symmetric_full(found: Extremes, codes: Integers) -> F32:
    """Give scales amax / 2^(N-1): finer steps, a positive extreme is clipped by one step."""
    return found.magnitude / np.float32(-codes.low)


def signed_extreme(found: Extremes, codes: Integers) -> F32:
    """Give scales m / -2^(N-1), m the first value of largest magnitude: negative where m > 0, so that m is never clipped."""
    return found.largest / np.float32(codes.low)


def minmax(found: Extremes, codes: Integers) -> F32:
    """Give scales (max - min) / (2^N - 1), the range widened to hold 0 so that the zero point is a code."""
    with np.errstate(over="ignore"):  # an infinite range ends at the largest scale
        return (found.high - found.low) / np.float32(codes.high - codes.low)


def zero_point(found: Extremes, scale: F32, codes: Integers) -> F32:
    """Give zero points round(low code - min / scale), ties to even, limited to the codes; low code where the scale is 0."""
    steps = found.low / _divisor(scale)
    zeros: F32 = np.rint(np.float32(codes.low) - steps)
    return np.clip(zeros, codes.low, codes.high, out=zeros)


def minimum(groups: F32, codes: Integers) -> tuple[F32, F32]:
    """Give scales (max - min) / (2^N - 1) and minima of groups: the affine form whose offset is a float, not a code.

    groups : (n_rows, n_groups, weights) float32, at least one weight each
    """
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    with np.errstate(over="ignore"):
        return (high - low) / np.float32(codes.high - codes.low), low


def round_codes(groups: F32, scale: F32, codes: Integers, zero: F32 | None = None) -> F32:
    """Give codes round(x / scale) + zero, ties to even, limited to the codes' range; still as float32.

    groups : (n_rows, n_groups, weights) float32
    scale  : (n_rows, n_groups) float32; a zero scale gives the zero point
    zero   : (n_rows, n_groups) float32 holding integers, or None for 0

    >>> w = np.array([[[0.18, -0.91, 1.62, 2.94]]], np.float32)
    >>> round_codes(w, np.array([[0.42]], np.float32), Integers(-7, 7))[0, 0].tolist()
    [0.0, -2.0, 4.0, 7.0]
    """
    with np.errstate(over="ignore"):  # beyond every code, hence limited
        found = groups / _divisor(scale)[..., None]
    np.rint(found, out=found)
    if zero is not None:
        found += zero[..., None]
    return np.clip(found, codes.low, codes.high, out=found)


def store(values: F32, dtype: str) -> NDArray[Any]:
    """Round parameters to their stored type, ties to even; never to infinity, and to zero only from zero.

    values : float32; +infinity becomes the largest finite value
    dtype  : "float16", "bfloat16" or "float32"
    """
    element = DTYPES[dtype]
    if element.kind != "float" or element.bits < 16:
        raise UsageError(f"scales of {dtype}, expected float16, bfloat16 or float32", field="scales", found=dtype)
    largest = largest_of(dtype)
    smallest = 2.0 ** (1 - element.bias - element.mantissa)
    limited = np.clip(values, -largest, largest).astype(np.float32)
    stored = limited.astype(numpy_dtype(dtype))
    vanished = (stored == 0) & (values != 0)
    stored[vanished] = np.copysign(np.float32(smallest), values[vanished]).astype(stored.dtype)
    return stored


def _divisor(scale: F32) -> F32:
    """Give the scale, 1 where it is 0: the weights there are all 0."""
    return np.where(scale == 0, np.float32(1), scale)


def _codes(found: F32, rows: F32, codes: Integers) -> NDArray[Any]:
    return join(found, *rows.shape).astype(np.int8 if codes.low < 0 else np.uint8)


def _encode_scaled(scale_of: ScaleOf, mirrored: bool, rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    codes = _integers(scheme)
    param = scheme.param("scales")
    groups = split(rows, param.group)
    scales = store(scale_of(extremes(groups) if state is None else state, codes), param.dtype)
    used = Integers(-codes.high, codes.high) if mirrored else codes
    found = round_codes(groups, scales.astype(np.float32), used)
    return {"codes": _codes(found, rows, codes), "scales": scales}


def _scaled_coding(extreme: str, steps: Callable[[Integers], int], mirrored: bool, scheme: Scheme) -> Coding:
    """Say what `_encode_scaled` computes: a scale of `extreme` over a number of steps."""
    codes = _integers(scheme)
    scale = Do(Word.DIV, (Name(extreme), Number(steps(codes))))
    low = -codes.high if mirrored else codes.low
    return Coding((_kept("scales", scale, scheme),), STORED_SCALE, True, Nearest(low, codes.high))


def _encode_zeroed(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    codes = _integers(scheme)
    param = scheme.param("scales")
    groups = split(rows, param.group)
    seen = extremes(groups) if state is None else state
    scales = store(minmax(seen, codes), param.dtype)
    steps = scales.astype(np.float32)
    zeros = zero_point(seen, steps, codes)
    found = round_codes(groups, steps, codes, zeros)
    return {"codes": _codes(found, rows, codes), "scales": scales, "zeros": zeros.astype(scheme.param("zeros").dtype)}


def _zeroed_coding(scheme: Scheme) -> Coding:
    """Say what `_encode_zeroed` computes."""
    codes = _integers(scheme)
    scale = Do(Word.DIV, (Do(Word.SUB, (Name("high"), Name("low"))), Number(codes.high - codes.low)))
    zero = Do(Word.WHOLE, (Do(Word.SUB, (Number(codes.low), Do(Word.DIV, (Name("low"), STORED_SCALE)))),))
    limited = Do(Word.AT_MOST, (Do(Word.AT_LEAST, (zero, Number(codes.low))), Number(codes.high)))
    kept = _kept("scales", scale, scheme), Kept("zeros", limited, Integer())
    return Coding(kept, STORED_SCALE, True, Nearest(codes.low, codes.high), after=Name("zeros"))


def _kept(name: str, value: Expression, scheme: Scheme) -> Kept:
    return Kept(name, value, Rounded(scheme.param(name).dtype, limited=True))


def _encode_biased(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    codes = _integers(scheme)
    param = scheme.param("scales")
    groups = split(rows, param.group)
    steps, lows = minimum(groups, codes)
    scales, biases = store(steps, param.dtype), store(lows, scheme.param("biases").dtype)
    found = round_codes(groups - biases.astype(np.float32)[..., None], scales.astype(np.float32), codes)
    return {"codes": _codes(found, rows, codes), "scales": scales, "biases": biases}


def _integers(scheme: Scheme) -> Integers:
    if not isinstance(scheme.alphabet, Integers):
        raise UsageError(f"scheme '{scheme.name}' has no integer codes")
    return scheme.alphabet


SCALED = (
    Rule(
        "symmetric",
        "scale = max|x| / (2^(N-1) - 1); code = round(x / scale) within +-(2^(N-1) - 1)",
        USUAL,
        partial(_encode_scaled, symmetric, True),
        coded=partial(_scaled_coding, "magnitude", lambda codes: codes.high, True),
        limited=True,
        mirrored=True,
    ),
    Rule(
        "symmetric-full",
        "scale = max|x| / 2^(N-1); code = round(x / scale), a positive extreme clipped to 2^(N-1) - 1",
        USUAL,
        partial(_encode_scaled, symmetric_full, False),
        coded=partial(_scaled_coding, "magnitude", lambda codes: -codes.low, False),
        limited=True,
    ),
    Rule(
        "signed-extreme",
        "scale = m / -2^(N-1), m the first x of largest |x|; code = round(x / scale), clipped to 2^(N-1) - 1",
        "the scale of ggml's Q4_0, codes against the scale as stored, ties to even",
        partial(_encode_scaled, signed_extreme, False),
        coded=partial(_scaled_coding, "largest", lambda codes: codes.low, False),
        limited=True,
    ),
)
ZEROED = (
    Rule(
        "minmax",
        "scale = (max - min) / (2^N - 1) of the range with 0; zero = round(low - min / scale); code = round(x / scale) + zero",
        USUAL,
        _encode_zeroed,
        coded=_zeroed_coding,
        limited=True,
    ),
)
BIASED = (
    Rule(
        "minmax",
        "scale = (max(x) - min(x)) / (2^N - 1); bias = min(x); code = round((x - bias) / scale)",
        USUAL,
        _encode_biased,
        limited=True,
    ),
)
