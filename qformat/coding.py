"""Codings: how the codes of a group of weights come about, as data that a vector kernel can be made from.

A rule that says itself so is computed in one pass over the weights; the rule's own function stays its definition. A coding
knows neither where bits lie nor how many weights a group has.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

SOURCES = ("float32", "float16", "bfloat16")  # element types of the weights that are coded
SEEN = ("magnitude", "largest", "low", "high", "least", "most", "total")


class Word(Enum):
    """A float32 operation, rounded to nearest even.

    RATIO    : of two, 0 where the second is 0
    DIVISOR  : itself, 1 for 0
    AT_LEAST : the larger of two
    AT_MOST  : the smaller of two
    WHOLE    : the nearest integer, ties to even
    """

    ADD = "add"
    SUB = "sub"
    MUL = "mul"
    DIV = "div"
    RATIO = "ratio"
    DIVISOR = "divisor"
    AT_LEAST = "at least"
    AT_MOST = "at most"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True, slots=True)
class Name:
    """An extreme value of the group, the sum of its magnitudes, or a parameter as it is stored.

    magnitude  : largest absolute value
    largest    : the first value of largest magnitude; +0 for a group of zeros
    low, high  : smallest and largest value, 0 counted among them
    least, most: smallest and largest value; of equal ones the first is the least, and no zero is the most but +0
    total      : sum of absolute values, one added after the other from the first on
    """

    name: str


@dataclass(frozen=True, slots=True)
class Do:
    """An operation on expressions."""

    word: Word
    of: tuple[Expression, ...]


Expression = Number | Name | Do


@dataclass(frozen=True, slots=True)
class Rounded:
    """A parameter stored as a float, to nearest, ties to even.

    limited : never to infinity, and to zero only from zero
    """

    dtype: str
    limited: bool


@dataclass(frozen=True, slots=True)
class Stepped:
    """A parameter stored as an exponent byte b that stands for 2^(b - 127), 255 for infinity.

    steps : for each exponent field of a float32 magnitude, what is added to its fraction so that the sum, shifted right by 23
            and taken modulo 256, is the byte; a subnormal is multiplied by 2^SHIFT before, and the fields of normal numbers are
            SHIFT higher here
    """

    steps: tuple[int, ...]

    SHIFT: ClassVar[int] = 24
    N_FIELDS: ClassVar[int] = 255 + SHIFT


@dataclass(frozen=True, slots=True)
class Small:
    """A parameter of at least 0 stored as UE4M3, to nearest, ties up; what rounds to 256 or more is 448."""


@dataclass(frozen=True, slots=True)
class Integer:
    """A parameter that is a whole number, stored in a byte."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A stored parameter of each group: its name in the scheme, its value before it is stored, and what it is stored as."""

    name: str
    value: Expression
    stored: Rounded | Stepped | Small | Integer


class Sign(Enum):
    """Where codes of magnitudes get a sign, 8: the weight's own, that of -0 too; below 0; at 0 too; but never on code 0."""

    OWN = "own"
    BELOW = "below"
    UP_TO = "up to"
    OF_CODE = "of code"


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest integer, ties to even, then plus `Coding.after`, within limits."""

    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The integer part after adding `half`, of at most `top` or modulo `top` + 1; then plus `low`."""

    half: float
    top: int
    wraps: bool
    low: int


@dataclass(frozen=True, slots=True)
class Away:
    """The nearest integer, ties away from zero."""


@dataclass(frozen=True, slots=True)
class Count:
    """How many bounds lie below the value, or below its magnitude where there is a sign."""

    bounds: tuple[float, ...]
    sign: Sign | None = None


@dataclass(frozen=True, slots=True)
class Closest:
    """The first level whose product with `Coding.factor` is nearest, in float32, to the weight's magnitude; with a sign.

    levels : from 0 on, the next ones each at most twice the one before; products with the factor, at least 0, are exact, and
             so are those of the middles between two
    reach  : of weights below it, different levels are never equally far because differences are rounded
    """

    levels: tuple[float, ...]
    sign: Sign
    reach: float


Rounding = Nearest | Cut | Away | Count | Closest


@dataclass(frozen=True, slots=True)
class Coding:
    """From the weights x of a group to parameters and codes.

    kept     : parameters, later ones made of earlier ones
    factor   : codes are rounded from (x - before) * factor, or / factor
    divides  : whether by division
    rounding : how
    before   : subtracted from x
    after    : see `Nearest`
    stray    : code of every weight where the factor is infinite; None where it never is
    """

    kept: tuple[Kept, ...]
    factor: Expression
    divides: bool
    rounding: Rounding
    before: Expression | None = None
    after: Expression | None = None
    stray: int | None = None

    @property
    def seen(self) -> frozenset[str]:
        """Name the extreme values that it is made of."""
        found: set[str] = set()
        left = [self.factor, *(kept.value for kept in self.kept), *(e for e in (self.before, self.after) if e is not None)]
        while left:
            expression = left.pop()
            if isinstance(expression, Name) and expression.name in SEEN:
                found.add(expression.name)
            elif isinstance(expression, Do):
                left += expression.of
        return frozenset(found)
