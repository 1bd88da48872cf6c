"""GGUF blocks as ggml packs them without an importance matrix, byte for byte.

Unlike the affine rules, codes come from the float32 scale before it is rounded to float16, by multiplying with its float32
reciprocal and cutting off after adding a half. What ggml does with extremes is kept: an all-zero block of Q4_0 or Q5_0 has
the scale -0, a scale beyond float16 becomes infinite, and a product that is no number gives field 0, as the conversion
instruction of x86 does.

Source: ggml-org/ggml at d99724f2: src/ggml-quants.c, quantize_row_{q4_0,q4_1,q5_0,q5_1,q8_0,mxfp4}_ref.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.rules.groups import Extremes, extremes, join, split
from qformat.rules.microscale import GGML, encode_with
from qformat.rules.rule import Encode, Rule, Values
from qformat.scheme import Integers, Scheme

F32 = NDArray[np.float32]

SOURCE = "ggml d99724f2, quantize_row_*_ref"
INT32_LIMIT = np.float32(2.0**31)


def extreme_blocks(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q4_0 and Q5_0: d = m / low, m the first weight of largest magnitude; field = min(top, trunc(x / d + half))."""
    codes, blocks = _blocks(rows, scheme)
    d = extremes(blocks).largest / np.float32(codes.low)
    fields = _truncate(blocks * _reciprocal(d)[..., None] + np.float32(0.5 - codes.low))
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
    fields = _truncate((blocks - low) * _reciprocal(d) + np.float32(0.5))
    found = np.minimum(fields, codes.high) if limited else fields & codes.high
    return {"codes": join(found.astype(np.uint8), *rows.shape), "scales": _half(d[..., 0]), "biases": _half(low[..., 0])}


def byte_blocks(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode Q8_0: d = max|x| / 127; code = x / d rounded, halves away from zero."""
    codes, blocks = _blocks(rows, scheme)
    d = extremes(blocks).magnitude / np.float32(codes.high)
    steps = blocks * _reciprocal(d)[..., None]
    size = np.abs(steps)
    whole = np.trunc(size)
    rounded = np.copysign(whole + (size - whole >= np.float32(0.5)), steps)
    return {"codes": join(_truncate(rounded).astype(np.int8), *rows.shape), "scales": _half(d)}


def _blocks(rows: F32, scheme: Scheme) -> tuple[Integers, F32]:
    if not isinstance(scheme.alphabet, Integers):
        raise UsageError(f"scheme '{scheme.name}' has no integer codes")
    return scheme.alphabet, split(rows, scheme.param("scales").group)


def _reciprocal(d: F32) -> F32:
    """Give 1 / d, and 0 for 0; infinite where d is deep among the subnormals."""
    return np.where(d == 0, np.float32(0), np.float32(1) / np.where(d == 0, np.float32(1), d))


def _truncate(values: F32) -> NDArray[np.int32]:
    """Convert to integers of 8 bits as x86 does: through int32, whose low byte is 0 for what int32 cannot hold."""
    held = np.abs(values) < INT32_LIMIT
    return np.where(held, values, 0).astype(np.int32)


def _half(values: F32) -> NDArray[np.float16]:
    return values.astype(np.float16)


def _rule(formula: str, encode: Encode) -> tuple[Rule, ...]:
    return (Rule("ggml", formula, SOURCE, encode),)


_EXTREME = _rule(
    "d = m / low code, m the first x of largest |x|; code = trunc(x / d + half) from the float32 d", extreme_blocks
)
_AFFINE = "d = (max - min) / top code, m = min; code = trunc((x - m) / d + 0.5) from the float32 d"

# By block type, as ggml's functions are.
RULES = {
    "q4_0": _EXTREME,
    "q5_0": _EXTREME,
    "q4_1": _rule(_AFFINE, partial(affine_blocks, True)),
    "q5_1": _rule(_AFFINE, partial(affine_blocks, False)),
    "q8_0": _rule("d = max|x| / 127; code = round(x / d), halves away from zero, from the float32 d", byte_blocks),
    "mxfp4": _rule(
        "e = 127 + floor(log2 max|x|) - 2, modulo 256; code = nearest E2M1, ties to zero, code 8 unused",
        partial(encode_with, GGML, True),
    ),
}
