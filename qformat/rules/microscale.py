"""E2M1 codes with a power-of-two scale per group (MXFP4): how each peer chooses the exponent and rounds the element.

Decoding is the same for all; the rules differ in the exponent (which trades a saturated extreme for finer steps), in where
ties go, and in the sign of a code that rounds to zero. Weights are divided by the scale, which is exact but for subnormals.
Where a peer lets the exponent byte wrap, become 255 (NaN in OCP MX) or make a decode infinite, it stops at 0 or 252 here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from qformat.coding import Coding, Count, Do, Kept, Name, Number, Sign, Stepped, Word
from qformat.fields import numpy_dtype
from qformat.rules.groups import Extremes, extremes, join, split
from qformat.rules.rule import Rule, Values
from qformat.scheme import Scheme

F32 = NDArray[np.float32]
Bytes = NDArray[np.int32]

# Halfway between neighbouring magnitudes 0, .5, 1, 1.5, 2, 3, 4, 6.
MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
# Which of them go up under ties-to-even: those below an even code.
TIES_UP = (False, True, False, True, False, True, False)
BIAS = 127
# 6 * 2^125 is finite in float32, 4 * 2^126 is not.
LARGEST_BYTE = 252
FRACTION = 23  # bits of a float32


def floor_exponent(amax: F32) -> Bytes:
    """Give bytes 127 + floor(log2 amax) - 2, exact; a group of zeros or subnormals gives 0.

    Source: OCP Microscaling Formats (MX) v1.0, section 6.3.
    """
    return _exponent_field(amax) - 2


def even_exponent(amax: F32) -> Bytes:
    """Give bytes 127 + floor(log2 a) - 2, where a is amax, or the next power of two from a mantissa of 1.75 on.

    So an extreme that would round beyond 6 takes the larger scale. A group of zeros gives 0.
    Source: vllm-project/compressed-tensors 0.20.0, quantization/utils/mxfp_utils.py, round_to_power_2.
    """
    return _exponent_field((amax.view(np.uint32) + np.uint32(1 << 21)).view(np.float32)) - 2


def ceil_exponent(amax: F32) -> Bytes:
    """Give bytes 127 + ceil(log2(amax / 6)), quotient and logarithm rounded to float32; a group of zeros gives 0.

    Source: NVIDIA/Model-Optimizer 0.47.0, torch/quantization/qtensor/mxfp4_tensor.py, MXFP4QTensor.quantize.
    """
    return BIAS + np.ceil(_log2(amax / np.float32(6))).astype(np.int32)


def nearest_exponent(amax: F32) -> Bytes:
    """Give bytes 127 + round(log2(amax / 6)), quotient and logarithm rounded to float32; where the quotient is 0, 127.

    Source: ml-explore/mlx 0.31.0 on a CPU, mlx/ops.cpp, fp_quantize. Its 0.32.4 rounds up: `mlx_exponent`.
    """
    scaled = amax / np.float32(6)
    return np.where(scaled == 0, 0, np.rint(_log2(scaled)).astype(np.int32)) + BIAS


def mlx_exponent(amax: F32) -> Bytes:
    """Give bytes 127 + ceil(log2(amax / 6)), exact: one up from a mantissa above 1.5 on; a group of zeros gives 127.

    Source: ml-explore/mlx 0.32.4 on a CPU, mx.quantize(mode="mxfp4"), as stored in spec/vectors/mxfp4.
    """
    fraction = amax.view(np.uint32) & np.uint32((1 << 23) - 1)
    return np.where(amax == 0, BIAS, _exponent_field(amax) - 2 + (fraction > 1 << 22))


def ggml_exponent(amax: F32) -> Bytes:
    """Give bytes 127 + floor(log2 amax) - 2, the logarithm rounded to float32; a group of zeros gives 0.

    Where amax is a hair below a power of two its logarithm rounds to an integer, and the byte is one more than `floor`'s.
    Below 2^-125 the bytes are negative. Source: ggml-org/ggml, src/ggml-quants.c, quantize_row_mxfp4_ref.
    """
    return np.where(amax == 0, 0, np.floor(_log2(amax)).astype(np.int32) - 2 + BIAS)


def round_even(scaled: F32) -> NDArray[np.uint8]:
    """Give magnitude codes 0..7 of |scaled|, to nearest, ties to the even code; beyond 6 saturates.

    >>> round_even(np.array([0.25, 0.75, -5.0, 100], np.float32)).tolist()
    [0, 2, 6, 7]
    """
    size = np.abs(scaled)
    found = np.zeros(size.shape, np.uint8)
    for midpoint, up in zip(MIDPOINTS, TIES_UP, strict=True):
        found += (size >= np.float32(midpoint)) if up else (size > np.float32(midpoint))
    return found


def round_down(scaled: F32) -> NDArray[np.uint8]:
    """Give magnitude codes 0..7 of |scaled|, to nearest, ties to the smaller magnitude; beyond 6 saturates.

    >>> round_down(np.array([0.25, 0.75, -5.0, 100], np.float32)).tolist()
    [0, 1, 6, 7]
    """
    size = np.abs(scaled)
    found = np.zeros(size.shape, np.uint8)
    for midpoint in MIDPOINTS:
        found += size > np.float32(midpoint)
    return found


def own_sign(scaled: F32, magnitude: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Keep the sign of every weight, that of zero too: -0 is code 8."""
    return np.signbit(scaled)


