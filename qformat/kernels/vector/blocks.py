"""Compiles products of rows of blocks with rows of integers of a byte, scales included: blocks of 32 codes of four bits.

Eight neighbouring blocks lie side by side in the lanes of a vector, so that what a lane of 32 bits holds in the end is the
total of a block, and no lane is added to another. Products of bytes are added up in 16 bits, as many as these hold. A total is
multiplied by its scales in float64, rounded to float32, and added to those of the blocks before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial, reduce

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import byte_shuffle, has_byte_products, has_f16c
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import Emitter, Target, places
from qformat.kernels.vector.ir import (
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    Value,
    cut,
    join,
    load,
    look_up,
    moved,
    pick,
    splat,
    table,
    vector,
)
from qformat.kernels.vector.pieces import piece, put
from qformat.units import LEAST, Packed, Unit

BITS = 4  # of a code
SIDE = 8  # blocks side by side
TAKEN = SIDE * LEAST  # codes of them
WORDS = 4  # of 32 bits, that the codes of a block fill
SHIFTS = (0, BITS)
PAIRS = 4  # sums of rows with rows that are added to at a time
FEW = (4, 2, 1)  # rows of integers that a kernel takes, the most first
MOST = (1 << 15) - 1  # that a sum of 16 bits holds
BYTE, TABLE = 8, 16
PRODUCTS = "llvm.x86.avx2.pmadd.ub.sw"  # of unsigned with signed, neighbours added
SUMS = "llvm.x86.avx2.pmadd.wd"


@dataclass(frozen=True, slots=True)
class Job:
    """What a kernel is made of.

    unit     : whose one step multiplies by the scale
    values   : what each field of four bits stands for, less the least of them
    together : products of each lane that are added up in 16 bits
    n_x      : rows of integers
    n_rows   : rows of units that are read side by side
    target   : what scales are decoded for
    """

    unit: Unit
    values: tuple[int, ...]
    together: int
    n_x: int
    n_rows: int
    target: Target


@dataclass(frozen=True, slots=True)
class Factors:
    """Rows of integers as a kernel takes them; each array contiguous.

    bounds   : least and greatest that the integers could be
    integers : (rows, columns) int8, of each unit in the order of `order_of`
    offsets  : (rows, blocks) int32, what the least value of a code adds to each total
    scales   : (rows, blocks) float64
    """

    bounds: tuple[int, int]
    integers: NDArray[np.int8]
    offsets: NDArray[np.int32]
    scales: NDArray[np.float64]


def fits(unit: Unit, values: Sequence[int], bounds: tuple[int, int]) -> bool:
    """Tell whether a kernel takes rows of a unit.

    values : integer that each field of four bits stands for
    bounds : least and greatest of the integers that they are multiplied with
    """
    codes = unit.codes
    if not has_byte_products() or unit.n_weights % TAKEN or not isinstance(codes, Packed) or codes.width != BITS:
        return False
    is_byte = -(1 << (BYTE - 1)) <= bounds[0] <= bounds[1] < 1 << (BYTE - 1)
    return is_byte and _together(values, bounds) > 0 and len(codes.planes) == 1 and bool(order_of(unit))


def _together(values: Sequence[int], bounds: tuple[int, int]) -> int:
    """Count the products of each lane, and of its neighbour's, that 16 bits hold the sum of."""
    most = (max(values) - min(values)) * max(map(abs, bounds))
    return MOST // (2 * most) if most else MOST


