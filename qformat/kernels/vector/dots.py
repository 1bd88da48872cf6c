"""Compiles the sums of products of a unit's codes with integers into a kernel that runs over rows of units.

Codes are read as `decode` reads them and multiplied as 16-bit integers; a group's products are added up in 32 bits, exactly
where the caller keeps them within that. Scales are not its business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.cpu import byte_shuffle
from qformat.kernels.vector.decode import Bound
from qformat.kernels.vector.emit import place
from qformat.kernels.vector.grids import reader
from qformat.kernels.vector.ir import I8, I16, I32, I64, Value, cut, load, loader, look_up, moved, pick, splat, store, vector
from qformat.units import LEAST, Unit

FEW = (4, 2, 1)  # rows of integers that a kernel takes, the most first
PIECE = 16  # codes of a multiplication
SUMS = PIECE // 2  # sums of neighbouring products, as vpmaddwd and its like give them
TABLE = 16  # entries that are looked up at once
TOGETHER = 4  # groups whose sums are added up at a time
WORD = 4  # bytes of a sum
AHEAD, LINE = 4096, 64  # bytes that codes are asked for before they are read; of which one asks

# What a key stands for: numba hands an intrinsic literals alone.
_JOBS: dict[str, Job] = {}


@dataclass(frozen=True, slots=True)
class Job:
    """What a kernel is made of.

    unit    : of which the codes alone are read
    values  : integer that each code stands for; empty: itself
    groups  : of a unit; 1 where a group is one or several whole units
    n_rows  : rows of integers
    shuffle : LLVM's operation that looks 16 bytes up at once; empty where there is none
    """

    unit: Unit
    values: tuple[int, ...]
    groups: int
    n_rows: int
    shuffle: str


def fits(unit: Unit, run: int, n_values: int) -> bool:
    """Tell whether groups of `run` codes are whole units or whole parts of one, and their values few enough."""
    n = unit.n_weights
    return n_values <= TABLE and (run % n == 0 or (n % run == 0 and run % PIECE == 0))


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
    x            : (rows of integers, columns), of at most 255 either way, contiguous
    out          : (rows of integers, rows of codes, columns / run), written in full, contiguous; modulo 2^32
    """
    n_all, groups = x.shape[1] // unit.n_weights, max(1, unit.n_weights // run)
    n_units = max(1, run // unit.n_weights)
    at = 0
    for few in FEW:
        kernel = _kernel(Job(unit, values, groups, few, byte_shuffle())) if len(x) - at >= few else None
        while kernel is not None and len(x) - at >= few:
            to, step = out[at:].ctypes.data, out.strides[0]
            kernel(bound.starts, bound.steps, first, out.shape[1], n_all, n_units, x[at:].ctypes.data, to, step)
            at += few


@lru_cache(maxsize=512)
def _kernel(job: Job) -> Kernel:
    key = sha256(repr(job).encode()).hexdigest()
    _JOBS[key] = job
    groups = job.groups

    def run(starts, steps, first, n_rows, n_all, n_units, x, out, step):  # type: ignore[no-untyped-def]  # compiled
        row_bytes = WORD * groups * (n_all // n_units)
        for row in range(n_rows):
            _row(key, starts, steps, first + row, n_all, n_units, x, out + row * row_bytes, step)  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


@intrinsic(prefer_literal=True)
def _row(typing, key, starts, steps, row, n_all, n_units, x, out, step):  # type: ignore[no-untyped-def]  # numba's own interface
    job = _JOBS[key.literal_value]

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _Row(b, job, *args[1:]).run()
        return context.get_dummy_value()

    return types.void(key, starts, steps, row, n_all, n_units, x, out, step), generate


@dataclass(slots=True)
class _Row:
    """Emits a row.

    n_all, n_units : units of the row, and of a group or 1
    x, out         : addresses; rows of x lie one behind the other, those of out `step` bytes apart
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
    step: Value

    def run(self) -> None:
        """Add up all groups of the row."""
        b, of_unit = self.b, self.job.unit.n_weights // self.job.groups
        kept = [cgutils.alloca_once(b, vector(I32, SUMS)) for _ in range(self.job.n_rows)]  # type: ignore[no-untyped-call]
        with cgutils.for_range_slice(b, I64(0), self.n_all, self.n_units) as (begin, _):
            to = b.add(self.out, b.mul(b.udiv(begin, self.n_units), I64(WORD * self.job.groups)))
            if self.job.groups == 1:
                for place_of in kept:
                    b.store(splat(I32, 0, SUMS), place_of)
                with cgutils.for_range(b, self.n_units) as loop:
                    sums = [b.load(place_of) for place_of in kept]
                    for place_of, one in zip(kept, next(self.groups(b.add(begin, loop.index), of_unit, sums)), strict=True):
                        b.store(one, place_of)
                self.write([[b.load(place_of)] for place_of in kept], to)
                return
            waiting: list[Sequence[Value]] = []
            for number, found in enumerate(self.groups(begin, of_unit, [splat(I32, 0, SUMS)] * self.job.n_rows), 1):
                waiting.append(found)
                if len(waiting) == TOGETHER or number == self.job.groups:
                    self.write(list(zip(*waiting, strict=True)), moved(b, to, WORD * (number - len(waiting))))
                    waiting = []

    def groups(self, number: Value, n: int, sums: Sequence[Value]) -> Iterator[list[Value]]:
        """Give, for each group of `n` codes of a unit, the sums with each row of x, these added to."""
        b, unit = self.b, self.job.unit
        at = [
            place(b, source, b.extract_value(self.starts, i), b.extract_value(self.steps, i), self.row, number)
            for i, source in enumerate(unit.sources)
        ]
        for source, address in zip(unit.sources, at, strict=True):
            self.ask_for(address, source.n_bytes)
        row_bytes = b.mul(self.n_all, I64(2 * unit.n_weights))
        rows = [
            b.add(self.x, b.add(b.mul(row_bytes, I64(i)), b.mul(number, I64(2 * unit.n_weights)))) for i in range(len(sums))
        ]
        read = reader(b, loader(b, at), unit.codes, at.__getitem__)
        found = list(sums)
        for first in range(0, unit.n_weights, LEAST):
            for low, codes in zip((first, first + PIECE), cut(b, read(first, first + LEAST), PIECE), strict=True):
                wide = self.widened(codes)
                found = [
                    b.add(one, _multiplied(b, wide, load(b, moved(b, of_x, 2 * low), vector(I16, PIECE))))
                    for one, of_x in zip(found, rows, strict=True)
                ]
                if (low + PIECE) % n == 0:
                    yield found
                    found = list(sums)

    def ask_for(self, address: Value, n_bytes: int) -> None:
        """Ask for bytes that will be read soon."""
        wanted = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        prefetch = cgutils.get_or_insert_function(self.b.module, wanted, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        for line in range(0, n_bytes, LINE):
            there = self.b.inttoptr(moved(self.b, address, AHEAD + line), I8.as_pointer())
            self.b.call(prefetch, [there, *(I32(word) for word in (0, 3, 1))])  # to read, to all caches, data

    def widened(self, codes: Value) -> Value:
        """Give what codes stand for, 16 bits each."""
        wide, is_signed = vector(I16, PIECE), self.job.unit.codes.low < 0
        if self.job.values:
            codes, is_signed = look_up(self.b, self.job.values, codes, self.job.shuffle), True
        return self.b.sext(codes, wide) if is_signed else self.b.zext(codes, wide)

    def write(self, sums: Sequence[Sequence[Value]], out: Value) -> None:
        """Store the sums of neighbouring groups, for each row of x."""
        for number, of_row in enumerate(sums):
            to = self.b.add(out, self.b.mul(self.step, I64(number)))
            if len(of_row) == TOGETHER:
                store(self.b, _four(self.b, of_row), to, 1, False)
                continue
            for i, one in enumerate(of_row):
                store(self.b, _halved(self.b, one, 1), moved(self.b, to, WORD * i), 1, False)


def _multiplied(b: ir.IRBuilder, left: Value, right: Value) -> Value:
    """Multiply 16-bit integers and add neighbours: one instruction on many processors."""
    wide = vector(I32, PIECE)
    found = b.mul(b.sext(left, wide), b.sext(right, wide))
    return b.add(pick(b, found, range(0, PIECE, 2)), pick(b, found, range(1, PIECE, 2)))


def _four(b: ir.IRBuilder, sums: Sequence[Value]) -> Value:
    """Add up each of four vectors of 8: a vector of 4. Lanes stay in their half as long as there are several vectors."""
    while len(sums) > 1:
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [b.add(pick(b, one, _lanes(0), other), pick(b, one, _lanes(1), other)) for one, other in pairs]
    return _halved(b, sums[0], TOGETHER)


def _lanes(odd: int) -> list[int]:
    """Name every other lane of two vectors of 8, the first vector's before the second's in either half."""
    return [half + vector * SUMS + lane + odd for half in (0, SUMS // 2) for vector in (0, 1) for lane in (0, 2)]


def _halved(b: ir.IRBuilder, lanes: Value, n: int) -> Value:
    """Add the upper half of a vector to the lower one until so many are left."""
    while lanes.type.count > n:
        half = lanes.type.count // 2
        lanes = b.add(pick(b, lanes, range(half)), pick(b, lanes, range(half, 2 * half)))
    return lanes
