"""Works out the parameters of several groups at a time: a coding's expressions, and what is stored of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llvmlite import ir

from qformat.bits import DTYPES
from qformat.bits import values as element_values
from qformat.coding import (
    Away,
    Closest,
    Coding,
    Cut,
    Do,
    Expression,
    Integer,
    Kept,
    Name,
    Number,
    Rounded,
    Small,
    Stepped,
    Word,
)
from qformat.kernels.vector import values
from qformat.kernels.vector.ir import F32, I8, I16, I32, SIZE, Value, call, constant, entries, splat, vector

UE4M3 = "float8_ue4m3"
ROOM = 512  # entries of a table of exponent fields, so that no index is out of it
HALF_SIZE = 0x7FFF
INFINITE = 0x7F800000

# Makes a constant of the module of 32-bit values, and gives its address.
Table = Callable[[ir.Type, Sequence[float]], Value]


def operands_of(coding: Coding) -> tuple[str, ...]:
    """Name what the weights are rounded by: "before" is subtracted, "after" added when they are scaled."""
    moves = (
        isinstance(coding.rounding, Cut)
        or coding.after is not None
        or (isinstance(coding.rounding, Away) and bool(coding.stray))
    )
    return ("factor", *["before"] * (coding.before is not None), *["after"] * moves)


@dataclass(slots=True)
class Params:
    """Emits expressions for one vector of groups.

    found  : float32 by name: extremes at first, then the parameters as they are stored
    stored : what is written of each parameter, integers of its width
    """

    b: ir.IRBuilder
    found: dict[str, Value]
    table: Table
    n: int
    stored: dict[str, Value] = field(default_factory=dict)

    def keep(self, kept: Kept) -> None:
        """Work out a parameter."""
        value = self.value(kept.value)
        how = kept.stored
        if isinstance(how, Rounded):
            self.found[kept.name], self.stored[kept.name] = self.rounded(value, how)
        elif isinstance(how, Stepped):
            self.found[kept.name], self.stored[kept.name] = self.stepped(value, how)
        elif isinstance(how, Small):
            self.found[kept.name], self.stored[kept.name] = self.small(value)
        elif isinstance(how, Integer):
            whole = self.b.fptosi(value, vector(I32, self.n))
            self.found[kept.name], self.stored[kept.name] = value, self.b.trunc(whole, vector(I8, self.n))

    def operands(self, coding: Coding) -> dict[str, Value]:
        """Give what the weights are rounded by, so that no finite weight becomes a stray number."""
        b = self.b
        factor = self.value(coding.factor)
        found = {"factor": factor}
        if coding.before is not None:
            found["before"] = self.value(coding.before)
        if coding.after is not None:
            found["after"] = self.value(coding.after)
        if isinstance(coding.rounding, Cut):
            found["after"] = self.splat(coding.rounding.half)
        if isinstance(coding.rounding, Closest):  # no product with infinity is nearer than 0
            found["factor"] = self.where_zero(factor, self.splat(float("inf")), factor)
        if coding.stray is None:
            return found
        size = b.and_(b.bitcast(factor, vector(I32, self.n)), splat(I32, SIZE, self.n))
        is_stray = b.icmp_unsigned("==", size, splat(I32, INFINITE, self.n))
        found["factor"] = b.select(is_stray, self.splat(0.0), factor)
        if coding.before is not None:  # where the range is infinite, so that differences may be, the factor is 0
            found["before"] = self.where_zero(found["factor"], self.splat(0.0), found["before"])
        if "after" in operands_of(coding):
            low = coding.rounding.low if isinstance(coding.rounding, Cut) else 0
            found["after"] = b.select(is_stray, self.splat(coding.stray - low), found.get("after", self.splat(0.0)))
        return found

    def value(self, expression: Expression) -> Value:
        """Give the float32 values of an expression."""
        if isinstance(expression, Number):
            return self.splat(expression.value)
        if isinstance(expression, Name):
            return self.found[expression.name]
        b, args = self.b, [self.value(each) for each in expression.of]
        if expression.word == Word.WHOLE:
            return call(b, "llvm.rint", args)
        if expression.word == Word.DIVISOR:
            return self.where_zero(args[0], self.splat(1.0), args[0])
        if expression.word == Word.RATIO:
            divisor = self.where_zero(args[1], self.splat(1.0), args[1])
            return self.where_zero(args[1], self.splat(0.0), b.fdiv(args[0], divisor))
        return self.both(expression, *args)

    def both(self, expression: Do, left: Value, right: Value) -> Value:
        """Apply an operation of two operands."""
        b, word = self.b, expression.word
        if word in (Word.AT_LEAST, Word.AT_MOST):
            return b.select(b.fcmp_ordered("<" if word == Word.AT_LEAST else ">", left, right), right, left)
        return {Word.ADD: b.fadd, Word.SUB: b.fsub, Word.MUL: b.fmul, Word.DIV: b.fdiv}[word](left, right)

    def rounded(self, value: Value, how: Rounded) -> tuple[Value, Value]:
        """Round to a float type: the values, and their patterns."""
        b, element = self.b, DTYPES[how.dtype]
        limit = (2 - 2.0**-element.mantissa) * 2.0**element.bias
        kept = self.within(value, -limit, limit) if how.limited else value
        if how.dtype == "float32":
            return kept, b.bitcast(kept, vector(I32, self.n))
        pattern = values.to_float16(b, kept) if how.dtype == "float16" else values.to_bfloat16(b, kept)
        if how.limited:
            bits = b.bitcast(value, vector(I32, self.n))
            smallest = b.or_(b.and_(b.lshr(bits, splat(I32, 16, self.n)), splat(I32, 0x8000, self.n)), splat(I32, 1, self.n))
            size = b.and_(pattern, splat(I16, HALF_SIZE, self.n))
            lost = b.and_(b.icmp_unsigned("==", size, splat(I16, 0, self.n)), b.fcmp_unordered("!=", value, self.splat(0.0)))
            pattern = b.select(lost, b.trunc(smallest, vector(I16, self.n)), pattern)
        return values.of_element(b, pattern, how.dtype, has_f16c=True), pattern

    def stepped(self, value: Value, how: Stepped) -> tuple[Value, Value]:
        """Find exponent bytes: the powers of two that they stand for, and the bytes."""
        b, ints = self.b, vector(I32, self.n)
        is_small = b.fcmp_ordered("<", value, self.splat(2.0**-126))
        scaled = b.select(is_small, b.fmul(value, self.splat(2.0**Stepped.SHIFT)), value)
        bits = b.bitcast(scaled, ints)
        shift = b.select(is_small, splat(I32, 0, self.n), splat(I32, Stepped.SHIFT, self.n))
        number = b.add(b.lshr(bits, splat(I32, 23, self.n)), shift)
        number = b.and_(number, splat(I32, ROOM - 1, self.n))
        padded = [*how.steps, *[0] * (ROOM - len(how.steps))]
        step = entries(b, self.table(I32, padded), I32, number)
        byte = b.lshr(b.add(b.and_(bits, splat(I32, (1 << 23) - 1, self.n)), step), splat(I32, 23, self.n))
        byte = b.and_(byte, splat(I32, 0xFF, self.n))
        is_least = b.icmp_unsigned("==", byte, splat(I32, 0, self.n))
        power = b.select(is_least, splat(I32, 1 << 22, self.n), b.shl(byte, splat(I32, 23, self.n)))
        return b.bitcast(power, vector(F32, self.n)), b.trunc(byte, vector(I8, self.n))

    def small(self, value: Value) -> tuple[Value, Value]:
        """Round to UE4M3: the values, and the bytes."""
        b, ints = self.b, vector(I32, self.n)
        tiny = b.fptosi(self.within(b.fadd(b.fmul(value, self.splat(512.0)), self.splat(0.5)), 0.0, 7.0), ints)
        bits = b.add(b.bitcast(value, ints), splat(I32, 1 << 19, self.n))
        usual = b.sub(b.lshr(bits, splat(I32, 20, self.n)), splat(I32, 120 << 3, self.n))
        usual = b.select(b.icmp_signed("<", usual, splat(I32, 15 << 3, self.n)), usual, splat(I32, 0x7E, self.n))
        byte = b.select(b.fcmp_ordered("<", value, self.splat(2.0**-6)), tiny, usual)
        byte = b.and_(byte, splat(I32, 0xFF, self.n))
        return entries(b, self.table(F32, element_values(UE4M3)), F32, byte), b.trunc(byte, vector(I8, self.n))

    def within(self, value: Value, low: float, high: float) -> Value:
        """Limit values."""
        b = self.b
        value = b.select(b.fcmp_ordered("<", value, self.splat(low)), self.splat(low), value)
        return b.select(b.fcmp_ordered(">", value, self.splat(high)), self.splat(high), value)

    def where_zero(self, value: Value, then: Value, otherwise: Value) -> Value:
        """Select by whether a value is 0."""
        return self.b.select(self.b.fcmp_ordered("==", value, self.splat(0.0)), then, otherwise)

    def splat(self, value: float) -> Value:
        """Give a constant."""
        return constant(F32, [value] * self.n)
