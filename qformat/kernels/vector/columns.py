"""Compiles products of words that run over the rows of a matrix with activations: sums grow down the columns, a lane for a row.

Lines of words are read as they are stored, a few at a time, so that their sums stay in registers; these are then added to those
of the lines before. What an operand has for each row lies as the lanes do; which of its runs a column is of may be told column
by column. Weights are the floats that decoding gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numpy.typing import NDArray

from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.vector.emit import apply
from qformat.kernels.vector.fields import signed
from qformat.kernels.vector.ir import F32, I32, I64, Value, ask_for, call, filled, load, moved, splat, store, vector
from qformat.kernels.vector.pieces import piece, put
from qformat.scheme import Op
from qformat.units import Packed, Places

LANES = 8  # words of a vector, and rows
WORD = 4  # bytes
INDEX = 8
LINE_AHEAD = 256  # bytes of each line: lines are met a few bytes at a time, and are more than the processor foresees
HELD = 16  # sums at a time
FEW = (4, 2, 1)  # rows of activations that are multiplied at a time, the most first


@dataclass(frozen=True, slots=True)
class Word:
    """What a word of 32 bits holds, or several of lines behind one another: neighbouring codes of one row, or of one column.

    codes   : planes of these words together
    column  : of each code, among those of a line of words
    row     : of each code, among those of a word
    n_lines : stored lines, that hold the words of a line
    """

    codes: Packed
    column: tuple[int, ...]
    row: tuple[int, ...]
    n_lines: int = 1

    @property
    def n_cols(self) -> int:
        """Columns of a line."""
        return max(self.column) + 1

    @property
    def n_rows(self) -> int:
        """Rows of a word."""
        return max(self.row) + 1

    @property
    def n_vectors(self) -> int:
        """Vectors of words that are read side by side: where each holds one row, a line of the cache."""
        return 2 if self.n_rows == 1 else 1

    @property
    def together(self) -> int:
        """Rows of the words that are read side by side."""
        return LANES * self.n_vectors * self.n_rows


@dataclass(frozen=True, slots=True)
class Each:
    """An operand of every weight.

    values  : (runs, rows) float32, rows as `laid` lays them, contiguous
    n_lines : of words, that share a run
    run_of  : number of each column's run instead, int64 and contiguous
    """

    op: Op
    values: NDArray[np.float32]
    n_lines: int
    run_of: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a kernel is made of: words, the operations on a code in order and whether runs are told, rows of activations."""

    word: Word
    ops: tuple[tuple[Op, bool], ...]
    n_x: int


def laid(rows: NDArray[np.float32], word: Word) -> NDArray[np.float32]:
    """Lay the last axis, rows of a multiple of `word.together`, as the lanes of sums lie: contiguous."""
    cut = rows.reshape(len(rows), -1, LANES, word.n_rows).swapaxes(2, 3)
    return np.ascontiguousarray(cut).reshape(rows.shape)


def in_order(sums: NDArray[np.float32], word: Word) -> NDArray[np.float32]:
    """Give rows one after the other; opposite of `laid`."""
    return sums.reshape(len(sums), -1, word.n_rows, LANES).swapaxes(2, 3).reshape(sums.shape)


