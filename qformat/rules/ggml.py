"""GGUF blocks as ggml packs them without an importance matrix, byte for byte.

Unlike the affine rules, codes come from the float32 scale before it is rounded to float16, by multiplying with its float32
reciprocal and cutting off after adding a half. What ggml does with extremes is kept: an all-zero block of Q4_0 or Q5_0 has
the scale -0, a scale beyond float16 becomes infinite, and a product that is no number gives what the conversion
instruction of x86 makes of it, field 0 in most types.

Source: ggml-org/ggml at d99724f2: src/ggml-quants.c, quantize_row_*_ref; src/ggml-impl.h, ggml_fp32_to_ue4m3.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from qformat.bits import values
from qformat.coding import (
    Away,
    Closest,
    Coding,
    Count,
    Cut,
    Do,
    Expression,
    Kept,
    Name,
    Nearest,
    Number,
    Rounded,
    Sign,
    Small,
    Word,
)
from qformat.errors import UsageError
from qformat.evaluate import as_float32
from qformat.rules.groups import Extremes, extremes, join, split
from qformat.rules.microscale import GGML, coding_with, encode_with, sign_of_code
from qformat.rules.rule import Coded, Encode, Rule, Values
from qformat.scheme import Grid, Integers, Scheme

F32 = NDArray[np.float32]

SOURCE = "ggml d99724f2, quantize_row_*_ref"
INT32_LIMIT = np.float32(2.0**31)
JUST_BELOW_ZERO = -(2.0**-149)  # of float32
# NVFP4: a scale that is neither 0 nor the largest is a ninth of each weight at least, and half of the largest 2^-15 of this.
WITHIN = 2.0**22


def extreme_blocks(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q4_0 and Q5_0: d = m / low, m the first weight of largest magnitude; field = min(top, trunc(x / d + half))."""
    codes, blocks = _blocks(rows, scheme)
    d = extremes(blocks).largest / np.float32(codes.low)
    fields = _truncate(blocks * reciprocal(d)[..., None] + np.float32(0.5 - codes.low))
    found = np.minimum(fields, codes.high - codes.low) + codes.low
    return {"codes": join(found.astype(np.int8), *rows.shape), "scales": _half(d)}


