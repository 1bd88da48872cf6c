"""Carrying out a plan: every tensor's bytes, tile by tile, to a finished file.

A unit of work is a pure function of a range of rows that gives bytes for known places; units are spread over threads
and are written in order, so that the file never depends on the number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.cutting import MAX_MEMORY, Rows, byte_ranges, is_slab, lead_axis, row_ranges, shared_roles, unit_bytes
from qconvert.exact import Recast
from qconvert.items import Item
from qconvert.relaid import relaid
from qconvert.requantize import Requantizer, by_method
from qconvert.sinks import Sink
from qconvert.verdict import EXACT, REFUSED, REQUANTIZE, ROUNDED, same_parts
from qformat.arrays import Part
from qformat.errors import about
from qformat.fold import narrower
from qformat.formats import Format, PartForm
from qformat.methods.method import ROUNDED_WEIGHTS
from qformat.relaying import Relay
from qformat.tensor import PackedTensor, pack_part
from qformat.threads import AHEAD, n_threads, spread

Bytes = NDArray[np.uint8]
Values = dict[str, NDArray[np.generic]]
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one part of the tensor with this number in the plan."""

    tensor: int
    role: str
    byte_offset: int
    data: Bytes


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work: what makes it, and the memory that it takes meanwhile."""

    make: Callable[[], list[Piece]]
    n_bytes: int


# The bytes that the rows of a unit give: (role, byte offset, bytes).
Producer = Callable[[Rows], list[tuple[str, int, Bytes]]]


def write_items(
    items: tuple[Item, ...], source: Path, sink: Sink, workers: int | None, max_memory: int, progress: Progress
) -> None:
    """Produce every unit of a plan and hand it to a sink, in order.

    source     : file that errors are about
    workers    : threads; all there may be if absent
    max_memory : bytes that units in work, and finished ones that wait, may take together; one unit may always be in work
    progress   : told the bytes written
    """

    def make(job: tuple[str, Unit]) -> list[tuple[Piece, Any]]:
        name, unit = job
        with about(source, name):
            pieces = unit.make()
        return [(piece, sink.encode(piece.tensor, piece.role, piece.byte_offset, piece.data)) for piece in pieces]

    def jobs() -> Iterator[tuple[str, Unit]]:
        for number, item in enumerate(items):
            with about(source, item.name):
                yield from ((item.name, unit) for unit in units(number, item, max_memory))

    with closing(spread(make, jobs(), threads=workers, cost=lambda job: job[1].n_bytes, most=max_memory)) as made:
        for pieces in made:
            for piece, encoded in pieces:
                sink.write(piece.tensor, piece.role, piece.byte_offset, piece.data, encoded)
                progress(piece.data.size)


def units(number: int, item: Item, max_memory: int = MAX_MEMORY) -> Iterator[Unit]:
    """Cut one tensor's conversion into units, in the order in which their bytes lie."""
    if same_parts(item.tensor, item.form):
        for part in item.tensor.parts:
            for start, stop in byte_ranges(part):
                yield Unit(partial(_copy, number, part, start, stop), stop - start)
        return
    item = narrowed(item)
    produce = producer(item)
    for rows, n_bytes in sized_rows(item, max_memory):
        yield Unit(partial(_make, number, produce, rows), n_bytes)


def peak_memory(items: Sequence[Item], max_memory: int) -> int:
    """Give the most memory that writing takes at a time, beyond the mapped source and what starting up takes: bytes."""
    most = 0
    for item in (item for item in items if item.verdict.verdict != REFUSED):
        if same_parts(item.tensor, item.form):
            sizes: Iterator[int] = (stop - start for part in item.tensor.parts for start, stop in byte_ranges(part))
        else:
            sizes = _sizes(narrowed(item), max_memory)
        most = max(most, sum(islice(sizes, AHEAD * n_threads())))
    return min(most, max_memory)


def held_by_methods(items: Sequence[Item]) -> int:
    """Give the bytes that methods hold at a time beside the rows in work, at most."""
    return max((item.by.n_held for item in items if item.by is not None), default=0)


def narrowed(item: Item) -> Item:
    """See the tensor of an item with rows that are short enough to be units; what is known of columns is of its own."""
    is_whole = item.importance is not None or item.by is not None
    return item if is_whole else replace(item, tensor=narrower(item.tensor, item.form))


