"""Units: what a vector kernel decodes at a time, and where its bits lie.

A unit is a whole number of blocks of codes: the byte arrays that it reads, how each advances from unit to unit and from row to
row, the bit positions of its codes and the places of its parameters. Knows no format and nothing of numba: a unit is integers
and the scheme's own operations. What unit a tensor has is told by `readings`.
"""

from __future__ import annotations

from dataclasses import dataclass

from qformat.scheme import Op

LEAST = 32  # weights: a vector of bytes


@dataclass(frozen=True, slots=True)
class Source:
    """How a byte array advances.

    n_bytes : from one place to the next
    units   : that share a place; 0: all of a row
    rows    : that share a place; 0: all
    """

    n_bytes: int
    units: int = 1
    rows: int = 1


@dataclass(frozen=True, slots=True)
class Places:
    """Bits of each value that lie together: `bits` of them, at bit positions[i] of the place in the source for value i.

    source : how many sources further than the value's own
    """

    bits: int
    shift: int
    positions: tuple[int, ...]
    source: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """Integers in bit planes of a source: (two's complement of the stored field where signed) - minus.

    dtype : element type of 16 bits whose pattern the field is, instead of an integer
    """

    source: int
    planes: tuple[Places, ...]
    width: int
    signed: bool = False
    minus: int = 0
    dtype: str = ""

    @property
    def count(self) -> int:
        """Values of a unit."""
        return len(self.planes[0].positions)

    @property
    def low(self) -> int:
        """Smallest value."""
        return (-(1 << (self.width - 1)) if self.signed else 0) - self.minus


@dataclass(frozen=True, slots=True)
class Signed:
    """Integers that are entries of a table of int8, negated where bits are set.

    index : of the entry of each run of values
    table : the source of the entries, one after the other, each as long as a run
    run   : values of an entry
    signs : bits of 8 values each; where there are 7, the eighth makes the number of set bits even
    """

    index: Packed
    table: int
    run: int
    signs: Packed

    low = -128


@dataclass(frozen=True, slots=True)
class Shifted:
    """Integers that are entries of a table of int8, plus 1, or less 1 where a bit is set; as `Signed`.

    shift : bits, each of as many neighbouring values
    """

    index: Packed
    table: int
    run: int
    shift: Packed

    low = -128


@dataclass(frozen=True, slots=True)
class Trits:
    """Base-3 digits -1..1 of bytes that are fractions of 256.

    at    : bytes from the place in the source, for each value
    times : 3 to the number of more significant digits of the byte, for each value
    """

    source: int
    at: tuple[int, ...]
    times: tuple[int, ...]

    low = -1


Codes = Packed | Signed | Shifted | Trits


@dataclass(frozen=True, slots=True)
class Whole:
    """Values of an element type, each at so many bytes from the place in the source."""

    source: int
    dtype: str
    at: tuple[int, ...]

    @property
    def count(self) -> int:
        """Values of a unit."""
        return len(self.at)


@dataclass(frozen=True, slots=True)
class Join:
    """One float32 operation on two expressions; the one with fewer values repeats each."""

    op: Op
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class Fixed:
    """A constant, as the bytes of a float32 because 0 and -0 differ."""

    pattern: bytes


Expression = Packed | Whole | Fixed | Join


def count_of(expression: Expression) -> int:
    """Give the values of an expression for a unit."""
    if isinstance(expression, Join):
        return max(count_of(expression.left), count_of(expression.right))
    return 1 if isinstance(expression, Fixed) else expression.count


@dataclass(frozen=True, slots=True)
class Unit:
    """What a kernel decodes at a time.

    n_weights : a multiple of 32
    sources   : the byte arrays
    codes     : of all weights; within a byte
    levels    : float32 value of each code, as bytes because 0 and -0 differ; empty: codes stand for themselves
    steps     : operations on every weight, in order; each of an expression's n values serves n_weights / n weights
    """

    n_weights: int
    sources: tuple[Source, ...]
    codes: Codes
    levels: bytes
    steps: tuple[tuple[Op, Expression], ...]


@dataclass(frozen=True, slots=True)
class Move:
    """What a kernel takes from one packed form to another at a time: codes that stand for the same integers, and whole values.

    n_weights : a multiple of 32
    sources   : the byte arrays that are read
    targets   : the byte arrays that are written, every byte of a place
    codes     : of all weights
    to        : where they go; its source is the number of a target
    copies    : values that go over as they are, from a source to a target
    """

    n_weights: int
    sources: tuple[Source, ...]
    targets: tuple[Source, ...]
    codes: Codes
    to: Packed
    copies: tuple[tuple[Whole, Whole], ...]
