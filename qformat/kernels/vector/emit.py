"""Writes down the decoding of one unit as vector IR: codes, values, the scheme's chain of operations, stores."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llvmlite import ir

from qformat.bits import DTYPES
from qformat.bits import values as element_values
from qformat.kernels.vector import values
from qformat.kernels.vector.fields import Load, in_words, integers, of_words
from qformat.kernels.vector.grids import Read, reader
from qformat.kernels.vector.ir import (
    F32,
    I64,
    Value,
    ask_ahead,
    cut,
    entries,
    join,
    loader,
    moved,
    pick,
    splat,
    store,
    vector,
)
from qformat.scheme import Op
from qformat.units import LEAST, Expression, Fixed, Packed, Source, Unit, Whole

SHUFFLE = 16  # bytes that are looked up at a time
FEW = 4 * SHUFFLE  # bytes of the levels that are looked up in registers


@dataclass(frozen=True, slots=True)
class Target:
    """What is written, and what the processor can do.

    dtype        : float32, float16 or bfloat16
    alignment    : of the output in bytes, where streaming; else 1
    streaming    : stores go past the caches
    has_f16c     : conversions to and from float16 are instructions
    byte_shuffle : LLVM's operation that looks 16 bytes up at once; empty where there is none
    to_bfloat16  : LLVM's operation that converts 32 values; empty where there is none
    lanes        : floats of a vector, where weights come in any order
    """

    dtype: str
    alignment: int
    streaming: bool
    has_f16c: bool
    byte_shuffle: str
    to_bfloat16: str = ""
    lanes: int = 8

    @property
    def n_bytes(self) -> int:
        """Bytes of a weight."""
        return 4 if self.dtype == "float32" else 2


@dataclass(slots=True)
class Emitter:
    """Emits one unit at given addresses.

    at    : address of each source's present place
    table : makes a constant of the module of float32 values, and gives its address
    """

    b: ir.IRBuilder
    unit: Unit
    target: Target
    at: Sequence[Value]
    table: Callable[[Sequence[float]], Value]
    load: Load = field(init=False)

    def __post_init__(self) -> None:
        self.load = loader(self.b, self.at)

    def run(self, out: Value) -> None:
        """Decode all weights and store them from this address on."""
        operands = [(op, self.operand(expression)) for op, expression in self.unit.steps]
        read = self.reader()
        for first in range(0, self.unit.n_weights, LEAST):
            found = self.of_codes(read(first, first + LEAST))
            for op, operand in operands:
                group = self.unit.n_weights // operand.type.count
                found = self.apply(op, found, pick(self.b, operand, [(first + i) // group for i in range(LEAST)]))
            self.write(found, moved(self.b, out, first * self.target.n_bytes))

    def reader(self) -> Read:
        """Give what reads the codes from one on to another."""
        codes = self.unit.codes
        if isinstance(codes, Packed) and not self.unit.levels and in_words(self.unit):
            return lambda first, last: of_words(self.b, self.load, codes, first, last)
        return reader(self.b, self.load, codes, self.at.__getitem__)

    def of_codes(self, codes: Value) -> Value:
        """Give the values of codes before the first operation."""
        if not self.unit.levels:
            return values.of_integers(self.b, codes, self.unit.codes.low < 0)
        if len(self.unit.levels) > FEW:
            return entries(self.b, self.table(values.floats_of(self.unit.levels)), F32, codes)
        parts, shuffle = cut(self.b, codes, SHUFFLE), self.target.byte_shuffle
        return join(self.b, [values.of_levels(self.b, part, self.unit.levels, shuffle) for part in parts])

    def operand(self, expression: Expression) -> Value:
        """Give the values of an expression for this unit, a vector of float32."""
        if isinstance(expression, Fixed):
            return splat(F32, struct.unpack("<f", expression.pattern)[0], 1)
        if isinstance(expression, Packed):
            found = integers(self.b, self.load, expression, 0, expression.count)
            if expression.dtype:
                return values.of_element(self.b, found, expression.dtype, self.target.has_f16c)
            return values.of_integers(self.b, found, expression.low < 0)
        if isinstance(expression, Whole):
            return self.whole(expression)
        left, right = self.operand(expression.left), self.operand(expression.right)
        n = max(left.type.count, right.type.count)
        left, right = (pick(self.b, side, [i * side.type.count // n for i in range(n)]) for side in (left, right))
        return self.apply(expression.op, left, right)

    def whole(self, expression: Whole) -> Value:
        """Give stored values as float32."""
        width = DTYPES[expression.dtype].bits // 8
        low = min(expression.at)
        data = self.load(expression.source, low, max(expression.at) + width - low)
        lanes = [at - low + i for at in expression.at for i in range(width)]
        found = self.b.bitcast(pick(self.b, data, lanes), vector(ir.IntType(8 * width), expression.count))
        if values.is_small(expression.dtype):
            return entries(self.b, self.table(element_values(expression.dtype)), F32, found)
        return values.of_element(self.b, found, expression.dtype, self.target.has_f16c)

    def apply(self, op: Op, left: Value, right: Value) -> Value:
        """Emit one float32 operation."""
        return apply(self.b, op, left, right)

    def write(self, found: Value, address: Value) -> None:
        """Store 32 weights."""
        if self.target.dtype == "float16":
            found = values.to_float16(self.b, found)
        elif self.target.dtype == "bfloat16":
            found = values.to_bfloat16(self.b, found, self.target.to_bfloat16)
        store(self.b, found, address, self.target.alignment, self.target.streaming)


def apply(b: ir.IRBuilder, op: Op, left: Value, right: Value) -> Value:
    """Emit one operation on floats."""
    word = {Op.MUL: b.fmul, Op.ADD: b.fadd, Op.SUB: b.fsub, Op.DIV: b.fdiv}[op]
    return word(left, right)


def places(b: ir.IRBuilder, sources: Sequence[Source], starts: Value, steps: Value, row: Value, unit: Value) -> list[Value]:
    """Give the address of each source's place for a row and a unit.

    starts : addresses for row 0; steps : bytes from one place of rows to the next; a tuple each
    """
    at = [(b.extract_value(starts, i), b.extract_value(steps, i)) for i in range(len(sources))]
    return [_place(b, source, *start, row, unit) for source, start in zip(sources, at, strict=True)]


def ask_for_places(
    b: ir.IRBuilder, sources: Sequence[Source], at: Sequence[Value], ask: Callable[..., None] = ask_ahead
) -> None:
    """Ask for places whose successors, in a row and in the next, lie behind one another."""
    for source, address in zip(sources, at, strict=True):
        if source.units == source.rows == 1:
            ask(b, address, source.n_bytes)


def _place(b: ir.IRBuilder, source: Source, start: Value, step: Value, row: Value, unit: Value) -> Value:
    address = start
    if source.rows:
        address = b.add(address, b.mul(step, _over(b, row, source.rows)))
    if source.units:
        address = b.add(address, b.mul(_over(b, unit, source.units), ir.Constant(I64, source.n_bytes)))
    return address


def _over(b: ir.IRBuilder, number: Value, n: int) -> Value:
    return b.udiv(number, ir.Constant(I64, n)) if n > 1 else number
