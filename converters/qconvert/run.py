"""Carrying out a plan: every tensor's bytes, tile by tile, to a finished and proved file.

A unit of work is a pure function of a range of rows that gives bytes for known places; units run on an executor and are
written in order, so that the file never depends on the number of workers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qconvert.exact import Recast
from qconvert.planning import Item
from qconvert.requantize import Requantizer
from qconvert.sinks import Sink
from qconvert.verdict import REQUANTIZE, ROUNDED, same_parts
from qformat.arrays import Part
from qformat.errors import QFormatError
from qformat.formats import Format, matrix
from qformat.scheme import Flat, Grid
from qformat.tensor import PackedTensor, pack_parts

Bytes = NDArray[np.uint8]
Progress = Callable[[int], None]
UNIT_WEIGHTS = 1 << 18
UNIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one part of the tensor with this number in the plan."""

    tensor: int
    role: str
    byte_offset: int
    data: Bytes


Unit = Callable[[], list[Piece]]
# The bytes that rows [first, last) give: (role, byte offset, bytes).
Producer = Callable[[int, int], list[tuple[str, int, Bytes]]]


def write_items(items: tuple[Item, ...], sink: Sink, executor: Executor, max_memory: int, progress: Progress) -> None:
    """Produce every unit of a plan and hand it to a sink, in order.

    max_memory : bytes of finished units and of those in work that may wait at a time
    progress   : told the bytes written
    """
    waiting: deque[tuple[str, Future[list[Piece]]]] = deque()
    window = max(2, min(16, max_memory // (8 * UNIT_WEIGHTS)))

    def drain() -> None:
        name, future = waiting.popleft()
        try:
            pieces = future.result()
        except QFormatError as err:
            err.tensor = err.tensor or name
            raise
        for piece in pieces:
            sink.write(piece.tensor, piece.role, piece.byte_offset, piece.data)
            progress(piece.data.size)

    for number, item in enumerate(items):
        for unit in units(number, item):
            waiting.append((item.name, executor.submit(unit)))
            if len(waiting) >= window:
                drain()
    while waiting:
        drain()


def units(number: int, item: Item) -> Iterator[Unit]:
    """Cut one tensor's conversion into units, in the order in which their bytes lie."""
    if same_parts(item.tensor, item.form):
        for part in item.tensor.parts:
            for start, stop in byte_ranges(part):
                yield partial(_copy, number, part, start, stop)
        return
    produce = producer(item)
    for first, last in row_ranges(item.tensor, item.form):
        yield partial(_make, number, produce, first, last)


def producer(item: Item) -> Producer:
    """Give the function that makes a tensor's target bytes for a range of rows: (role, byte offset, bytes)."""
    tensor, form = item.tensor, item.form
    if form.scheme.is_dense:
        return lambda first, last: [(form.parts[0].role, *_decoded(tensor, form, first, last))]
    if item.verdict.verdict == REQUANTIZE:
        requantizer = Requantizer(tensor, form, item.rule, item.importance)
        return lambda first, last: placed(tensor, form, first, last, requantizer.values(first, last))
    recast, rounding = Recast(tensor, form), item.verdict.verdict == ROUNDED
    return lambda first, last: placed(tensor, form, first, last, recast.derive(first, last, rounding).values)


def byte_ranges(part: Part) -> Iterator[tuple[int, int]]:
    """Cut the stored bytes of a part between blocks."""
    step = max(1, UNIT_BYTES // part.form.layout.n_bytes) * part.form.layout.n_bytes
    for start in range(0, part.source.n_bytes, step):
        yield start, min(start + step, part.source.n_bytes)


def row_ranges(tensor: PackedTensor, form: Format) -> Iterator[tuple[int, int]]:
    """Cut the rows of a tensor so that every range begins a block in every part of the target."""
    step = row_step(form, tensor.shape)
    per_range = max(1, UNIT_WEIGHTS // max(1, step * tensor.n_cols)) * step
    for first in range(0, tensor.n_rows, per_range):
        yield first, min(first + per_range, tensor.n_rows)


def row_step(form: Format, shape: tuple[int, ...]) -> int:
    """Give the least number of rows that is whole blocks and whole groups in every part; all rows where none is."""
    rows, cols = matrix(shape)
    step = 1
    for part in form.parts:
        lead = part.tiling.logical[0]
        if not cols or part.tiling.stored[0][0] != lead[0]:  # rows do not lie one after the other
            return max(1, rows)
        if len(part.tiling.logical) != 1:
            size = part.bind(part.dims(form.scheme, rows, cols)).size
            step = math.lcm(step, *(size[name] for name in lead[1:]))
            continue
        group = max((p.group.n_weights for p in form.scheme.params if isinstance(p.group, Flat)), default=1)
        unit = math.lcm(part.layout.n_weights or 1, group)
        step = math.lcm(step, unit // math.gcd(unit, cols))
    step = math.lcm(step, *(p.group.rows or 1 for p in form.scheme.params if isinstance(p.group, Grid)))
    return max(1, min(step, rows))


def placed(
    tensor: PackedTensor, form: Format, first: int, last: int, values: dict[str, NDArray[np.generic]]
) -> list[tuple[str, int, Bytes]]:
    """Pack the values of some rows and say where their bytes lie."""
    n_cols = tensor.n_cols
    packed = pack_parts(form, (last - first, n_cols), values)
    before = form.part_bytes((first, n_cols)) if first else dict.fromkeys(packed, 0)
    for_all = {p.name for p in form.scheme.params if isinstance(p.group, Grid) and p.group.rows == 0}
    shared = {part.role for part in form.parts if for_all & set(part.layout.holds)}
    return [(role, before[role], data) for role, data in packed.items() if not (first and role in shared)]


def _copy(number: int, part: Part, start: int, stop: int) -> list[Piece]:
    return [Piece(number, part.form.role, start, part.ordered(start, stop))]


def _make(number: int, produce: Producer, first: int, last: int) -> list[Piece]:
    return [Piece(number, role, offset, data) for role, offset, data in produce(first, last)]


def _decoded(tensor: PackedTensor, form: Format, first: int, last: int) -> tuple[int, Bytes]:
    values = tensor.dequantize(form.name, slice(first, last))
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return first * tensor.n_cols * values.dtype.itemsize, data