@lru_cache(maxsize=256)
def order_of(unit: Unit) -> tuple[int, ...]:
    """Give the number of the weight that each integer of a unit is multiplied with; none where blocks lie otherwise."""
    assert isinstance(unit.codes, Packed)  # as `fits` wants it
    numbers = {position: number for number, position in enumerate(unit.codes.planes[0].positions)}
    starts, found = _starts(unit), []
    for first in range(0, len(starts), SIDE):
        for word in range(WORDS):
            for shift in SHIFTS:
                for block in range(first, first + SIDE):
                    bits = range(starts[block] + 4 * BYTE * word + shift, starts[block] + 4 * BYTE * (word + 1), BYTE)
                    found += [numbers.get(bit, -1) for bit in bits]
                    if any(number // LEAST != block for number in found[-4:]):
                        return ()
    return tuple(found)


def _starts(unit: Unit) -> list[int]:
    """Give the first bit of each block."""
    assert isinstance(unit.codes, Packed)  # as `fits` wants it
    positions = unit.codes.planes[0].positions
    return [min(positions[first : first + LEAST]) for first in range(0, unit.n_weights, LEAST)]


def multiply(unit: Unit, values: tuple[int, ...], bound: Bound, first: int, x: Factors, out: NDArray[np.float32]) -> None:
    """Multiply rows of units with rows of integers.

    unit, values : as for `fits`
    bound        : addresses, which stay readable meanwhile for all rows and units
    first        : number of the first row among those that share a place, where some do
    out          : (rows of integers, rows of units), written in full; any strides
    """
    from_0, together = tuple(value - min(values) for value in values), _together(values, x.bounds)
    target = Target("float32", 1, False, has_f16c(), byte_shuffle())
    n_units, at = x.integers.shape[1] // unit.n_weights, 0
    while at < len(x.integers):
        n_x = next(n for n in FEW if n <= len(x.integers) - at)
        row = 0
        for beside in (PAIRS // n_x, 1) if n_x < PAIRS else (1,):
            last = row + (out.shape[1] - row) // beside * beside
            if row < last:
                kernel = _kernel(Job(unit, from_0, together, n_x, beside, target))
                places = (array[at:].ctypes.data for array in (x.integers, x.offsets, x.scales))
                to, steps = out[at:, row:].ctypes.data, out.strides
                kernel(bound.starts, bound.steps, first + row, last - row, n_units, *places, to, *steps)
            row = last
        at += n_x


@lru_cache(maxsize=512)
def _kernel(job: Job) -> Kernel:
    key, beside = piece(_multiply_rows, job), job.n_rows

    def run(starts, steps, first, n_rows, n_units, x, offsets, scales, out, out_step, row_step):  # type: ignore[no-untyped-def]  # compiled
        for row in range(0, n_rows, beside):
            to = out + row * row_step
            put(key, (starts, steps, first + row, n_units, x, offsets, scales, to, out_step, row_step))  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


def _multiply_rows(b: ir.IRBuilder, job: Job, *arguments: Value) -> None:
    _Rows(b, job, *arguments).run()


@dataclass(slots=True)
class _Rows:
    """Emits rows side by side; a sum of a row with a row of x is a lane. Arguments as those of the kernel."""

    b: ir.IRBuilder
    job: Job
    starts: Value
    steps: Value
    row: Value
    n_units: Value
    x: Value
    offsets: Value
    scales: Value
    out: Value
    out_step: Value
    row_step: Value

    def run(self) -> None:
        """Add up all blocks of the rows."""
        b, n_x = self.b, self.job.n_x
        kept = cgutils.alloca_once(b, vector(F32, PAIRS))  # type: ignore[no-untyped-call]
        b.store(splat(F32, 0.0, PAIRS), kept)
        with cgutils.for_range(b, self.n_units) as loop:
            found = b.load(kept)
            for terms in self.terms(loop.index):
                found = b.fadd(found, terms)
            b.store(found, kept)
        sums = b.load(kept)
        for pair in range(self.job.n_rows * n_x):
            row, i = divmod(pair, n_x)
            to = b.add(self.out, b.add(b.mul(self.row_step, I64(row)), b.mul(self.out_step, I64(i))))
            b.store(b.extract_element(sums, ir.Constant(I32, pair)), b.inttoptr(to, F32.as_pointer()), align=1)

    def terms(self, number: Value) -> Iterator[Value]:
        """Give, for each block of a unit, the terms of all pairs."""
        b, job = self.b, self.job
        emitters = [self.emitter(b.add(self.row, I64(i)), number) for i in range(job.n_rows)]
        scales = [emitter.operand(job.unit.steps[0][1]) for emitter in emitters]
        run = job.unit.n_weights // scales[0].type.count
        for first in range(0, job.unit.n_weights, TAKEN):
            found = []
            for emitter, held in zip(emitters, scales, strict=True):
                lanes = [at // run for at in range(first, first + TAKEN, LEAST)]
                scale = b.fpext(pick(b, held, lanes), vector(F64, SIDE))
                for i, total in enumerate(self.totals(emitter, number, first)):
                    factor = b.fmul(self.of_x(self.scales, F64, i, number, first), scale)
                    found.append(b.fptrunc(b.fmul(b.sitofp(total, factor.type), factor), vector(F32, SIDE)))
            found += [splat(F32, 0.0, SIDE)] * (PAIRS - len(found))
            halves = zip(*(cut(b, some, PAIRS) for some in _turned(b, found)), strict=True)
            yield from (terms for half in halves for terms in half)

    def totals(self, emitter: Emitter, number: Value, first: int) -> list[Value]:
        """Give the totals of eight blocks, from a weight of the unit on, with each row of x: vectors of 32 bits."""
        b, job, n = self.b, self.job, self.job.unit.n_weights
        starts = [start // BYTE for start in _starts(job.unit)[first // LEAST : first // LEAST + SIDE]]
        assert isinstance(job.unit.codes, Packed)  # as `fits` wants it
        source = job.unit.codes.source + job.unit.codes.planes[0].source
        blocks = [b.bitcast(emitter.load(source, start, 4 * WORDS), vector(I32, WORDS)) for start in starts]
        halves = [pick(b, blocks[i], range(2 * WORDS), blocks[i + SIDE // 2]) for i in range(SIDE // 2)]
        x = [b.add(self.x, b.mul(self.n_units, I64(n * i))) for i in range(job.n_x)]
        x = [moved(b, b.add(row, b.mul(number, I64(n))), first) for row in x]
        totals = [self.of_x(self.offsets, I32, i, number, first) for i in range(job.n_x)]
        waiting: list[list[Value]] = []
        parts = [(word, shift) for word in _turned(b, halves) for shift in SHIFTS]
        for count, (word, shift) in enumerate(parts, 1):
            data = b.bitcast(word, vector(I8, LEAST))
            codes = b.and_(b.lshr(data, splat(I8, shift, LEAST)) if shift else data, splat(I8, (1 << BITS) - 1, LEAST))
            values = join(b, [look_up(b, job.values, part, job.target.byte_shuffle) for part in cut(b, codes, TABLE)])
            at = [load(b, moved(b, row, LEAST * (count - 1)), values.type) for row in x]
            waiting.append([_apply(b, PRODUCTS, values, integers, I16) for integers in at])
            if len(waiting) == job.together or count == len(parts):
                sums = [reduce(b.add, some) for some in zip(*waiting, strict=True)]
                wide = [_apply(b, SUMS, one, splat(I16, 1, one.type.count), I32) for one in sums]
                totals = [b.add(*pair) for pair in zip(totals, wide, strict=True)]
                waiting = []
        return totals

    def of_x(self, start: Value, kind: ir.Type, i: int, number: Value, first: int) -> Value:
        """Load what belongs to eight blocks of a row of x, from a weight of a unit on."""
        b, n_bytes = self.b, 8 if kind == F64 else 4
        units = b.add(b.mul(self.n_units, I64(i)), number)
        at = b.add(start, b.mul(units, I64(n_bytes * (self.job.unit.n_weights // LEAST))))
        return load(b, moved(b, at, n_bytes * (first // LEAST)), vector(kind, SIDE))

    def emitter(self, row: Value, number: Value) -> Emitter:
        """Give what reads a unit."""
        b, unit = self.b, self.job.unit
        at = places(b, unit.sources, self.starts, self.steps, row, number)
        return Emitter(b, unit, self.job.target, at, partial(table, b, F32))


def _apply(b: ir.IRBuilder, name: str, one: Value, other: Value, element: ir.Type) -> Value:
    """Multiply elements and add neighbours, in elements twice as wide."""
    wanted = ir.FunctionType(vector(element, one.type.count // 2), [one.type, other.type])
    known = cgutils.get_or_insert_function(b.module, wanted, name)  # type: ignore[no-untyped-call]
    return b.call(known, [one, other])


def _turned(b: ir.IRBuilder, four: Sequence[Value]) -> list[Value]:
    """Transpose four vectors of eight elements, each half by itself: no element crosses over."""
    pairs = [_woven(b, four[i], four[i + 1], 1) for i in (0, 2)]
    return [one for i in (0, 1) for one in _woven(b, pairs[0][i], pairs[1][i], 2)]


def _woven(b: ir.IRBuilder, one: Value, other: Value, n: int) -> list[Value]:
    """Take runs of `n` elements from two vectors of eight in turn: of the beginnings of their halves, of the ends."""
    lanes = [half + run + source + i for half in (0, 4) for run in range(0, 2, n) for source in (0, SIDE) for i in range(n)]
    return [pick(b, one, [lane + at for lane in lanes], other) for at in (0, 2)]
