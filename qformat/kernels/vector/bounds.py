"""Counts the bounds that lie below each value of a vector: all in turn, as bytes where these tell, or by halving those left.

Bounds of few bits, as the middles between small floats are, leave most bits of a value without a say: the others fit a byte.

Halving asks whether a value lies above the middle bound, then above the middle one of those beyond, or of those before, and so
on. Which bound is next depends on the answers, and is looked up; where one instruction does that for all lanes, it pays.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from qformat.kernels.vector.ir import I8, I32, SIZE, Value, call, cut, entries_among, join, settled, splat, vector

MOST_KEYS = 250  # between the first bound and the last, so that limiting changes no comparison


@dataclass(frozen=True, slots=True)
class Key:
    """A few bits of a float32 of at least 0, as an integer: multiples of 2^shift of its pattern, rounded.

    down, up : which way; both where what lies between two multiples is to be told from either
    """

    shift: int
    down: bool
    up: bool

    def of(self, pattern: int) -> int:
        """Give the key of a pattern."""
        return self.down * (pattern >> self.shift) + self.up * ((pattern + (1 << self.shift) - 1) >> self.shift)


def count_below(b: ir.IRBuilder, bounds: Sequence[float], values: Value, n_among: int) -> Value:
    """Count the bounds below each value: i8, of a NaN any.

    bounds  : ascending, 255 at most
    values  : float32
    n_among : how many values, of as many, one instruction picks by their numbers; 0 where there is none
    """
    if (key := _key_of(bounds)) is not None:
        return _by_keys(b, [key.of(ordered(bound)) for bound in bounds], key, values)
    n_codes = len(bounds) + 1
    if n_codes & len(bounds) or n_codes > 2 * n_among:
        found = _in_turn(b, bounds, values)
    else:
        found = join(b, [_by_halves(b, bounds, piece) for piece in cut(b, values, n_among)])
    return b.trunc(settled(b, found), vector(I8, values.type.count))


def _key_of(bounds: Sequence[float]) -> Key | None:
    """Find the shortest key that tells values above each bound from others; None where keys need more than a byte."""
    patterns = [ordered(bound) for bound in bounds]
    shift = min(max(_zeros(pattern), _zeros(pattern + 1)) for pattern in patterns)
    key = Key(
        shift,
        down=any(_zeros(pattern) < shift for pattern in patterns),
        up=any(_zeros(pattern + 1) < shift for pattern in patterns),
    )
    return key if min(patterns) > 0 and key.of(patterns[-1]) - key.of(patterns[0]) < MOST_KEYS else None


def _zeros(pattern: int) -> int:
    """Count the lowest bits that are 0."""
    return (pattern & -pattern).bit_length() - 1


def _by_keys(b: ir.IRBuilder, keys: Sequence[int], key: Key, values: Value) -> Value:
    """Compare bytes: the keys of values less a middle one, limited, which is how instructions narrow."""
    n, middle = values.type.count, (keys[0] + keys[-1]) // 2
    bits, shift = b.bitcast(values, vector(I32, n)), splat(I32, key.shift, n)
    found = b.ashr(bits, shift) if key.down else None
    if key.up:
        up = b.ashr(b.add(bits, splat(I32, (1 << key.shift) - 1, n)), shift)
        found = up if found is None else b.add(found, up)
    found = settled(b, b.sub(found, splat(I32, middle, n)))
    found = call(b, "llvm.smax", [found, splat(I32, -128, n)])
    seen = b.trunc(call(b, "llvm.smin", [found, splat(I32, 127, n)]), vector(I8, n))
    count: Value = splat(I8, 0, n)
    for each in keys:
        count = b.sub(count, b.sext(b.icmp_signed(">", seen, splat(I8, each - middle, n)), count.type))
    return count


def _by_halves(b: ir.IRBuilder, bounds: Sequence[float], values: Value) -> Value:
    kind, step = vector(I32, values.type.count), len(bounds) + 1
    found: Value = ir.Constant(kind, None)
    while step > 1:
        next_bound = entries_among(b, bounds[step // 2 - 1 :: step], found)
        is_above = b.sext(b.fcmp_ordered(">", values, next_bound), kind)
        found = b.sub(b.add(found, found), is_above)
        step //= 2
    return found


def _in_turn(b: ir.IRBuilder, bounds: Sequence[float], values: Value) -> Value:
    n = values.type.count
    seen = settled(b, _ordered(b, values))
    found: Value = splat(I32, 0, n)
    for bound in bounds:
        is_above = b.icmp_signed(">", seen, splat(I32, ordered(bound), n))
        found = b.sub(found, b.sext(is_above, vector(I32, n)))
    return found


def _ordered(b: ir.IRBuilder, values: Value) -> Value:
    """Give integers in the order of finite floats: comparing them is cheaper."""
    n = values.type.count
    bits = b.bitcast(values, vector(I32, n))
    return b.xor(bits, b.lshr(b.ashr(bits, splat(I32, 31, n)), splat(I32, 1, n)))


def ordered(value: float) -> int:
    """Give the integer that `_ordered` makes of a float32; of -0 that of 0, so that neither zero is above the other."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value + 0.0))
    return int(bits ^ ((bits >> 31) & SIZE))
