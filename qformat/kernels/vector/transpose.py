"""Transposes matrices of small elements, a cache line of each line at a time.

Lines of a tile are copied together first, so that each cache line of the source is met once however far apart lines are; those
of the next tile are asked for while this one is written. They are transposed within the cache, and each line of the result is
written in runs of several cache lines, past the caches where asked: lines of a result lie pages apart, so that few of them fit
a cache. On the way in or out codes that share a byte across lines are brought together, or parted. Knows elements by their
bytes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import lcm

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformat.arrays import aligned
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.vector.decode import CACHED, finish
from qformat.kernels.vector.fields import Load
from qformat.kernels.vector.ir import I8, I64, LINE, Value, ask_for, join, moved, pick, store, vector
from qformat.kernels.vector.pieces import piece, put
from qformat.kernels.vector.transcode import emit_move
from qformat.units import Move

RUN = 512  # bytes of a line of the result that are written together, at most: memory is slow to begin elsewhere
TILE = 1 << 15  # bytes that are transposed together, at most
VECTOR = 16
BATCH = 32  # lines that are copied together at a time
WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class Way:
    """What is transposed.

    width  : bytes of an element, one of WIDTHS
    joined : makes bytes of as many lines as it has sources; these are the lines that are transposed
    parted : make of the bytes of a transposed line a line of each result
    order  : of a unit that is joined or parted, where each of its bytes stands among elements or lines
    """

    width: int = 1
    joined: Move | None = None
    parted: tuple[Move, ...] = ()
    order: tuple[int, ...] = (0,)

    @property
    def n_lines(self) -> int:
        """Lines of a tile, whole batches and units: as many as fill runs of the result."""
        n_outs = max(1, len(self.parted))
        n_bytes = LINE * n_outs * min(RUN // LINE, max(1, TILE // self.n_elements // (LINE * n_outs)))
        return lcm(n_bytes // self.width, BATCH, *(move.n_weights for move in self.parted))

    @property
    def n_elements(self) -> int:
        """Elements of a tile's lines: as many as fill a cache line of the source."""
        if self.joined is None:
            return LINE // self.width
        return lcm(LINE * len(self.joined.sources), self.joined.n_weights)


def transpose(
    sources: Sequence[NDArray[np.uint8]], outs: Sequence[NDArray[np.uint8]], way: Way, first: int, last: int, is_kept: bool
) -> None:
    """Write elements [first, last) of all lines as lines.

    sources     : matrices (lines, bytes of a line) with lines at one distance, whatever it is: one, or what is joined
    outs        : (elements of a line, bytes of a line), likewise: one, or what is parted
    first, last : whole tiles, or up to the last element; of joined lines, whole units
    is_kept     : results are not read next: large ones are written past the caches
    """
    (step,), (to_step,) = {source.strides[0] for source in sources}, {out.strides[0] for out in outs}
    starts, to_starts = tuple(source.ctypes.data for source in sources), tuple(out.ctypes.data for out in outs)
    streams = is_kept and sum(out.nbytes for out in outs) >= CACHED and not any(at % LINE for at in (to_step, *to_starts))
    n_sources, unit = len(sources), 1 if way.joined is None else way.joined.n_weights
    past = starts[0] % LINE * n_sources // way.width // unit * unit  # tiles begin where cache lines do, not where lines do
    begin = first - (first + past) % way.n_elements
    n_bytes = BATCH * (n_sources * LINE + way.n_elements * way.width) + (way.n_elements + 1) * way.n_lines * way.width
    room = aligned((n_bytes,), np.dtype(np.uint8))
    kernel = _kernel(way, streams)
    kernel(starts, step, len(sources[0]), to_starts, to_step, (begin, first, last), room.ctypes.data)


