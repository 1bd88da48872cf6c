"""Compiles the sums of products of a unit's codes with integers into a kernel that runs over rows of units.

Codes are read as `decode` reads them and multiplied as 16-bit integers; a group's products are added up in 32 bits, exactly
where the caller keeps them within that. Scales are not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import byte_shuffle
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import ask_for_places, places
from qformat.kernels.vector.grids import Read, reader
from qformat.kernels.vector.ir import (
    I16,
    I32,
    I64,
    Value,
    cut,
    join,
    load,
    loader,
    look_up,
    moved,
    neighbours,
    pick,
    splat,
    store,
    vector,
)
from qformat.kernels.vector.pieces import piece, put
from qformat.units import LEAST, Unit

# By rows of integers: rows of units that are read side by side, vectors that a sum is spread over, lest one wait for another.
SHAPES = {4: (2, 1), 2: (4, 1), 1: (1, 4)}
EMITTED = 512  # codes, at most, of rows that are read side by side: compiling takes a time for each
PIECE = 16  # codes of a multiplication
SUMS = PIECE // 2  # sums of neighbouring products, as vpmaddwd and its like give them
TABLE = 16  # entries that are looked up at once
TOGETHER = 4  # groups whose sums are added up at a time
WORD = 4  # bytes of a sum


@dataclass(frozen=True, slots=True)
class Job:
    """What a kernel is made of.

    unit    : of which the codes alone are read
    values  : integer that each code stands for; empty: itself
    groups  : of a unit; 1 where a group is one or several whole units
    n_x     : rows of integers
    n_rows  : rows of units that are read side by side: x is loaded once for all
    n_sums  : vectors that a sum is spread over
    shuffle : LLVM's operation that looks 16 bytes up at once; empty where there is none
    """

    unit: Unit
    values: tuple[int, ...]
    groups: int
    n_x: int
    n_rows: int
    n_sums: int
    shuffle: str


def fits(unit: Unit, run: int, n_values: int) -> bool:
    """Tell whether groups of `run` codes are whole units or whole parts of one, and their values few enough."""
    n = unit.n_weights
    is_part = n % run == 0 and (run % LEAST == 0 or run == PIECE)
    return n_values <= TABLE and (run % n == 0 or is_part)


def arranged(x: NDArray[np.int16]) -> NDArray[np.int16]:
    """Lay rows of integers, of a multiple of 32 columns, as `dots` takes them: of each 32, those of even number come first.

    So words of two bytes are taken apart where they lie, and nothing moves from one half of a register to the other.
    """
    pairs = x.reshape(len(x), x.shape[1] // LEAST, PIECE, 2).swapaxes(2, 3)
    return np.ascontiguousarray(pairs).reshape(x.shape)


def dots(
    unit: Unit,
    values: tuple[int, ...],
    bound: Bound,
    first: int,
    run: int,
    x: NDArray[np.int16],
    out: NDArray[np.int32],
) -> None:
    """Multiply rows of codes with rows of integers, group by group.

    unit, values : codes, and the integers of int8 that they stand for; none: themselves
    bound        : addresses, which stay readable meanwhile for all rows and units
    first        : number of the first row among those that share a place, where some do
    run          : codes of a group, which `fits`
    x            : (rows of integers, columns), of at most 255 either way, contiguous, in the order of `arranged`
    out          : (rows of integers, rows of codes, columns / run), written in full, contiguous; modulo 2^32
    """
    n_all, groups = x.shape[1] // unit.n_weights, max(1, unit.n_weights // run)
    n_units = max(1, run // unit.n_weights)
    at = 0
    while at < len(x):
        n_x = next(n for n in SHAPES if n <= len(x) - at)
        beside, n_sums = SHAPES[n_x] if groups == 1 else (1, 1)
        row, beside = 0, max(1, min(beside, EMITTED // unit.n_weights))
        while row < out.shape[1]:
            beside = beside if beside <= out.shape[1] - row else 1
            last = row + (out.shape[1] - row) // beside * beside
            kernel = _kernel(Job(unit, values, groups, n_x, beside, n_sums, byte_shuffle()))
            to, step = out[at, row:].ctypes.data, out.strides[0]
            kernel(bound.starts, bound.steps, first + row, last - row, n_all, n_units, x[at:].ctypes.data, to, step)
            row = last
        at += n_x


@lru_cache(maxsize=512)
def _kernel(job: Job) -> Kernel:
    key, groups, beside = piece(_multiply_rows, job), job.groups, job.n_rows

    def run(starts, steps, first, n_rows, n_all, n_units, x, out, step):  # type: ignore[no-untyped-def]  # compiled
        row_bytes = WORD * groups * (-(-n_all // n_units))
        for row in range(0, n_rows, beside):
            to = out + row * row_bytes
            put(key, (starts, steps, first + row, n_all, n_units, x, to, row_bytes, step))  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


def _multiply_rows(b: ir.IRBuilder, job: Job, *arguments: Value) -> None:
    _Rows(b, job, *arguments).run()


@dataclass(slots=True)
class _Rows:
    """Emits rows side by side.

    n_all, n_units : units of the row, and of a group or 1
    x, out         : addresses; rows of x lie one behind the other
    row_bytes      : of `out` from one row of units to the next; step: from one row of x to the next
    """

    b: ir.IRBuilder
    job: Job
    starts: Value
    steps: Value
    row: Value
    n_all: Value
    n_units: Value
    x: Value
    out: Value
    row_bytes: Value
    step: Value

    def run(self) -> None:
        """Add up all groups of the rows."""
        b, n = self.b, self.job.n_rows * self.job.n_x
        kept = [cgutils.alloca_once(b, vector(I32, SUMS)) for _ in range(n * self.job.n_sums)]  # type: ignore[no-untyped-call]
        next_out = cgutils.alloca_once(b, I64)  # type: ignore[no-untyped-call]
        b.store(self.out, next_out)
        with cgutils.for_range_slice(b, I64(0), self.n_all, self.n_units) as (begin, _):
            to = b.load(next_out)
            b.store(moved(b, to, WORD * self.job.groups), next_out)
            if self.job.groups == 1:
                for place_of in kept:
                    b.store(splat(I32, 0, SUMS), place_of)
                left = b.sub(self.n_all, begin)  # a row may end before its last group does
                with cgutils.for_range(b, b.select(b.icmp_signed("<", left, self.n_units), left, self.n_units)) as loop:
                    (found,) = self.groups(b.add(begin, loop.index), [b.load(place_of) for place_of in kept])
                    for place_of, one in zip(kept, found, strict=True):
                        b.store(one, place_of)
                self.write([[reduce(b.add, map(b.load, kept[i::n]))] for i in range(n)], to)
                return
            waiting: list[Sequence[Value]] = []
            for number, found in enumerate(self.groups(begin, [splat(I32, 0, SUMS)] * n), 1):
                waiting.append(found)
                if len(waiting) == TOGETHER or number == self.job.groups:
                    self.write(list(zip(*waiting, strict=True)), moved(b, to, WORD * (number - len(waiting))))
                    waiting = []

    def groups(self, number: Value, sums: Sequence[Value]) -> Iterator[list[Value]]:
        """Give, for each group of a unit, the sums of each row with each row of x, these added to."""
        b, n = self.b, self.job.unit.n_weights
        reads = [self.reader(b.add(self.row, I64(i)), number) for i in range(self.job.n_rows)]
        here, x_bytes = b.add(self.x, b.mul(number, I64(2 * n))), b.mul(self.n_all, I64(2 * n))
        of_x = [b.add(here, b.mul(x_bytes, I64(i))) for i in range(self.job.n_x)]
        found, run, n_pairs = list(sums), n // self.job.groups, self.job.n_rows * self.job.n_x
        for first in range(0, n, LEAST):
            codes = [self.widened(read(first, first + LEAST)) for read in reads]
            for odd in (0, 1):
                x = [load(b, moved(b, address, 2 * (first + odd * PIECE)), vector(I16, PIECE)) for address in of_x]
                pairs = ((one[odd], other) for one in codes for other in x)
                at = (2 * first // LEAST + odd) % self.job.n_sums * n_pairs
                for i, pair in enumerate(pairs, at):
                    found[i] = b.add(found[i], _multiplied(b, *pair))
            if run < LEAST:
                yield from ([_part(b, one, at) for one in found] for at in (0, SUMS // 2))
                found = list(sums)
            elif (first + LEAST) % run == 0:
                yield found
                found = list(sums)

    def reader(self, row: Value, number: Value) -> Read:
        """Give what reads the codes of a unit."""
        b, unit = self.b, self.job.unit
        at = places(b, unit.sources, self.starts, self.steps, row, number)
        ask_for_places(b, unit.sources, at)
        return reader(b, loader(b, at), unit.codes, at.__getitem__)

    def widened(self, codes: Value) -> Sequence[Value]:
        """Give what 32 codes stand for, 16 bits each: those of even number, those of odd."""
        b, is_signed = self.b, self.job.unit.codes.low < 0
        if self.job.values:
            parts = cut(b, codes, TABLE)
            codes, is_signed = join(b, [look_up(b, self.job.values, part, self.job.shuffle) for part in parts]), True
        words, byte = b.bitcast(codes, vector(I16, PIECE)), splat(I16, 8, PIECE)
        down = b.ashr if is_signed else b.lshr
        return down(b.shl(words, byte), byte), down(words, byte)

    def write(self, sums: Sequence[Sequence[Value]], out: Value) -> None:
        """Store the sums of neighbouring groups, for each row and each row of x."""
        b = self.b
        for number, of_row in enumerate(sums):
            row, i = divmod(number, self.job.n_x)
            to = b.add(b.add(out, b.mul(self.row_bytes, I64(row))), b.mul(self.step, I64(i)))
            if len(of_row) == TOGETHER:
                store(b, _four(b, of_row), to, 1, False)
                continue
            for group, one in enumerate(of_row):
                store(b, _halved(b, one, 1), moved(b, to, WORD * group), 1, False)


def _multiplied(b: ir.IRBuilder, left: Value, right: Value) -> Value:
    """Multiply 16-bit integers and add neighbours: one instruction on many processors."""
    wide = vector(I32, PIECE)
    found = b.mul(b.sext(left, wide), b.sext(right, wide))
    return b.add(pick(b, found, range(0, PIECE, 2)), pick(b, found, range(1, PIECE, 2)))


def _part(b: ir.IRBuilder, sums: Value, at: int) -> Value:
    """Keep the sums of half of 32 codes, from one of the 8 lanes on."""
    kept = range(at, at + SUMS // 2)
    return pick(b, sums, [lane if lane in kept else SUMS for lane in range(SUMS)], splat(I32, 0, SUMS))


def _four(b: ir.IRBuilder, sums: Sequence[Value]) -> Value:
    """Add up each of four vectors of 8: a vector of 4. Lanes stay in their half as long as there are several vectors."""
    while len(sums) > 1:
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [neighbours(b, b.add, one, other) for one, other in pairs]
    return _halved(b, sums[0], TOGETHER)


def _halved(b: ir.IRBuilder, lanes: Value, n: int) -> Value:
    """Add the upper half of a vector to the lower one until so many are left."""
    while lanes.type.count > n:
        half = lanes.type.count // 2
        lanes = b.add(pick(b, lanes, range(half)), pick(b, lanes, range(half, 2 * half)))
    return lanes
