"""Transposes matrices of small elements, a cache line of each line at a time.

A tile is copied together first, so that each line of the source is met once however far apart lines are. It is transposed
within the cache, and each line of the result is written as a whole, past the caches where asked: lines of a result lie pages
apart, so that few of them fit a cache. On the way in or out codes that share a byte across lines are brought together, or
parted. Knows elements by their bytes alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from math import lcm

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformat.arrays import aligned
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.vector.decode import CACHED, finish
from qformat.kernels.vector.emit import place
from qformat.kernels.vector.ir import I8, I64, Value, ask_for, loader, moved, pick, store, vector
from qformat.kernels.vector.transcode import emit_move
from qformat.units import Move

LINE = 64  # bytes
VECTOR = 16
WIDTHS = (1, 2, 4, 8)

# What a key stands for: numba hands an intrinsic literals alone.
_JOBS: dict[str, tuple[Move, ...]] = {}


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
        """Lines of a tile: as many as fill a cache line of the result."""
        return lcm(LINE // self.width * max(1, len(self.parted)), *(move.n_weights for move in self.parted))

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
    n_bytes = way.n_lines * way.n_elements * way.width
    room = aligned((2 * n_bytes + way.n_lines * LINE,), np.dtype(np.uint8))
    _kernel(way, streams)(starts, step, len(sources[0]), to_starts, to_step, first, last, room.ctypes.data)


@lru_cache(maxsize=64)
def _kernel(way: Way, streams: bool) -> Kernel:
    side, across, width, piece = way.n_lines, way.n_elements, way.width, VECTOR // way.width
    key, to_key = _kept(() if way.joined is None else (way.joined,)), _kept(way.parted)
    unit = 0 if way.joined is None else way.joined.n_weights
    to_unit, n_outs = way.parted[0].n_weights if way.parted else 0, max(1, len(way.parted))
    order, n_sources = way.order, 0 if way.joined is None else len(way.joined.sources)
    row, held = across * width, side * width
    run_bytes = held // n_outs

    def run(starts, step, n_lines, to_starts, to_step, first, last, tile):  # type: ignore[no-untyped-def]  # compiled
        turned = tile + side * row
        parts = turned + across * held
        for line in range(0, n_lines, side):
            lines = min(side, n_lines - line)
            for element in range(first, last, across):
                elements = min(across, last - element)
                stood = -(-lines // to_unit) * to_unit if to_unit else lines
                for i in range(stood):
                    at = line + (i - i % to_unit + order[i % to_unit] if to_unit else i)
                    if at >= n_lines:
                        continue
                    here, there = starts[0] + at * step + element * width, tile + i * row
                    if unit:
                        for k in range(n_sources):
                            _ask_for(starts[k] + at * step + (element + across) // n_sources)  # type: ignore[call-arg]  # likewise
                        for number in range(element // unit, (element + elements) // unit):
                            _join(key, starts, step, there - element, at, number)  # type: ignore[call-arg]  # numba gives the first
                    elif elements == across:
                        _copy(row, here, there, False)  # type: ignore[call-arg]  # likewise
                    else:
                        for j in range(elements):
                            _copy(width, here + j * width, there + j * width, False)  # type: ignore[call-arg]  # likewise
                for i in range(0, elements, piece):
                    for j in range(0, stood, piece):
                        here, there = tile + j * row + i * width, turned + i * held + j * width
                        _transpose(width, here, row, there, held)  # type: ignore[call-arg]  # likewise
                n_bytes = lines * width // n_outs
                for i in range(elements):
                    here, at = turned + i * held, element + (i - i % unit + order[i % unit] if unit else i)
                    if to_unit:
                        for number in range(-(-lines // to_unit)):
                            _part(to_key, here, parts, run_bytes, number)  # type: ignore[call-arg]  # likewise
                        here = parts
                    for k in range(n_outs):
                        one = here + k * run_bytes
                        there = to_starts[k] + at * to_step + line // side * run_bytes
                        if n_bytes == run_bytes:
                            _copy(run_bytes, one, there, streams)  # type: ignore[call-arg]  # likewise
                        else:
                            for j in range(n_bytes):
                                _copy(1, one + j, there + j, False)  # type: ignore[call-arg]  # likewise
        finish()  # type: ignore[call-arg]  # likewise

    return compiled(run)


def _kept(moves: tuple[Move, ...]) -> str:
    """Give the key of moves."""
    key = sha256(repr(moves).encode()).hexdigest()
    _JOBS[key] = moves
    return key


@intrinsic(prefer_literal=True)
def _join(typing, key, starts, step, to, line, number):  # type: ignore[no-untyped-def]  # numba's own interface
    """Make a unit of bytes of as many lines as share one."""
    moves = _JOBS[key.literal_value]

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _, starts, step, to, line, number = args
        for move in moves:
            at = [place(b, source, b.extract_value(starts, i), step, line, number) for i, source in enumerate(move.sources)]
            emit_move(b, move, loader(b, at), at, [_placed(b, to, number, move.n_weights)])
        return context.get_dummy_value()

    return types.void(key, starts, step, to, line, number), generate


@intrinsic(prefer_literal=True)
def _part(typing, key, at, to, step, number):  # type: ignore[no-untyped-def]  # numba's own interface
    """Make of a unit of bytes one of each result, these so many bytes apart."""
    moves = _JOBS[key.literal_value]

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _, at, to, step, number = args

        def read(source: int, first: int, n_bytes: int) -> Value:  # of memory that is written time and again
            return b.load(b.inttoptr(moved(b, here, first), vector(I8, n_bytes).as_pointer()), align=1)

        for move in moves:
            (source,), (target,) = move.sources, move.targets
            here, there = _placed(b, at, number, source.n_bytes), _placed(b, to, number, target.n_bytes)
            emit_move(b, move, read, [here], [there])
            to = b.add(to, step)
        return context.get_dummy_value()

    return types.void(key, at, to, step, number), generate


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
    """Transpose as many elements as a vector holds, of as many lines, out of the tile that was copied together."""
    n, kind = VECTOR // width.literal_value, ir.IntType(8 * width.literal_value)

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _, at, step, to, to_step = args
        lines = []
        for _ in range(n):
            lines.append(b.load(b.inttoptr(at, vector(kind, n).as_pointer()), align=1))
            at = b.add(at, step)
        for line in _transposed(b, lines):
            store(b, line, to, 1, False)
            to = b.add(to, to_step)
        return context.get_dummy_value()

    return types.void(width, source, step, to, to_step), generate


def _placed(b: ir.IRBuilder, start: Value, number: Value, n_bytes: int) -> Value:
    """Give the address of a unit of so many bytes."""
    return b.add(start, b.mul(number, ir.Constant(I64, n_bytes)))


def _transposed(b: ir.IRBuilder, lines: list[Value]) -> list[Value]:
    """Transpose as many vectors as each has elements, by interleaving the first half with the second, time and again."""
    n = len(lines)
    low = [lane for i in range(n // 2) for lane in (i, n + i)]
    high = [lane + n // 2 for lane in low]
    for _ in range(n.bit_length() - 1):
        pairs = zip(lines[: n // 2], lines[n // 2 :], strict=True)
        lines = [pick(b, one, order, other) for one, other in pairs for order in (low, high)]
    return lines