def multiply(
    word: Word,
    codes: NDArray[np.uint8],
    operands: Sequence[Each],
    together: int,
    x: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Add products of all columns with activations to an array.

    codes    : (stored lines, bytes of the words of the rows at hand), lines at any distance
    operands : at least one, in the order of the operations
    together : lines whose sums are made before they are added to the others; all share a run
    x        : (1, 2 or a multiple of 4, columns), rows at any distance
    out      : (rows of activations, rows), as `laid` lays them; contiguous
    """
    ops = tuple((operand.op, operand.run_of is not None) for operand in operands)
    kernel = _kernel(Job(word, ops, min(len(x), max(FEW))))
    starts, steps = zip(*((operand.values.ctypes.data, operand.values.strides[0]) for operand in operands), strict=True)
    lines = tuple(operand.n_lines if operand.run_of is None else operand.run_of.ctypes.data for operand in operands)
    at = (
        codes.ctypes.data,
        codes.strides[0],
        len(codes) // word.n_lines,
        together,
        codes.shape[1] // (LANES * word.n_vectors * WORD),
    )
    kernel(*at, starts, steps, lines, len(x), x.ctypes.data, x.strides[0], out.ctypes.data, out.strides[0])


@lru_cache(maxsize=128)
def _kernel(job: Job) -> Kernel:
    key, n_taken = piece(_add, job), job.n_x

    def run(codes, step, n_lines, together, n_blocks, starts, steps, lines, n_x, x, x_step, out, out_step):  # type: ignore[no-untyped-def]  # compiled
        for line in range(0, n_lines, together):
            here = codes, step, line, min(line + together, n_lines)
            for block in range(n_blocks):
                for i in range(0, n_x, n_taken):
                    to = x + i * x_step, x_step, out + i * out_step, out_step
                    put(key, (*here, block, starts, steps, lines, *to))  # type: ignore[call-arg]  # numba gives the first

    return compiled(run)


def _add(b: ir.IRBuilder, job: Job, *arguments: Value) -> None:
    lines = _Lines(b, job, *arguments)
    sums = [(v, row) for v in range(job.word.n_vectors) for row in range(job.word.n_rows)]
    n = HELD // job.n_x
    for first in range(0, len(sums), n):
        lines.add(first, sums[first : first + n])


@dataclass(slots=True)
class _Lines:
    """Emits the sums of some lines. Arguments as those of the kernel; lines are [line, last)."""

    b: ir.IRBuilder
    job: Job
    codes: Value
    step: Value
    line: Value
    last: Value
    block: Value
    starts: Value
    steps: Value
    lines: Value
    x: Value
    x_step: Value
    out: Value
    out_step: Value

    def add(self, first: int, sums: Sequence[tuple[int, int]]) -> None:
        """Add up vectors of rows, from one of those of a block on: each of a vector of words and a row of the word."""
        b, n_x, zero = self.b, self.job.n_x, splat(F32, 0.0, LANES)
        kept = {(i, n): cgutils.alloca_once(b, zero.type) for i in range(n_x) for n in range(len(sums))}  # type: ignore[no-untyped-call]
        for place_of in kept.values():
            b.store(zero, place_of)
        n_all = self.job.word.n_vectors * self.job.word.n_rows
        held = b.add(b.mul(self.block, I64(n_all)), I64(first))
        operands = [
            None if is_told else self.operand(number, b.udiv(self.line, b.extract_value(self.lines, number)), held, len(sums))
            for number, (_, is_told) in enumerate(self.job.ops)
        ]
        with cgutils.for_range_slice(b, self.line, self.last, I64(1)) as (line, _):
            found = {key: b.load(place_of) for key, place_of in kept.items()}
            here = b.add(self.x, b.mul(line, I64(WORD * self.job.word.n_cols)))
            told = [self.told(line, held, len(sums), number) for number, (_, is_told) in enumerate(self.job.ops) if is_told]
            for n, (number, row) in enumerate(sums):
                words = [self.words(line, number, part) for part in range(self.job.word.n_lines)]
                for field, column in enumerate(self.job.word.column):
                    if self.job.word.row[field] != row:
                        continue
                    of_column = iter(told)
                    values = [(next(of_column)[column] if each is None else each)[n] for each in operands]
                    weights = self.weights(words, field, values)
                    for i in range(n_x):
                        at = moved(b, b.add(here, b.mul(self.x_step, I64(i))), WORD * column)
                        factor = filled(b, load(b, at, F32), LANES)
                        found[i, n] = call(b, "llvm.fmuladd", [weights, factor, found[i, n]])
            for key, place_of in kept.items():
                b.store(found[key], place_of)
        for (i, n), place_of in kept.items():
            at = b.add(b.add(self.out, b.mul(self.out_step, I64(i))), b.mul(held, I64(WORD * LANES)))
            address = moved(b, at, WORD * LANES * n)
            before = b.load(b.inttoptr(address, zero.type.as_pointer()), align=1)
            store(b, b.fadd(before, b.load(place_of)), address, 1, False)

    def operand(self, number: int, run: Value, held: Value, n: int) -> list[Value]:
        """Load a run of an operand for `n` vectors of rows."""
        b = self.b
        at = b.add(b.extract_value(self.starts, number), b.mul(run, b.extract_value(self.steps, number)))
        at = b.add(at, b.mul(held, I64(WORD * LANES)))
        return [load(b, moved(b, at, WORD * LANES * i), vector(F32, LANES)) for i in range(n)]

    def told(self, line: Value, held: Value, n: int, number: int) -> list[list[Value]]:
        """Load an operand for each column of a line, of the run that is told."""
        b, n_cols = self.b, self.job.word.n_cols
        at = b.add(b.extract_value(self.lines, number), b.mul(line, I64(INDEX * n_cols)))
        runs = [load(b, moved(b, at, INDEX * i), I64) for i in range(n_cols)]
        return [self.operand(number, run, held, n) for run in runs]

    def words(self, line: Value, number: int, part: int) -> Value:
        """Load a vector of words of a stored line."""
        b, n_bytes = self.b, WORD * LANES
        stored = b.add(b.mul(line, I64(self.job.word.n_lines)), I64(part))
        at = b.add(self.codes, b.add(b.mul(stored, self.step), b.mul(self.block, I64(n_bytes * self.job.word.n_vectors))))
        if number == 0:
            ask_for(b, moved(b, at, LINE_AHEAD))
        return load(b, moved(b, at, n_bytes * number), vector(I32, LANES))

    def weights(self, words: Sequence[Value], field: int, operands: Sequence[Value]) -> Value:
        """Decode one field of the words of each row."""
        b, codes = self.b, self.job.word.codes
        planes = [self.plane(words, plane, plane.positions[field]) for plane in codes.planes]
        raw = planes[0]
        for plane in planes[1:]:
            raw = b.or_(raw, plane)
        found = b.sitofp(signed(b, codes, raw), vector(F32, LANES))
        for (op, _), operand in zip(self.job.ops, operands, strict=True):
            found = apply(b, op, found, operand)
        return found

    def plane(self, words: Sequence[Value], plane: Places, position: int) -> Value:
        """Read one plane of a field, which may begin in one word and end in the next."""
        b, (number, shift) = self.b, divmod(position, WORD * 8)
        raw = b.lshr(words[number], splat(I32, shift, LANES)) if shift else words[number]
        if shift + plane.bits > WORD * 8:
            raw = b.or_(raw, b.shl(words[number + 1], splat(I32, WORD * 8 - shift, LANES)))
        if shift + plane.bits != WORD * 8:
            raw = b.and_(raw, splat(I32, (1 << plane.bits) - 1, LANES))
        return b.shl(raw, splat(I32, plane.shift, LANES)) if plane.shift else raw