def producer(item: Item) -> Producer:
    """Give the function that makes a tensor's target bytes for the rows of a unit: (role, byte offset, bytes)."""
    tensor, form = item.tensor, item.form
    if form.scheme.is_dense:
        return lambda rows: [(form.parts[0].role, *_decoded(tensor, form, *rows[0]))]
    relay = _relay(item)
    if relay is not None:
        return lambda rows: [piece for first, last in rows for piece in at(tensor, form, first, last, relay.make(first, last))]
    values: Callable[[int, int], Values]
    if item.by is not None:
        values = by_method(tensor, form, item.by)
    elif item.verdict.verdict == REQUANTIZE:
        quantizer = Requantizer(tensor, form, item.rule, item.importance)
        if quantizer.fused is not None:
            parts = quantizer.parts
            return lambda rows: [piece for first, last in rows for piece in at(tensor, form, first, last, parts(first, last))]
        values = quantizer.values
    else:
        recast, rounding = Recast(tensor, form), item.verdict.verdict == ROUNDED

        def values(first: int, last: int) -> Values:
            return recast.derive(first, last, rounding).values

    return lambda rows: placed(tensor, form, rows, [values(first, last) for first, last in rows])


def placed(tensor: PackedTensor, form: Format, rows: Rows, values: Sequence[Values]) -> list[tuple[str, int, Bytes]]:
    """Pack the values of some rows and say where their bytes lie.

    values : of each range of rows
    """
    if len(rows) == 1:
        return placed_range(tensor, form, form.parts, *rows[0], values[0])
    found = []
    for part in form.parts:
        if is_slab(part):
            whole = {name: np.concatenate([each[name] for each in values]) for name in part.layout.holds}
            n_rows = sum(last - first for first, last in rows)
            before = form.part_bytes((len(rows) * rows[0][0], tensor.n_cols))[part.role]
            found.append((part.role, before, pack_part(form, part, (n_rows, tensor.n_cols), whole)))
        else:
            for (first, last), each in zip(rows, values, strict=True):
                found += placed_range(tensor, form, (part,), first, last, each)
    return found


def placed_range(
    tensor: PackedTensor, form: Format, parts: Sequence[PartForm], first: int, last: int, values: Values
) -> list[tuple[str, int, Bytes]]:
    """Pack the values of one range of rows for some parts, and say where their bytes lie."""
    made = {part.role: pack_part(form, part, (last - first, tensor.n_cols), values) for part in parts}
    return at(tensor, form, first, last, made)


def at(tensor: PackedTensor, form: Format, first: int, last: int, made: dict[str, Bytes]) -> list[tuple[str, int, Bytes]]:
    """Say where the bytes of one range of rows lie, those of some parts by role."""
    shared, found = shared_roles(form), list[tuple[str, int, Bytes]]()
    before = form.part_bytes((first, tensor.n_cols)) if first else {}
    for part in (part for part in form.parts if part.role in made):
        data = made[part.role]
        if not lead_axis(part) or last - first == tensor.n_rows:
            found += [(part.role, before.get(part.role, 0), data)] if not (first and part.role in shared) else []
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


def _relay(item: Item) -> Relay | None:
    """Give what lays a tensor's bytes out anew, where nothing has to be derived."""
    return relaid(item.tensor, item.form) if item.verdict.verdict == EXACT and not item.form.scheme.is_dense else None


def sized_rows(item: Item, max_memory: int) -> Iterator[tuple[Rows, int]]:
    """Cut a narrowed item's rows into units: the rows of each, and the memory that it takes."""
    n_weights, is_relaid = None if item.by is None else ROUNDED_WEIGHTS, _relay(item) is not None
    for rows in row_ranges(item.tensor, item.form, max_memory, is_relaid, n_weights):
        is_last = rows[-1][1] == item.tensor.n_rows  # until it is done, what the whole tensor is rounded by is held
        yield rows, unit_bytes(item.tensor, rows, is_relaid) + (item.by.n_kept if item.by is not None and is_last else 0)


def _sizes(item: Item, max_memory: int) -> Iterator[int]:
    return (n_bytes for _, n_bytes in sized_rows(item, max_memory))


def _make(number: int, produce: Producer, rows: Rows) -> list[Piece]:
    return [Piece(number, role, offset, data) for role, offset, data in produce(rows)]


def _decoded(tensor: PackedTensor, form: Format, first: int, last: int) -> tuple[int, Bytes]:
    values = tensor.dequantize(form.name, slice(first, last))
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return first * tensor.n_cols * values.dtype.itemsize, data
