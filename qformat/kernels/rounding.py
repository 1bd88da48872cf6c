"""Rounds float32 to the 16-bit floats by integer arithmetic: nearest, ties to even, subnormals and infinities included."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.kernels.compiled import compiled
from qformat.kernels.flat import flat, is_regular

U = np.uint32  # every constant of a kernel is wrapped: a bare Python integer would widen the arithmetic to 64 bits


def rounds_to(out: NDArray[Any]) -> bool:
    """Tell whether `round_rows` can write this array."""
    return out.dtype.name in _KERNELS and is_regular(out) and out.strides[1] == out.itemsize


def round_rows(values: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Round float32 values once.

    values : (rows, columns) float32, C order
    out    : (rows, columns) float16 or bfloat16, contiguous rows; beyond its range infinity, NaN stays a quiet NaN
    """
    run, first, steps = flat(out.view(np.uint16), writeable=True)
    with np.errstate(over="ignore"):  # unsigned arithmetic wraps, in the branches that are not taken
        _KERNELS[out.dtype.name](values.view(np.uint32), run, first, steps[0])


def put(values: NDArray[np.float32], out: NDArray[Any]) -> None:
    """Round float32 rows, in C order, once to whatever float type and strides `out` has."""
    if rounds_to(out):
        round_rows(values, out)
        return
    with np.errstate(all="ignore"):  # beyond the range of a small float is infinity, not an accident
        out[...] = values


@compiled
def _round_float16(values, out, at, step):  # type: ignore[no-untyped-def]  # compiled
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            bits = values[row, column]
            size = bits & U(0x7FFFFFFF)
            exponent = size >> U(23)
            small = exponent < U(113)  # below 2**-14, the smallest normal float16
            # Of a small value the steps are 2**-24: shift its whole significand there. From 25 on nothing is left.
            shift = min(U(126) - exponent, U(25)) if small else U(13)
            number = (size & U(0x7FFFFF) | U(0x800000)) if small else size - U(112 << 23)
            even = (number >> shift) & U(1)
            half = (number + (U(1) << (shift - U(1))) - U(1) + even) >> shift
            half = min(half, U(0x7C00))
            quiet = U(0x7E00) | ((size >> U(13)) & U(0x3FF))
            half = quiet if size > U(0x7F800000) else half
            out[np.uintp(at + row * step + column)] = np.uint16(((bits >> U(16)) & U(0x8000)) | half)


@compiled
def _round_bfloat16(values, out, at, step):  # type: ignore[no-untyped-def]  # compiled
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            bits = values[row, column]
            nearest = (bits + U(0x7FFF) + ((bits >> U(16)) & U(1))) >> U(16)
            quiet = (bits >> U(16)) | U(0x40)
            is_nan = (bits & U(0x7FFFFFFF)) > U(0x7F800000)
            out[np.uintp(at + row * step + column)] = np.uint16(quiet if is_nan else nearest)


_KERNELS = {"float16": _round_float16, "bfloat16": _round_bfloat16}
