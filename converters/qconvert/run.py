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
from qconvert.items import Item
from qconvert.requantize import Requantizer
from qconvert.sinks import Sink
from qconvert.verdict import REQUANTIZE, ROUNDED, same_parts
from qformat.arrays import Part
from qformat.errors import QFormatError
from qformat.formats import Format, PartForm, matrix
from qformat.scheme import Flat, Grid, Table
from qformat.tensor import PackedTensor, pack_parts

Bytes = NDArray[np.uint8]
Progress = Callable[[int], None]
UNIT_WEIGHTS = 1 << 18
UNIT_BYTES = 1 << 20
TORN_WEIGHTS = 1 << 21  # of rows whose bytes do not lie together: enough that each run of them is worth a write


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
    n_weights = UNIT_WEIGHTS if all(lead_axis(part) == 0 for part in form.parts) else TORN_WEIGHTS
    per_range = max(1, n_weights // max(1, step * tensor.n_cols)) * step
    for first in range(0, tensor.n_rows, per_range):
        yield first, min(first + per_range, tensor.n_rows)


def row_step(form: Format, shape: tuple[int, ...]) -> int:
    """Give the least number of rows that is whole blocks and whole groups in every part; all rows where none is."""
    rows, cols = matrix(shape)
    step, shared = 1, shared_roles(form)
    for part in form.parts:
        lead = part.tiling.logical[0]
        if not cols or lead_axis(part) is None:
            return max(1, rows)
        if len(part.tiling.logical) != 1:
            size = part.bind(part.dims(form.scheme, rows, cols)).size
            step = math.lcm(step, *(size[name] for name in lead[1:]))
        elif part.role not in shared:
            group = max((p.group.n_weights for p in form.scheme.params if isinstance(p.group, Flat)), default=1)
            unit = math.lcm(part.layout.n_weights or 1, group)
            step = math.lcm(step, unit // math.gcd(unit, cols))
    step = math.lcm(step, *(p.group.rows or 1 for p in form.scheme.params if isinstance(p.group, Grid)))
    return max(1, min(step, rows))


def lead_axis(part: PartForm) -> int | None:
    """Give the place among a part's stored axes of the one that its rows run along; None where they do not."""
    names = [name for name, _, _ in part.tiling.stored]
    lead = part.tiling.logical[0][0]
    return names.index(lead) if lead in names else None


def shared_roles(form: Format) -> set[str]:
    """Name the parts that hold what all rows share."""
    params = (p for p in form.scheme.params if isinstance(p.group, Table) or (isinstance(p.group, Grid) and p.group.rows == 0))
    names = {param.name for param in params}
    return {part.role for part in form.parts if names & set(part.layout.holds)}


def placed(
    tensor: PackedTensor, form: Format, first: int, last: int, values: dict[str, NDArray[np.generic]]
) -> list[tuple[str, int, Bytes]]:
    """Pack the values of some rows and say where their bytes lie."""
    packed, shared = pack_parts(form, (last - first, tensor.n_cols), values), shared_roles(form)
    before = form.part_bytes((first, tensor.n_cols)) if first else dict.fromkeys(packed, 0)
    found = []
    for part in form.parts:
        data = packed[part.role]
        if not lead_axis(part) or last - first == tensor.n_rows:
            found += [(part.role, before[part.role], data)] if not (first and part.role in shared) else []
        else:
            found += [(part.role, offset, line) for offset, line in lines(tensor, form, part, first, data)]
    return found


def lines(tensor: PackedTensor, form: Format, part: PartForm, first: int, data: Bytes) -> Iterator[tuple[int, Bytes]]:
    """Cut the bytes of rows that other stored axes tear apart into what lies together: byte offset in the part, bytes."""
    bound = part.bind(part.dims(form.scheme, tensor.n_rows, tensor.n_cols))
    at, lead = lead_axis(part) or 0, part.tiling.logical[0]
    n_lines, together = math.prod(bound.stored_shape[:at]), math.prod(bound.stored_shape[at + 1 :])
    low = first // math.prod(bound.size[name] for name in lead[1:])
    for line, held in enumerate(data.reshape(n_lines, -1) if data.size else ()):
        yield (line * bound.size[lead[0]] + low) * together, held


def _copy(number: int, part: Part, start: int, stop: int) -> list[Piece]:
    return [Piece(number, part.form.role, start, part.ordered(start, stop))]


def _make(number: int, produce: Producer, first: int, last: int) -> list[Piece]:
    return [Piece(number, role, offset, data) for role, offset, data in produce(first, last)]


def _decoded(tensor: PackedTensor, form: Format, first: int, last: int) -> tuple[int, Bytes]:
    values = tensor.dequantize(form.name, slice(first, last))
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return first * tensor.n_cols * values.dtype.itemsize, data