def affine_blocks(limited: bool, rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q4_1 and Q5_1: d = (max - min) / top, m = min; field = trunc((x - m) / d + 0.5), `limited` to top in Q4_1 only.

    Of equal extremes the first counts, which decides the sign of a zero.
    """
    codes, blocks = _blocks(rows, scheme)
    low = np.take_along_axis(blocks, blocks.argmin(axis=-1)[..., None], axis=-1)
    high = np.take_along_axis(blocks, blocks.argmax(axis=-1)[..., None], axis=-1)
    d = (high - low) / np.float32(codes.high)
    fields = _truncate((blocks - low) * reciprocal(d) + np.float32(0.5))
    found = np.minimum(fields, codes.high) if limited else fields & codes.high
    return {"codes": join(found.astype(np.uint8), *rows.shape), "scales": _half(d[..., 0]), "biases": _half(low[..., 0])}


def rounded_blocks(top: int, stray: int, rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q8_0, Q8_1, TQ1_0, TQ2_0 and Q2_0: d = max|x| / top; code = x / d rounded, halves away from zero.

    stray : code of every weight where 1 / d is infinite
    """
    blocks = split(rows, scheme.param("scales").group)
    d = extremes(blocks).magnitude / np.float32(top)
    steps = blocks * reciprocal(d)[..., None]
    size = np.abs(steps)
    whole = np.trunc(size)
    rounded = np.copysign(whole + (size - whole >= np.float32(0.5)), steps)
    return {"codes": join(_finite(rounded, stray), *rows.shape), "scales": _half(d)}


def _extreme_coding(scheme: Scheme) -> Coding:
    """Say what `extreme_blocks` computes."""
    codes = _integers(scheme)
    d = Do(Word.DIV, (Name("largest"), Number(codes.low)))
    cut = Cut(0.5 - codes.low, codes.high - codes.low, False, codes.low)
    return Coding((_kept("scales", d),), _inverse(d), False, cut, stray=codes.low)


def _affine_coding(limited: bool, scheme: Scheme) -> Coding:
    """Say what `affine_blocks` computes."""
    codes = _integers(scheme)
    d = Do(Word.DIV, (Do(Word.SUB, (Name("most"), Name("least"))), Number(codes.high)))
    kept = _kept("scales", d), _kept("biases", Name("least"))
    return Coding(kept, _inverse(d), False, Cut(0.5, codes.high, not limited, 0), before=Name("least"), stray=0)


def _rounded_coding(top: int, stray: int, scheme: Scheme) -> Coding:
    """Say what `rounded_blocks` computes."""
    d = Do(Word.DIV, (Name("magnitude"), Number(top)))
    return Coding((_kept("scales", d),), _inverse(d), False, Away(), stray=stray)


def _wide_coding(scheme: Scheme) -> Coding:
    """Say what `wide_blocks` computes."""
    inverse = Do(Word.RATIO, (Number(-127), Name("largest")))
    scales = Kept("scales", _inverse(inverse), Rounded("float32", limited=False))
    return Coding((scales,), inverse, False, Nearest(-128, 127), stray=0)


def _microscale_coding(scheme: Scheme) -> Coding:
    """Say what `microscale_blocks` computes."""
    scales = Kept("scales", Do(Word.DIV, (Name("magnitude"), Number(6))), Small())
    closest = Closest(tuple(values("float4_e2m1fn")[:8]), Sign.OF_CODE, WITHIN)
    return Coding((scales,), Name("scales"), False, closest)


def _sign_coding(scheme: Scheme) -> Coding:
    """Say what `sign_blocks` computes."""
    (n_weights,) = {group.cols for param in scheme.params if isinstance(group := param.group, Grid)}
    mean = Do(Word.DIV, (Name("total"), Number(n_weights)))
    return Coding((_kept("scales", mean),), Number(1), False, Count((JUST_BELOW_ZERO,)))


def _kept(name: str, value: Expression) -> Kept:
    return Kept(name, value, Rounded("float16", limited=False))


def _inverse(d: Expression) -> Expression:
    return Do(Word.RATIO, (Number(1), d))


def wide_blocks(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q8_K: 1 / d = -127 / m, m the first weight of largest magnitude; code = x / d rounded, ties to even.

    d stays float32, and is +0 for a block of zeros.
    """
    blocks = split(rows, scheme.param("scales").group)
    largest = extremes(blocks).largest
    inverse = np.where(largest == 0, np.float32(0), np.float32(-127) / largest)
    codes = _finite(np.rint(blocks * inverse[..., None]), 0)
    return {"codes": join(codes, *rows.shape), "scales": reciprocal(inverse)}


def sign_blocks(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q1_0: d = mean |x|, summed up in float32 from the first weight on; code 1 where x >= 0, so for -0 too."""
    blocks = split(rows, scheme.param("scales").group)
    total: F32 = np.add.accumulate(np.abs(blocks), axis=-1)[..., -1]  # unlike a sum, one addition after the other
    return {"codes": (rows >= 0).astype(np.uint8), "scales": _half(total / np.float32(blocks.shape[-1]))}


def microscale_blocks(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode NVFP4: scale = UE4M3 nearest to max|x| / 6; code = the first whose float32 difference to x is least.

    The difference is rounded: of a weight far beyond 6 scales all are equal, and the first code is 0.
    """
    param = scheme.param("scales")
    blocks = split(rows, param.group)
    scales = _unsigned_e4m3(extremes(blocks).magnitude / np.float32(6))
    steps, size = as_float32(scales, param.dtype)[..., None], np.abs(blocks)
    best, codes = size, np.zeros(blocks.shape, np.uint8)
    for code, level in enumerate(values("float4_e2m1fn")[1:8], 1):
        difference = np.abs(np.float32(level) * steps - size)
        np.copyto(codes, np.uint8(code), where=difference < best)
        best = np.minimum(difference, best)
    codes |= sign_of_code(blocks, codes).view(np.uint8) << np.uint8(3)
    return {"codes": join(codes, *rows.shape), "scales": scales}


def _integers(scheme: Scheme) -> Integers:
    if not isinstance(scheme.alphabet, Integers):
        raise UsageError(f"scheme '{scheme.name}' has no integer codes")
    return scheme.alphabet


def _blocks(rows: F32, scheme: Scheme) -> tuple[Integers, F32]:
    return _integers(scheme), split(rows, scheme.param("scales").group)


def reciprocal(d: F32) -> F32:
    """Give 1 / d, and 0 for 0; infinite where d is deep among the subnormals."""
    return np.where(d == 0, np.float32(0), np.float32(1) / np.where(d == 0, np.float32(1), d))


def _truncate(values: F32) -> NDArray[np.int32]:
    """Convert to integers of 8 bits as x86 does: through int32, whose low byte is 0 for what int32 cannot hold."""
    held = np.abs(values) < INT32_LIMIT
    return np.where(held, values, 0).astype(np.int32)


def _finite(rounded: F32, stray: int) -> NDArray[np.int8]:
    """Give rounded numbers as codes, `stray` for what is no finite number."""
    return np.where(np.isfinite(rounded), rounded, stray).astype(np.int8)


def _unsigned_e4m3(x: F32) -> NDArray[np.uint8]:
    """Give the UE4M3 bytes of numbers >= 0: to nearest, ties up; what rounds to 256 or more is 448, the largest."""
    tiny = np.minimum(x * np.float32(512) + np.float32(0.5), 7).astype(np.int32)  # subnormals, multiples of 2^-9
    rounded = (x.view(np.int32) + (1 << 19) >> 20) - (120 << 3)  # exponent and 3 bits, rebiased from 127 to 7
    found = np.where(x < np.float32(2.0**-6), tiny, np.where(rounded < 15 << 3, rounded, 0x7E))
    return found.astype(np.uint8)


def _half(values: F32) -> NDArray[np.float16]:
    return values.astype(np.float16)


def _rule(formula: str, encode: Encode, coded: Coded | None = None, mirrored: bool = False) -> tuple[Rule, ...]:
    return (Rule("ggml", formula, SOURCE, encode, coded=coded, mirrored=mirrored),)


_EXTREME = _rule(
    "d = m / low code, m the first x of largest |x|; code = trunc(x / d + half) from the float32 d",
    extreme_blocks,
    _extreme_coding,
)
_AFFINE = "d = (max - min) / top code, m = min; code = trunc((x - m) / d + 0.5) from the float32 d"
_BYTES = _rule(
    "d = max|x| / 127; code = round(x / d), halves away from zero, from the float32 d",
    partial(rounded_blocks, 127, 0),
    partial(_rounded_coding, 127, 0),
    mirrored=True,
)
_TERNARY = "d = max|x|; code = round(x / d), halves away from zero, from the float32 d"

# By block type, as ggml's functions are.
RULES = {
    "q4_0": _EXTREME,
    "q5_0": _EXTREME,
    "q4_1": _rule(_AFFINE, partial(affine_blocks, True), partial(_affine_coding, True)),
    "q5_1": _rule(_AFFINE, partial(affine_blocks, False), partial(_affine_coding, False)),
    "q8_0": _BYTES,
    "q8_1": _BYTES,
    "q8_k": _rule(
        "1 / d = -127 / m, m the first x of largest |x|; code = x / d rounded, ties to even", wide_blocks, _wide_coding
    ),
    "q1_0": _rule("d = mean |x|; code 1 where x >= 0", sign_blocks, _sign_coding),
    "q2_0": _rule(_TERNARY, partial(rounded_blocks, 1, -1), partial(_rounded_coding, 1, -1)),
    "tq1_0": _rule(_TERNARY, partial(rounded_blocks, 1, 0), partial(_rounded_coding, 1, 0)),
    "tq2_0": _rule(_TERNARY, partial(rounded_blocks, 1, 0), partial(_rounded_coding, 1, 0)),
    "nvfp4": _rule(
        "scale = UE4M3 nearest to max|x| / 6, ties up, 448 from 256 on; code = nearest E2M1",
        microscale_blocks,
        _microscale_coding,
    ),
    "mxfp4": _rule(
        "e = 127 + floor(log2 max|x|) - 2, modulo 256; code = nearest E2M1, ties to zero, code 8 unused",
        partial(encode_with, GGML, True),
        partial(coding_with, GGML, True),
    ),
}
