"""Rotary scaling as of Llama 3: a config says four numbers, a GGUF file a factor for every frequency.

Source: ggml-org/llama.cpp: conversion/llama.py (generate_extra_tensors); huggingface/transformers 5.23.0:
modeling_rope_utils.py (_compute_llama3_parameters).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.architectures.architecture import Config
from qconvert.architectures.config import LLAMA3, MAX_FLOAT32, SCALING, scaling_of
from qformat.errors import FileError, show

TENSOR = "rope_freqs.weight"
FACTOR, LOW, HIGH, LENGTH = "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
# What published models say beside the factor: the contexts that they were made for first.
USUAL_LOW, USUAL_HIGH = 1.0, 4.0
LENGTHS = (8192, 4096, 2048, 16384, 32768, 65536, 131072, 1024, 512, 256, 128, 64)
MAX_DIM = 1 << 16
SMALLEST = float(np.finfo(np.float32).smallest_normal)


def rope_factors(config: Config, theta: float, dim: int) -> NDArray[np.float32] | None:
    """Give what llama.cpp divides each frequency by: (dim / 2,); None where a plain config does not scale this way.

    theta, dim : base of the frequencies, and columns of a head

    Raises FileError where a number is missing, or cannot be one of these.
    """
    if scaling_of(config) != LLAMA3:
        return None
    scaling = {LOW: USUAL_LOW, HIGH: USUAL_HIGH, LENGTH: config.get(LENGTH, LENGTHS[0]), **config[SCALING]}
    numbers = [scaling.get(field) for field in (FACTOR, LOW, HIGH, LENGTH)]
    positive = [float(n) for n in numbers if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n <= MAX_FLOAT32]
    if len(positive) < len(numbers):
        raise FileError(f"llama3 scaling by {show(str(numbers), limit=100)}, expected four numbers above 0", field=SCALING)
    factor, low, high, length = positive
    if not 1 < dim <= MAX_DIM or low == high:
        raise FileError(f"llama3 scaling of {dim} columns, between {low} and {high}", field=SCALING)
    factors = _factors(theta, dim, factor, low, high, length)
    if theta < SMALLEST or not ((factors >= SMALLEST) & (factors < math.inf)).all():
        raise FileError(f"llama3 scaling by {numbers} of base {theta} gives no factors in float32", field=SCALING)
    return factors


def scaling_from(factors: NDArray[np.float32], theta: float) -> Mapping[str, Any] | None:
    """Find the scaling that gives these factors; None where no usual one does.

    The factor is that of the lowest frequency; the other numbers are those of published models.
    """
    largest = float(factors.max(initial=0.0))
    for length in LENGTHS if largest > 0 and 2 * factors.size <= MAX_DIM else ():
        if np.array_equal(_factors(theta, 2 * factors.size, largest, USUAL_LOW, USUAL_HIGH, length), factors):
            return {"rope_type": LLAMA3, FACTOR: largest, LOW: USUAL_LOW, HIGH: USUAL_HIGH, LENGTH: length}
    return None


def _factors(theta: float, dim: int, factor: float, low: float, high: float, length: float) -> NDArray[np.float32]:
    single = np.float32
    with np.errstate(all="ignore"):  # of any base, as llama.cpp's converter computes
        powers = np.arange(0, dim, 2, dtype=np.float32) / single(dim)
        waves = single(2 * math.pi) / (single(1) / np.power(single(theta), powers))
        smooth = (single(length) / waves - single(low)) / single(high - low)
        between = single(1) / ((single(1) - smooth) / single(factor) + smooth)
        slow = np.where(waves > length / low, single(factor), between)
        return np.where(waves < length / high, single(1), slow).astype(np.float32)
