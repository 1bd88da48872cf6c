"""Codes of one alphabet as codes of another that holds the same numbers.

Decides by what factor numbers change, and what is added to codes where a zero point or a bias takes it back; refuses a code
that has no place. Knows alphabets and codes; scales, zero points and biases are the caller's.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.alphabets import ABSENT, match, nearly_whole, numbers_of, whole
from qformat.errors import NotExact
from qformat.evaluate import F32
from qformat.scheme import Alphabet, Integers, Levels

MAX_CODE = 255
SPAN = 1 << 9  # numbers on either side of zero that codes of 8 bits may be, less a zero point


class Recoding:
    """The way of codes from one alphabet to another.

    factor : what numbers are multiplied with on the way; scales are to be divided by it
    unit   : what zero points are multiplied with, to be in the integers that levels are read as
    offset : added to every number; zero points move along, biases take it back
    """

    def __init__(self, source: Integers | Levels, target: Alphabet, name: str, shifts: bool) -> None:
        """Find the way; `name` is the target's format, `shifts` whether it has zero points or biases."""
        self.source, self.target, self.name = source, target, name
        self.whole, self.offset, self.factor, self.places = whole(source), 0, 1.0, np.zeros(0, np.int32)
        if not isinstance(target, Integers):
            self.factor, self.places = _places(source, target)
        else:
            self.whole = self.whole or nearly_whole(source)
            self.factor, self.offset = self.whole.factor, target.low - self.whole.low if shifts else 0
        self.unit = self.factor if isinstance(source, Levels) else 1.0

    def reason(self, is_shifted: bool) -> str:
        """Say what becomes of codes, in a few words; `is_shifted` where zero points are subtracted."""
        shift = "code - zero" if is_shifted else f"code + {self.offset}" if self.offset else ""
        if isinstance(self.source, Integers) and isinstance(self.target, Integers):
            return shift or "codes copied"
        levels = "levels matched" if self.factor == 1 else f"levels x {self.factor:g}"
        return f"{levels}, {shift}" if shift else levels

    def apply(self, codes: NDArray[Any], zero: F32 | None, first_weight: int) -> NDArray[Any]:
        """Give the target's codes.

        codes        : of some rows
        zero         : whole numbers to subtract, one for each code; None: nothing
        first_weight : flat index of the first code in its tensor, for messages

        Raises NotExact that names the first code without a place by its weight, and the number that it stands for.
        """
        target = self.target
        if isinstance(self.source, Levels) and not isinstance(target, Integers):
            moved: NDArray[np.int32] = self.places[codes]
        else:
            table = None if self.whole is None else self.whole.table
            moved = (codes if table is None else table[codes]).astype(np.int32)
            moved -= 0 if zero is None else zero.astype(np.int32)
            moved += np.int32(self.offset)
            if not isinstance(target, Integers):
                moved = self.places[np.where(np.abs(moved) < SPAN, moved + SPAN, 2 * SPAN)]
        low, high = (target.low, target.high) if isinstance(target, Integers) else (0, MAX_CODE)
        if moved.size and (moved.min() < low or moved.max() > high):
            where = int(np.argmax((moved < low) | (moved > high)))
            raise self._without_place(
                int(codes.flat[where]), 0 if zero is None else int(zero.flat[where]), first_weight + where
            )
        found: NDArray[Any] = moved.astype(np.int8 if low < 0 else np.uint8)
        return found

    def _without_place(self, code: int, zero: int, weight: int) -> NotExact:
        """Name a code by what its source calls it, and the number that the target has no place for."""
        if isinstance(self.source, Levels):
            number, words = float(numbers_of(self.source)[code]), "level"
        else:
            number, words = float(code), "code"
        found = number * self.unit - zero + self.offset
        words += f" {number:g}" + (f" x {self.unit:g}" if self.unit != 1 else "")
        words += (f" - zero {zero}" if zero else "") + (f" + {self.offset}" if self.offset else "")
        words += f" = {found:g}" if found != number else ""
        held = f"{self.target.low}..{self.target.high}" if isinstance(self.target, Integers) else "the levels"
        message = f"{words} at weight {weight} is outside {held} of {self.name}"
        if isinstance(self.source, Levels):
            message += ": the alphabets do not hold the same numbers"
        return NotExact(message, field="codes", index=weight, found=found, expected=held)


@cache
def _places(source: Integers | Levels, target: Alphabet) -> tuple[float, NDArray[np.int32]]:
    """Give factor and place of every code of levels; of integers, of every number within the span, and of those without."""
    if isinstance(source, Levels):
        return match(numbers_of(source), numbers_of(target))
    factor, places = match(np.arange(-SPAN, SPAN, dtype=np.float64), numbers_of(target))
    return factor, np.concatenate([places, np.full(1, ABSENT, np.int32)])
