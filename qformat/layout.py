"""Where the bits live: a block of packed weights declared as data.

A layout lists the fields of a block and the bit planes of its codes; every bit of the block has exactly one owner, which
the constructor checks. From the declaration alone come the size, the bits per weight, packing and unpacking (slow and
compiled), the byte-swapped twin, the tables of the spec and the annotated dump. What a code is worth is decided by
`scheme`, how blocks are arranged over a tensor by `tiling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from qformat.bits import DTYPES
from qformat.errors import UsageError
from qformat.order import Strides, strides

MAX_BLOCK_BYTES = 1 << 16
CODES = "codes"


@dataclass(frozen=True, slots=True)
class Plane:
    """Some bits of each item of a packed field, stored together.

    at    : byte of the block where the plane begins
    bits  : bits that it gives to each item
    order : axis order of the items (`qformat.order`); empty: one after the other, least significant bits first
    shift : position of these bits within the item
    bit   : first bit within byte `at`
    word  : bytes of the stored integer that holds the plane; only byte swapping depends on it
    """

    at: int
    bits: int
    order: str = ""
    shift: int = 0
    bit: int = 0
    word: int = 1

    def strides(self, n_items: int) -> Strides:
        """Give the bit positions of the items, counted from the start of the block."""
        run = strides(self.order, n_items, self.bits)
        return Strides(run.base + 8 * self.at + self.bit, run.sizes, run.steps)


@dataclass(frozen=True, slots=True)
class Field:
    """Whole-byte values of a block: a scale, a minimum, padding.

    name  : as the format's source spells it
    at    : first byte
    dtype : element type by its NumPy name
    count : values, one after the other
    holds : the scheme's parameter that this is, or a piece of the codes ("codes.digits"); empty: residue, bits that no value
            depends on
    """

    name: str
    at: int
    dtype: str
    count: int = 1
    holds: str = ""

    @property
    def n_bytes(self) -> int:
        """Bytes of the field."""
        return self.count * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True, slots=True)
class Bits:
    """Values narrower than a byte or spread over planes: the codes, or small integer scales.

    name   : as the format's source spells it
    planes : where the bits are
    count  : values in a block
    minus  : subtracted from the stored field: `codes are stored with a bias of 8` is minus=8
    signed : the field is two's complement
    holds  : the scheme's parameter that this is ("codes" for the codes, "codes.index" for a piece that the layout's unpacker
             makes codes of); empty: residue
    dtype  : element type of 16 bits whose pattern the field is, instead of an integer
    """

    name: str
    planes: tuple[Plane, ...]
    count: int
    minus: int = 0
    signed: bool = False
    holds: str = ""
    dtype: str = ""

    @property
    def width(self) -> int:
        """Bits of one value."""
        return max(plane.shift + plane.bits for plane in self.planes)

    @property
    def low(self) -> int:
        """Smallest value that the field can hold."""
        return (-(1 << (self.width - 1)) if self.signed else 0) - self.minus

    @property
    def high(self) -> int:
        """Largest value that the field can hold."""
        return self.low + (1 << self.width) - 1


@dataclass(frozen=True)
class Layout:
    """A block of packed weights.

    name      : catalogue name, "q4_k"
    n_weights : weights in a block; 0 where a block holds parameters only
    n_bytes   : bytes of a block
    parts     : fields and bit planes; every bit of the block belongs to exactly one
    unpacker  : name of the entry of `qformat.decode` that makes values of their pieces, where planes cannot say them (codes
                in base 3 or from a grid, zero points off by a carry)
    n_values  : values that it makes of a block, where they are not the codes
    source    : where the facts come from
    """

    name: str
    n_weights: int
    n_bytes: int
    parts: tuple[Field | Bits, ...]
    unpacker: str = ""
    n_values: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.n_bytes <= MAX_BLOCK_BYTES or not 0 <= self.n_weights <= 8 * MAX_BLOCK_BYTES:
            raise UsageError(f"layout '{self.name}': {self.n_weights} weights in {self.n_bytes} bytes is out of range")
        owners = self.owners
        if None in owners:
            raise UsageError(f"layout '{self.name}': bit {owners.index(None)} of the block belongs to no field")
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise UsageError(f"layout '{self.name}': a field name stands twice in {names}")
        if self.codes is not None and self.codes.count != self.n_weights:
            raise UsageError(f"layout '{self.name}': {self.codes.count} codes, expected {self.n_weights}")
        if bool(self.unpacker) != bool(self.pieces) or (self.unpacker and self.part(self.made)):
            raise UsageError(f"layout '{self.name}': unpacker '{self.unpacker}' has the pieces {self.pieces}")

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, parameters included."""
        return 8 * self.n_bytes / self.n_weights

    @property
    def n_items(self) -> int:
        """Values in a block: weights, or those of a parameter where it holds parameters only."""
        return self.n_weights or self.n_values or max(part.count for part in self.parts)

    @cached_property
    def codes(self) -> Bits | None:
        """The codes, or None where a decode function reads them or the block has none."""
        found = self.part(CODES)
        return found if isinstance(found, Bits) else None

    @cached_property
    def owners(self) -> tuple[str | None, ...]:
        """Name the owner of every bit of the block."""
        owners: list[str | None] = [None] * (8 * self.n_bytes)
        for part in self.parts:
            for bit in bits_of(part):
                if not 0 <= bit < len(owners):
                    raise UsageError(f"layout '{self.name}': '{part.name}' reaches bit {bit} of {len(owners)}")
                if owners[bit] is not None:
                    raise UsageError(f"layout '{self.name}': bit {bit} belongs to '{owners[bit]}' and '{part.name}'")
                owners[bit] = part.name
        return tuple(owners)

    @cached_property
    def holds(self) -> tuple[str, ...]:
        """Name the parameters that a block holds, codes included."""
        return tuple(dict.fromkeys(part.holds.partition(".")[0] for part in self.parts if part.holds))

    @cached_property
    def pieces(self) -> dict[str, Field | Bits]:
        """Give the pieces that the unpacker makes values of, by name: "index" holds "codes.index"."""
        return {part.holds.partition(".")[2]: part for part in self.parts if "." in part.holds}

    @cached_property
    def made(self) -> str:
        """Name what the unpacker makes: "codes", or a parameter; empty without one."""
        return next((part.holds.partition(".")[0] for part in self.parts if "." in part.holds), "")

    @cached_property
    def swap(self) -> tuple[int, ...]:
        """Give the byte permutation between a block and its byte-swapped twin: twin[i] = block[swap[i]].

        It is its own inverse; the identity where the block holds single bytes only.
        """
        order = list(range(self.n_bytes))
        for start, width in self._words():
            order[start : start + width] = reversed(range(start, start + width))
        return tuple(order)

    def part(self, holds: str) -> Field | Bits | None:
        """Find the field that holds a parameter."""
        return next((part for part in self.parts if part.holds == holds), None)

    def _words(self) -> set[tuple[int, int]]:
        """List (first byte, width) of every multi-byte value."""
        words = set()
        for part in self.parts:
            if isinstance(part, Field):
                width = part.n_bytes // part.count
                words |= {(part.at + i * width, width) for i in range(part.count)}
                continue
            for plane in part.planes:
                starts = plane.strides(part.count).positions()
                touched = {bit // 8 - plane.at for start in starts for bit in (start, start + plane.bits - 1)}
                words |= {(plane.at + byte // plane.word * plane.word, plane.word) for byte in touched}
        return {word for word in words if word[1] > 1}


def bits_of(part: Field | Bits) -> list[int]:
    """List every bit that a field owns, by its number in the block (bit 0: least significant of byte 0)."""
    if isinstance(part, Field):
        return list(range(8 * part.at, 8 * (part.at + part.n_bytes)))
    return [start + i for plane in part.planes for start in plane.strides(part.count).positions() for i in range(plane.bits)]
