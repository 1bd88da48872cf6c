"""Transposes matrices of small elements, a cache line of each line at a time.

A tile is copied together first, so that each line of the source is met once however far apart lines are, and each line of the
result is written as a whole. Knows elements by their bytes alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qformat.arrays import aligned
from qformat.kernels.compiled import Kernel, compiled
from qformat.kernels.vector.ir import I8, Value, moved, pick, store, vector

LINE = 64  # bytes
VECTOR = 16
WIDTHS = (1, 2, 4, 8)


def transpose(source: NDArray[np.uint8], out: NDArray[np.uint8], width: int) -> None:
    """Write a matrix's transpose.

    source : (lines, bytes of a line), any distance between lines
    out    : (elements of a line, lines * width), any distance between lines
    width  : bytes of an element, one of WIDTHS
    """
    n_lines, n_elements = source.shape[0], source.shape[1] // width
    scratch = aligned((LINE * LINE // width,), np.dtype(np.uint8))
    _kernel(width)(
        source.ctypes.data, source.strides[0], n_lines, out.ctypes.data, out.strides[0], n_elements, scratch.ctypes.data
    )


@lru_cache(maxsize=len(WIDTHS))
def _kernel(width: int) -> Kernel:
    side, piece = LINE // width, VECTOR // width

    def run(source, step, n_lines, out, out_step, n_elements, scratch):  # type: ignore[no-untyped-def]  # compiled
        whole_lines, whole_elements = n_lines // side * side, n_elements // side * side
        for line in range(0, whole_lines, side):
            for element in range(0, whole_elements, side):
                at = source + line * step + element * width
                for i in range(side):
                    _copy(LINE, at + i * step, scratch + i * LINE)  # type: ignore[call-arg]  # numba gives the first
                to = out + element * out_step + line * width
                for i in range(0, side, piece):
                    for j in range(0, side, piece):
                        here, there = scratch + j * LINE + i * width, to + i * out_step + j * width
                        _transpose(width, here, there, out_step)  # type: ignore[call-arg]  # likewise
        for element in range(n_elements):
            for line in range(whole_lines if element < whole_elements else 0, n_lines):
                here, there = source + line * step + element * width, out + element * out_step + line * width
                _copy(width, here, there)  # type: ignore[call-arg]  # likewise

    return compiled(run)


@intrinsic(prefer_literal=True)
def _copy(typing, n_bytes, source, to):  # type: ignore[no-untyped-def]  # numba's own interface
    kind = vector(I8, n_bytes.literal_value)

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        b.store(b.load(b.inttoptr(args[1], kind.as_pointer()), align=1), b.inttoptr(args[2], kind.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(n_bytes, source, to), generate


@intrinsic(prefer_literal=True)
def _transpose(typing, width, source, to, step):  # type: ignore[no-untyped-def]  # numba's own interface
    """Transpose as many elements as a vector holds, of as many lines, out of the tile that was copied together."""
    n, kind = VECTOR // width.literal_value, ir.IntType(8 * width.literal_value)

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        _, at, to, step = args
        place = vector(kind, n).as_pointer()
        lines = [b.load(b.inttoptr(moved(b, at, LINE * i), place), align=1) for i in range(n)]
        for line in _transposed(b, lines):
            store(b, line, to, 1, False)
            to = b.add(to, step)
        return context.get_dummy_value()

    return types.void(width, source, to, step), generate


def _transposed(b: ir.IRBuilder, lines: list[Value]) -> list[Value]:
    """Transpose as many vectors as each has elements, by interleaving the first half with the second, time and again."""
    n = len(lines)
    low = [lane for i in range(n // 2) for lane in (i, n + i)]
    high = [lane + n // 2 for lane in low]
    for _ in range(n.bit_length() - 1):
        pairs = zip(lines[: n // 2], lines[n // 2 :], strict=True)
        lines = [pick(b, one, order, other) for one, other in pairs for order in (low, high)]
    return lines
