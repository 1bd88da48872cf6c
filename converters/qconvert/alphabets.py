"""Alphabets that hold the same numbers: by what factor, and which code of the one is which of the other.

Knows alphabets, and no tensor: a table says where each number of one goes, and which have no place.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from qformat.scheme import Alphabet, Integers, Levels

FACTORS = (1.0, 2.0, 0.5, 4.0, 0.25, 8.0, 0.125, 16.0, 0.0625)  # powers of two by which alphabets of the same numbers differ
MAX_BITS = 8  # of integers that are stored as codes
ABSENT = -(1 << 30)  # in a table: the target has no such number; no zero point brings it into a range of codes


@dataclass(frozen=True, slots=True)
class Whole:
    """An alphabet read as integers.

    factor : power of two that makes integers of its numbers
    low    : the least of the range of integers that the numbers are taken from
    high   : the greatest
    table  : the integer of every code; None where codes are integers themselves
    """

    factor: float
    low: int
    high: int
    table: NDArray[np.int32] | None = None

    @property
    def bits(self) -> int:
        """Bits that hold every integer of the range."""
        return (self.high - self.low).bit_length()


def numbers_of(alphabet: Alphabet) -> NDArray[np.float64]:
    """Give the number of every code, in order."""
    if isinstance(alphabet, Integers):
        return np.arange(alphabet.low, alphabet.high + 1, dtype=np.float64)
    assert isinstance(alphabet, Levels)  # callers read a stored table before
    return np.array(alphabet.levels, np.float64)


@cache
def whole(alphabet: Alphabet) -> Whole | None:
    """Read an alphabet as integers, by the least factor that makes some of all its numbers; None where none does.

    Levels become signed integers of the fewest bits that hold them: -12 to 12 are 5 bits, -16 to 15.
    """
    if isinstance(alphabet, Integers):
        return Whole(1.0, alphabet.low, alphabet.high)
    if not isinstance(alphabet, Levels):
        return None
    numbers = numbers_of(alphabet)
    for factor in (factor for factor in FACTORS if factor >= 1):
        scaled = numbers * factor
        if np.isfinite(scaled).all() and (np.rint(scaled) == scaled).all():
            bits = max(int(scaled.max()).bit_length(), int(-scaled.min() - 1).bit_length()) + 1
            half = 1 << (bits - 1)
            return Whole(factor, -half, half - 1, scaled.astype(np.int32)) if bits <= MAX_BITS else None
    return None


def nearly_whole(alphabet: Alphabet) -> Whole:
    """Read numbers of which only some are integers as these, the others as ABSENT."""
    numbers, half = numbers_of(alphabet), 1 << (MAX_BITS - 1)
    is_one = (np.rint(numbers) == numbers) & (numbers >= -half) & (numbers < half)
    return Whole(1.0, -half, half - 1, np.where(is_one, numbers, ABSENT).astype(np.int32))


def match(source: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[float, NDArray[np.int32]]:
    """Find the power of two by which most of the source's numbers are in the target, and the place of each there.

    returns: (factor, one place for each number of the source, its own where it can stay, else ABSENT where there is none)
    """
    best: tuple[int, float, NDArray[np.int32]] | None = None
    for factor in FACTORS:
        wanted = source * factor
        equal = (wanted[:, None] == target) | (np.isnan(wanted)[:, None] & np.isnan(target))
        held = equal.any(axis=1)
        if best is None or int(held.sum()) > best[0]:
            signed = equal & (np.signbit(wanted)[:, None] == np.signbit(target))
            places = np.where(signed.any(axis=1), signed.argmax(axis=1), equal.argmax(axis=1))
            n_both = min(source.size, target.size)
            stays = np.zeros(source.size, bool)
            stays[:n_both] = equal.diagonal()
            places = np.where(stays, np.arange(source.size), places)
            best = int(held.sum()), factor, np.where(held, places, ABSENT).astype(np.int32)
        if held.all():
            break
    assert best is not None  # there are factors
    return best[1], best[2]
