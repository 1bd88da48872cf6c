"""NF4: sixteen levels between -1 and 1, scaled by the largest magnitude of a block of the flattened tensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qformat.coding import Coding, Count, Do, Kept, Name, Number, Rounded, Word
from qformat.errors import UsageError
from qformat.rules.groups import Extremes, extremes, join, split
from qformat.rules.rule import Rule, Values
from qformat.scheme import Flat, Levels, Scheme

F32 = NDArray[np.float32]

# bitsandbytes divides by no less than this, so that the reciprocal stays finite; smaller blocks take the middle levels.
SMALLEST_DIVISOR = np.float32(1e-38)


def bounds(levels: tuple[float, ...]) -> F32:
    """Give the float32 midpoints between neighbouring levels, lowest first."""
    table = np.array(levels, np.float32)
    return (table[:-1] + table[1:]) / np.float32(2)


def round_codes(scaled: F32, levels: tuple[float, ...]) -> NDArray[np.uint8]:
    """Give the code of the level nearest to each value; a value on a midpoint goes to the lower level.

    >>> round_codes(np.array([-2.0, 0.0, 1.0], np.float32), (-1.0, 0.0, 1.0)).tolist()
    [0, 1, 2]
    """
    found = np.zeros(scaled.shape, np.uint8)
    for bound in bounds(levels):
        found += scaled > bound
    return found


def absmax(rows: F32, scheme: Scheme, state: Extremes | None) -> Values:
    """Encode rows whose first weight begins a block: scale = max|x|, code = level nearest to x * f32(1 / scale).

    A short last block divides, x / scale, as the source does. A block of zeros has scale 0 and codes of level 0.
    Source: bitsandbytes-foundation/bitsandbytes 0.50.2, backends/default/ops.py, quantize_4bit.
    """
    param = scheme.param("scales")
    if not isinstance(scheme.alphabet, Levels) or not isinstance(param.group, Flat):
        raise UsageError(f"scheme '{scheme.name}' is not a codebook over flat blocks")
    blocks = split(rows, param.group)  # (1, n_blocks, weights)
    scales = extremes(blocks).magnitude
    divisor: F32 = np.maximum(scales, SMALLEST_DIVISOR)[..., None]
    scaled: F32 = blocks * (np.float32(1) / divisor)
    if rows.size % param.group.n_weights:
        scaled[:, -1] = blocks[:, -1] / divisor[:, -1]
    codes = join(round_codes(scaled, scheme.alphabet.levels), *rows.shape)
    return {"codes": codes, "scales": scales.reshape(-1)}


def _absmax_coding(scheme: Scheme) -> Coding:
    """Say what `absmax` computes, but for a short last block."""
    assert isinstance(scheme.alphabet, Levels)  # as the rule's formats have
    divisor = Do(Word.AT_LEAST, (Name("magnitude"), Number(float(SMALLEST_DIVISOR))))
    scales = Kept("scales", Name("magnitude"), Rounded("float32", limited=False))
    between = Count(tuple(float(bound) for bound in bounds(scheme.alphabet.levels)))
    return Coding((scales,), Do(Word.DIV, (Number(1.0), divisor)), False, between)


RULES = (
    Rule(
        "absmax",
        "scale = max|x| of the block; code = nearest level to x / scale, ties to the lower level",
        "bitsandbytes 0.50.2 on a CPU",
        absmax,
        coded=_absmax_coding,
    ),
)