@lru_cache(maxsize=64)
def _kernel(way: Way, streams: bool) -> Kernel:
    side, across, width, batch = way.n_lines, way.n_elements, way.width, BATCH
    key, to_key = piece(_join, () if way.joined is None else (way.joined,)), piece(_part, way.parted)
    unit, n_sources = (0, 1) if way.joined is None else (way.joined.n_weights, len(way.joined.sources))
    to_unit, n_outs = way.parted[0].n_weights if way.parted else 1, max(1, len(way.parted))
    order, row, held = np.array(way.order), across * width, side * width
    run_bytes, lanes = held // n_outs, VECTOR // width

    def run(starts, step, n_lines, to_starts, to_step, elements_of, tile):  # type: ignore[no-untyped-def]  # compiled
        begin, first, last = elements_of
        joined = tile + batch * n_sources * LINE if unit else tile
        turned = joined + batch * row
        parts = turned + across * held
        for line in range(0, n_lines, side):
            lines = min(side, n_lines - line)
            stood, complete = -(-lines // to_unit) * to_unit, lines // to_unit * to_unit
            for block in range(begin, last, across):
                element = max(block, first)
                elements = min(block + across, last) - element
                is_whole = element + across <= last
                for near in range(0, stood, batch):
                    for i in range(min(batch, stood - near)):
                        one = near + i
                        if n_outs > 1:
                            one += order[np.uintp(one % to_unit)] - one % to_unit
                        at = (line + one) * step + element * width // n_sources
                        for k in range(n_sources):
                            there = tile + (i * n_sources + k) * LINE
                            if is_whole and near + batch <= complete:
                                _copy(LINE, starts[k] + at, there, False)  # type: ignore[call-arg]  # numba gives the first
                            elif one < lines:
                                for j in range(elements * width // n_sources):
                                    _copy(1, starts[k] + at + j, there + j, False)  # type: ignore[call-arg]  # likewise
                    if unit:
                        for i in range(batch):
                            for number in range(elements // unit):
                                put(key, (tile + i * n_sources * LINE, joined + i * row, number))  # type: ignore[call-arg]  # likewise
                    for i in range(0, batch, 2 * lanes):
                        for j in range(0, elements, lanes):
                            here, there = joined + i * row + j * width, turned + j * held + (near + i) * width
                            _transpose(width, here, row, there, held)  # type: ignore[call-arg]  # likewise
                n_bytes = lines * width // n_outs
                for i in range(elements):
                    for ahead in range(line + i * side // across, line + (i + 1) * side // across):
                        for k in range(n_sources):
                            _ask_for(starts[k] + ahead * step + (block + across) * width // n_sources)  # type: ignore[call-arg]  # likewise
                    here, at = turned + i * held, element + i
                    if unit:
                        at += order[np.uintp(i % unit)] - i % unit
                    if n_outs > 1:
                        for number in range(stood // to_unit):
                            put(to_key, (here, parts, run_bytes, number))  # type: ignore[call-arg]  # likewise
                        here = parts
                    for k in range(n_outs):
                        one, there = here + k * run_bytes, to_starts[k] + at * to_step + line // side * run_bytes
                        if n_bytes == run_bytes:
                            _copy(run_bytes, one, there, streams)  # type: ignore[call-arg]  # likewise
                        else:
                            n_whole = n_bytes // LINE * LINE
                            for j in range(0, n_whole, LINE):
                                _copy(LINE, one + j, there + j, streams)  # type: ignore[call-arg]  # likewise
                            for j in range(n_whole, n_bytes):
                                _copy(1, one + j, there + j, False)  # type: ignore[call-arg]  # likewise
        finish()  # type: ignore[call-arg]  # likewise

    return compiled(run)


def _join(b: ir.IRBuilder, moves: Sequence[Move], at: Value, to: Value, number: Value) -> None:
    """Make a unit of bytes of as many lines as share one, which lie behind one another, a cache line of each."""
    for move in moves:
        here = [moved(b, _placed(b, at, number, source.n_bytes), i * LINE) for i, source in enumerate(move.sources)]
        emit_move(b, move, _reader(b, here), here, [_placed(b, to, number, move.n_weights)])


def _part(b: ir.IRBuilder, moves: Sequence[Move], at: Value, to: Value, step: Value, number: Value) -> None:
    """Make of a unit of bytes one of each result, these so many bytes apart."""
    for move in moves:
        (source,), (target,) = move.sources, move.targets
        here, there = [_placed(b, at, number, source.n_bytes)], [_placed(b, to, number, target.n_bytes)]
        emit_move(b, move, _reader(b, here), here, there)
        to = b.add(to, step)


def _reader(b: ir.IRBuilder, at: Sequence[Value]) -> Load:
    """Give what loads bytes from these places, of memory that is written time and again."""
    return lambda source, first, n_bytes: b.load(
        b.inttoptr(moved(b, at[source], first), vector(I8, n_bytes).as_pointer()), align=1
    )


@intrinsic
def _ask_for(typing, address):  # type: ignore[no-untyped-def]  # numba's own interface
    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        ask_for(b, args[0])
        return context.get_dummy_value()

    return types.void(address), generate


@intrinsic(prefer_literal=True)
def _copy(typing, n_bytes, source, to, streams):  # type: ignore[no-untyped-def]  # numba's own interface
    kind, is_streamed = vector(I8, n_bytes.literal_value), streams.literal_value

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        found = b.load(b.inttoptr(args[1], kind.as_pointer()), align=1)
        store(b, found, args[2], LINE if is_streamed else 1, is_streamed)
        return context.get_dummy_value()

    return types.void(n_bytes, source, to, streams), generate


@intrinsic(prefer_literal=True)
def _transpose(typing, width, source, step, to, to_step):  # type: ignore[no-untyped-def]  # numba's own interface
    """Transpose as many elements as a vector holds, of twice as many lines, out of the tile that was copied together."""
    n, kind = VECTOR // width.literal_value, ir.IntType(8 * width.literal_value)

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _, at, step, to, to_step = args
        lines = []
        for _ in range(2 * n):
            lines.append(b.load(b.inttoptr(at, vector(kind, n).as_pointer()), align=1))
            at = b.add(at, step)
        for line in _transposed(b, [join(b, pair) for pair in zip(lines[:n], lines[n:], strict=True)]):
            store(b, line, to, 1, False)
            to = b.add(to, to_step)
        return context.get_dummy_value()

    return types.void(width, source, step, to, to_step), generate


def _placed(b: ir.IRBuilder, start: Value, number: Value, n_bytes: int) -> Value:
    """Give the address of a unit of so many bytes."""
    return b.add(start, b.mul(number, ir.Constant(I64, n_bytes)))


def _transposed(b: ir.IRBuilder, lines: list[Value]) -> list[Value]:
    """Transpose both halves of vectors, as many as a half has elements, by interleaving the first of them with the last."""
    n = len(lines)
    low = [half + lane for half in (0, n) for i in range(n // 2) for lane in (i, 2 * n + i)]
    high = [lane + n // 2 for lane in low]
    for _ in range(n.bit_length() - 1):
        pairs = zip(lines[: n // 2], lines[n // 2 :], strict=True)
        lines = [pick(b, one, order, other) for one, other in pairs for order in (low, high)]
    return lines
