"""What the memory itself gives: copies, and streaming stores of a constant, on some threads; and arrays to measure on.

Arrays begin at a page. Where a destination begins little after its source, modulo a page, some processors copy at a third of
their pace, and a ratio to such a copy flatters.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

PAGE = 4096
LANES = 16  # floats of a store: a line of the cache, in as many instructions as the processor needs


def paged(shape: tuple[int, ...], dtype: Any, past: int = 0) -> NDArray[Any]:
    """Make an array that begins so many bytes past the beginning of a page, every page of it touched."""
    wanted = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * wanted.itemsize
    raw = np.zeros(n_bytes + 2 * PAGE, np.uint8)
    raw.fill(1)
    start = -raw.ctypes.data % PAGE + past
    return raw[start : start + n_bytes].view(wanted).reshape(shape)


def copies(out: NDArray[Any], source: NDArray[Any], n_threads: int = 1) -> Callable[[], object]:
    """Give what copies an array to another by `np.copyto`, in as many parts as there are threads."""
    return _together([(np.copyto, (o, s)) for o, s in zip(_cut(out, n_threads), _cut(source, n_threads), strict=True)])


def fills(out: NDArray[Any], n_threads: int = 1) -> Callable[[], object]:
    """Give what fills an array by streaming stores; of its bytes a whole number of cache lines, from the first aligned one."""
    parts = []
    for part in _cut(out, n_threads):
        first = part.ctypes.data + -part.ctypes.data % (4 * LANES)
        n_lines = (part.ctypes.data + part.nbytes - first) // (4 * LANES)
        parts.append((_fill, (np.uint64(first), n_lines, np.float32(1))))
    return _together(parts)


def _cut(array: NDArray[Any], n_parts: int) -> list[NDArray[Any]]:
    return np.array_split(array, n_parts)


def _together(parts: list[tuple[Callable[..., object], tuple[Any, ...]]]) -> Callable[[], object]:
    """Give what runs the parts at the same time, a thread for each."""
    if len(parts) == 1:
        work, args = parts[0]
        return lambda: work(*args)
    return lambda: wait([_pool(len(parts)).submit(work, *args) for work, args in parts])


@cache
def _pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads)


@intrinsic
def _stream(context: Any, address: Any, value: Any) -> Any:
    """Store a constant to a line of the cache, past the cache."""

    def generate(target: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.FloatType(), LANES)
        filled = ir.Constant(line, ir.Undefined)
        for lane in range(LANES):
            filled = builder.insert_element(filled, args[1], ir.Constant(ir.IntType(32), lane))
        store = builder.store(filled, builder.inttoptr(args[0], line.as_pointer()), align=4 * LANES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return target.get_dummy_value()

    return types.void(types.uint64, types.float32), generate


@njit(nogil=True)
def _fill(address: Any, n_lines: Any, value: Any) -> None:
    for line in range(n_lines):
        _stream(address + np.uint64(4 * LANES * line), value)
