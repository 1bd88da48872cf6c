"""Alphabets that hold the same numbers: by what factor, and which code of the one is which of the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qformat.errors import NotExact
from qformat.scheme import Alphabet, Integers, Levels

FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25)  # powers of two by which alphabets of the same numbers differ


def numbers_of(alphabet: Alphabet) -> NDArray[np.float64]:
    """Give the number of every code, in order."""
    if isinstance(alphabet, Integers):
        return np.arange(alphabet.low, alphabet.high + 1, dtype=np.float64)
    assert isinstance(alphabet, Levels)  # read_affine admits no other
    return np.array(alphabet.levels, np.float64)


def match(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, NDArray[np.int64]]:
    """Find a power of two by which the source's numbers are all in the target, and the code of each: the same, if it can be."""
    low = int(target[0]) if target[0] < 0 and np.array_equal(target, np.arange(target.size) + target[0]) else 0
    for factor in FACTORS:
        wanted = source * factor
        equal = (wanted[:, None] == target) | (np.isnan(wanted)[:, None] & np.isnan(target))
        if equal.any(axis=1).all():
            signed = equal & (np.signbit(wanted)[:, None] == np.signbit(target))
            nearest = np.where(signed.any(axis=1), signed.argmax(axis=1), equal.argmax(axis=1))
            n_both = min(source.size, target.size)
            unmoved = np.zeros(source.size, bool)
            unmoved[:n_both] = equal.diagonal()
            return factor, np.where(unmoved, np.arange(source.size), nearest) + low
    raise NotExact("the alphabets do not hold the same numbers", field="codes")
