"""Makes float32 of floats of fewer bits: sign, exponent, mantissa, subnormals too. Which they are is told by their values.

Where the processor converts them, by way of float16, which has room for all their numbers; else by shifts.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llvmlite import ir

from qformat.kernels.vector.ir import F16, F32, I16, I32, Value, call, cut, splat, vector
from qformat.kernels.vector.values import floats_of

BYTE = 8
HALF = 16
EXPONENT, MANTISSA = 5, 10  # bits of a float16
INFINITY = 0x7C00
LEAST_FACTOR = 2.0**-126  # a normal float32


@dataclass(frozen=True, slots=True)
class Narrow:
    """Levels that are the floats of fewer bits.

    width, exponent : bits of a code, and of its exponent
    factor          : of the float32 with the same fields
    others          : codes without their sign that stand for something else, infinity or NaN
    """

    width: int
    exponent: int
    factor: float
    others: tuple[tuple[int, float], ...]

    @property
    def factors(self) -> tuple[float, float]:
        """What words are multiplied with once an exponent has made them normal, and what halves are."""
        return self.factor / 2.0 ** (1 << self.exponent), self.factor * 2.0 ** (2 ** (EXPONENT - 1) - 128)

    @property
    def size(self) -> int:
        """All bits of a code but its sign."""
        return (1 << (self.width - 1)) - 1

    def of_words(self, b: ir.IRBuilder, words: Value) -> Value:
        """Make float32 of codes at the top of words of 32 bits, whatever is below."""
        n = words.type.count
        sign = b.and_(words, splat(I32, 1 << 31, n))
        size = b.and_(words, splat(I32, self.size << (32 - self.width), n))
        above = b.or_(size, splat(I32, 1 << 31, n))  # an exponent of its own, for subnormal float32 take long to multiply
        normal = b.bitcast(b.lshr(above, splat(I32, 8 - self.exponent, n)), vector(F32, n))
        least = 2.0 ** ((1 << self.exponent) - 126)  # normal; below it, a mantissa begins with 0
        twice = call(b, "llvm.fmuladd", [normal, splat(F32, 2.0, n), splat(F32, -least, n)])
        found = b.select(b.fcmp_ordered("<", normal, twice), normal, twice)
        signed = b.bitcast(b.or_(b.bitcast(found, size.type), sign), found.type)
        found = b.fmul(signed, splat(F32, self.factors[0], n))
        for code, value in self.others:
            bits = splat(I32, struct.unpack("<I", struct.pack("<f", value))[0], n)
            other = b.bitcast(b.or_(bits, sign), found.type)
            found = b.select(b.icmp_unsigned("==", size, splat(I32, code << (32 - self.width), n)), other, found)
        return found

    def of_halves(self, b: ir.IRBuilder, halves: Value, lanes: int) -> Sequence[Value]:
        """Make float32 of codes at the top of 16 bits each, whatever is below: as many vectors of `lanes` as they fill."""
        n, down = halves.type.count, EXPONENT - self.exponent
        up = HALF - self.width
        size = b.and_(halves, splat(I16, self.size << up, n))
        fields = splat(I16, 1 << (HALF - 1) | self.size << up >> down, n)
        found = b.and_(b.ashr(halves, splat(I16, down, n)) if down else halves, fields)
        for code, value in self.others:
            if _is_same(self.half(code), value):
                continue
            is_other = b.icmp_unsigned("==", size, splat(I16, code << up, n))
            if math.isnan(value):
                found = b.or_(found, b.sext(is_other, size.type))
            else:
                signed = b.or_(b.and_(halves, splat(I16, 1 << (HALF - 1), n)), splat(I16, INFINITY, n))
                found = b.select(is_other, signed, found)
        wide = [b.fpext(b.bitcast(piece, vector(F16, lanes)), vector(F32, lanes)) for piece in cut(b, found, lanes)]
        factor = self.factors[1]
        return wide if factor == 1 else [b.fmul(piece, splat(F32, factor, lanes)) for piece in wide]

    def half(self, code: int) -> float:
        """Give the value of the float16 with the fields of a code without its sign."""
        return float(np.uint16(code << (MANTISSA + EXPONENT + 1 - self.width) >> (EXPONENT - self.exponent)).view(np.float16))


@lru_cache(maxsize=64)
def narrow(levels: bytes) -> Narrow | None:
    """Find which floats of fewer bits levels are; None: none."""
    values = floats_of(levels)
    half, width = len(values) // 2, len(values).bit_length() - 1
    if len(values) != 1 << width or width > BYTE:
        return None
    others = tuple((code, value) for code, value in enumerate(values[:half]) if not math.isfinite(value))
    for exponent in range(2, min(width - 1, EXPONENT + 1)):
        mantissa = width - 1 - exponent
        if exponent == EXPONENT and len(others) < 1 << mantissa:
            continue  # a float16 with the largest exponent is no number
        patterns = struct.unpack(f"<{half}f", struct.pack(f"<{half}I", *(code << (23 - mantissa) for code in range(half))))
        factor = values[1 << mantissa] / patterns[1 << mantissa]
        pairs = zip(values[:half], patterns, strict=True)
        if all(value == factor * pattern or not math.isfinite(value) for value, pattern in pairs) and _are_signed(values):
            found = Narrow(width, exponent, factor, others)
            return found if all(LEAST_FACTOR <= abs(one) <= 1 / LEAST_FACTOR for one in found.factors) else None
    return None


def _is_same(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)


def _are_signed(values: Sequence[float]) -> bool:
    """Tell whether the upper half of all values is the lower one, negated."""
    half = len(values) // 2
    pairs = zip(values[:half], values[half:], strict=True)
    return all(struct.pack("<f", -one) == struct.pack("<f", other) or (one != one and other != other) for one, other in pairs)