def sign_below_zero(scaled: F32, magnitude: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Sign what is below zero: -0 is code 0, a negative weight that rounds to zero code 8."""
    return scaled < 0


def sign_up_to_zero(scaled: F32, magnitude: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Sign what is not above zero: every zero is code 8."""
    return scaled <= 0


def sign_of_code(scaled: F32, magnitude: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Sign what stays below zero after rounding: code 8 is never used."""
    return (scaled < 0) & (magnitude > 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """The parts of an MXFP4 rule: exponent byte of a group, magnitude code, sign bit."""

    exponent: Callable[[F32], Bytes]
    magnitude: Callable[[F32], NDArray[np.uint8]]
    sign: Callable[[F32, NDArray[np.uint8]], NDArray[np.bool_]]


def round_codes(groups: F32, exponents: Bytes, choice: Choice) -> NDArray[np.uint8]:
    """Give E2M1 codes of groups against scales 2^(byte - 127).

    groups    : (..., weights) float32
    exponents : (...) bytes 0..255
    """
    scaled: F32 = groups / np.ldexp(np.float32(1), exponents - BIAS).astype(np.float32)[..., None]
    found = choice.magnitude(scaled)
    return found | (choice.sign(scaled, found).view(np.uint8) << np.uint8(3))


def encode_with(choice: Choice, wraps: bool, rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode rows; `wraps`: an exponent out of range is taken modulo 256 instead of being limited."""
    param = scheme.param("scales")
    groups = split(rows, param.group)
    exponents = _bytes(choice, wraps, extremes(groups).magnitude)
    scales = exponents.astype(np.uint8).view(numpy_dtype(param.dtype))
    return {"codes": join(round_codes(groups, exponents, choice), *rows.shape), "scales": scales}


def coding_with(choice: Choice, wraps: bool, scheme: Scheme) -> Coding:
    """Say what `encode_with` computes."""
    scales = Kept("scales", Name("magnitude"), Stepped(_steps(choice, wraps)))
    codes = Count(BOUNDS[choice.magnitude], SIGNS[choice.sign])
    return Coding((scales,), Do(Word.DIV, (Number(1), Name("scales"))), False, codes)


@lru_cache
def _steps(choice: Choice, wraps: bool) -> tuple[int, ...]:
    """Find, for each exponent field, what `Stepped` adds, by halving the fractions between which the byte grows by 1."""
    field = np.arange(Stepped.N_FIELDS, dtype=np.int64)
    least = np.zeros(field.size, np.int64)  # the smallest fraction with the larger byte lies above this
    most = np.full(field.size, 1 << FRACTION)  # and at or below this
    first = _bytes(choice, wraps, _magnitudes(field, least))
    while (most - least > 1).any():
        middle = (least + most) // 2
        same = _bytes(choice, wraps, _magnitudes(field, middle)) == first
        least, most = np.where(same, middle, least), np.where(same, most, middle)
    return tuple(int(step) for step in (first.astype(np.int64) << FRACTION) + (1 << FRACTION) - most)


def _magnitudes(field: NDArray[np.int64], fraction: NDArray[np.int64]) -> F32:
    """Give the magnitudes with these exponent fields, counted as `Stepped` does, and fractions; finite ones."""
    is_small = field <= Stepped.SHIFT
    bits = np.where(is_small, field, field - Stepped.SHIFT) << FRACTION | fraction
    found: F32 = np.minimum(bits, (255 << FRACTION) - 1).astype(np.uint32).view(np.float32)
    found[is_small] = np.ldexp(found[is_small].astype(np.float64), -Stepped.SHIFT)
    return found


def _bytes(choice: Choice, wraps: bool, amax: F32) -> Bytes:
    exponents = choice.exponent(amax)
    return exponents & 0xFF if wraps else np.clip(exponents, 0, LARGEST_BYTE)


def _exponent_field(values: F32) -> Bytes:
    return (values.view(np.uint32) >> np.uint32(23)).astype(np.int32)


def _log2(values: F32) -> F32:
    """Give log2 rounded to float32, the same on every machine; of 0 a very small finite number."""
    wide = np.maximum(values, np.float32(2.0**-149)).astype(np.float64)
    return np.where(values == 0, -300, np.log2(wide)).astype(np.float32)


# The largest magnitudes that keep a code, for each way to round; and who signs codes.
BOUNDS: dict[Callable[[F32], NDArray[np.uint8]], tuple[float, ...]] = {
    round_down: MIDPOINTS,
    round_even: tuple(
        float(np.nextafter(np.float32(at), np.float32(0))) if up else at for at, up in zip(MIDPOINTS, TIES_UP, strict=True)
    ),
}
SIGNS: dict[Callable[[F32, NDArray[np.uint8]], NDArray[np.bool_]], Sign] = {
    own_sign: Sign.OWN,
    sign_below_zero: Sign.BELOW,
    sign_up_to_zero: Sign.UP_TO,
    sign_of_code: Sign.OF_CODE,
}

FLOOR = Choice(floor_exponent, round_even, own_sign)
EVEN = Choice(even_exponent, round_even, sign_below_zero)
CEIL = Choice(ceil_exponent, round_down, sign_up_to_zero)
NEAREST = Choice(nearest_exponent, round_down, sign_of_code)
MLX = Choice(mlx_exponent, round_down, sign_of_code)
GGML = Choice(ggml_exponent, round_down, sign_of_code)

RULES = (
    Rule(
        "floor",
        "scale = 2^(floor(log2 max|x|) - 2); element to nearest E2M1, ties to even, saturating, -0 is code 8; zeros: byte 0",
        "OCP Microscaling Formats (MX) v1.0, 6.3; torchao 0.18.0 FLOOR but for byte 0, where it divides by 2^-126",
        partial(encode_with, FLOOR, False),
        coded=partial(coding_with, FLOOR, False),
    ),
    Rule(
        "ceil",
        "scale = 2^ceil(log2(max|x| / 6)); element to nearest E2M1, ties to zero, zero is code 8; zeros: byte 0",
        "nvidia-modelopt 0.47.0",
        partial(encode_with, CEIL, False),
        coded=partial(coding_with, CEIL, False),
    ),
    Rule(
        "even",
        "scale = 2^(floor(log2 a) - 2), a = max|x|, doubled from mantissa 1.75 on; element ties to even; zeros: byte 0",
        "compressed-tensors 0.20.0",
        partial(encode_with, EVEN, False),
        coded=partial(coding_with, EVEN, False),
    ),
    Rule(
        "nearest",
        "scale = 2^round(log2(max|x| / 6)); element to nearest E2M1, ties to zero, code 8 unused; zeros: byte 127",
        "mlx 0.31.0",
        partial(encode_with, NEAREST, False),
        coded=partial(coding_with, NEAREST, False),
    ),
    Rule(
        "mlx",
        "scale = 2^ceil(log2(max|x| / 6)), exact; element to nearest E2M1, ties to zero, code 8 unused; zeros: byte 127",
        "mlx 0.32.4",
        partial(encode_with, MLX, False),
        coded=partial(coding_with, MLX, False),
    ),
    Rule(
        "ggml",
        "scale = 2^(floor(float32 log2 max|x|) - 2); element to nearest E2M1, ties to zero, code 8 unused; zeros: byte 0",
        "ggml d99724f2, quantize_row_mxfp4_ref",
        partial(encode_with, GGML, False),
        coded=partial(coding_with, GGML, False),
    ),
)
