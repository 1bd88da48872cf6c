"""From stored bytes to arrays of values and back: a part of a tensor seen through its layout and tiling.

Takes the bytes from wherever they are (a mapped file, a verified chunk, memory), sees them as a strided array of blocks,
and lets a kernel read one field of every block. It knows neither schemes nor files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from qformat.errors import UsageError
from qformat.fields import read_field, read_made, unpacker_of, value_dtype, write_field, write_made
from qformat.formats.form import PartForm
from qformat.layout import Bits, Field, Layout
from qformat.tiling import Bound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

ALIGNMENT = 64


class ByteSource(Protocol):
    """Bytes that can be read in ranges; a range is checked, where the holder can check it, when it is read."""

    @property
    def n_bytes(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop), read-only; a view where possible."""
        ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes already in memory or mapped."""

    data: NDArray[np.uint8]

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.data.size

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop) as a view."""
        return self.data[start:stop]


@dataclass(frozen=True, slots=True)
class View:
    """Bytes of a mapped file, seen as an array when they are read."""

    data: memoryview

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.data.nbytes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop) as a view."""
        return np.frombuffer(self.data[start:stop], np.uint8)


@dataclass(frozen=True)
class Part:
    """One stored byte array of a tensor, bound to its sizes.

    swapped : the file's byte order is not little-endian; blocks are put in order as they are read
    """

    form: PartForm
    bound: Bound
    source: ByteSource
    swapped: bool = False

    def __post_init__(self) -> None:
        if self.source.n_bytes != self.bound.total_bytes:
            message = f"'{self.form.role}' holds {self.source.n_bytes} bytes, expected {self.bound.total_bytes}"
            raise UsageError(message, field=self.form.role, found=self.source.n_bytes, expected=self.bound.total_bytes)

    def read(self, holds: str, first: int = 0, last: int | None = None) -> NDArray[Any]:
        """Give the values of one field for indices [first, last) of the first logical axis.

        returns: logical array in the field's own element type, at most `bound.dims` large, cropped to the range
        """
        layout = self.form.layout
        if holds not in layout.holds:
            raise UsageError(f"layout '{layout.name}' holds no '{holds}'")
        size, lead = field_sizes(self.bound, count_of(layout, holds)), self.bound.tiling.logical[0]
        n_lead = math.prod(size[name] for name in lead)
        last = min(self.bound.dims[0], n_lead) if last is None else last
        axis, slab, per = self._lead_axis(lead, size, n_lead)
        if last > (first // slab + 1) * slab and last - first < min(self.bound.dims[0], n_lead):
            cuts = [first, *range((first // slab + 1) * slab, last, slab), last]
            return np.concatenate([self.read(holds, low, high) for low, high in pairwise(cuts)])
        begin, n_axis = first // slab * slab, slab // per
        low, high = ((first - begin) // per, -(-(last - begin) // per)) if last <= begin + slab else (0, n_axis)
        whole = not axis or high - low == n_axis
        blocks = self.blocks() if whole else self.blocks(axis, low, high)
        found = None if whole else (axis, high - low)
        if holds == layout.made:
            values = read_made(blocks, layout)
            out, view = _allocate(self.bound, values.shape[-1], values.dtype, found)
            view[...] = values.reshape(view.shape)
        else:
            out = self._field(blocks, layout.part(holds), found)
        start = begin // slab * (high - low) * per + first - begin - low * per
        return out[(slice(start, start + last - first), *(slice(n) for n in self.bound.dims[1:]))]

    def _lead_axis(self, lead: tuple[str, ...], size: Mapping[str, int], n_lead: int) -> tuple[str, int, int]:
        """Give the stored axis that a range of the first logical axis is a range of, for what length, and values of one step.

        Slabs lie over one another in the same blocks: within one of them a range is one of the axis below.
        """
        stored = [name for name, _, _ in self.bound.tiling.stored]
        for depth, name in enumerate(lead[:2]):
            if name in stored:
                slab = n_lead // (size[lead[0]] if depth else 1)
                return name, max(1, slab), max(1, math.prod(size[inner] for inner in lead[depth + 1 :]))
        return "", max(1, n_lead), max(1, n_lead)

    def _field(self, blocks: NDArray[np.uint8], field: Field | Bits | None, axis: tuple[str, int] | None) -> NDArray[Any]:
        """Give a field of blocks in logical order."""
        assert field is not None  # `holds` names fields and what is made of them
        out, view = _allocate(self.bound, field.count, value_dtype(field), axis)
        n_stored = blocks.ndim - 2
        if view.ndim == n_stored + 1:
            read_field(blocks, self.form.layout, field, view)
        else:  # several in-block axes, which the logical order tears apart
            values = np.empty((*view.shape[:n_stored], field.count), out.dtype)
            read_field(blocks, self.form.layout, field, values)
            view[...] = values.reshape(view.shape)
        return out

    def ordered(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give stored bytes [start, stop) in little-endian order; of a swapped part, whole blocks that lie together."""
        data = self.source.read(start, stop)
        layout = self.form.layout
        return data.reshape(-1, layout.n_bytes)[:, list(layout.swap)].reshape(-1) if self.swapped else data

    @property
    def has_spare_bits(self) -> bool:
        """Whether there are bits that no value depends on: fields that hold nothing, blocks filled up at an end."""
        layout = self.form.layout
        made = bool(layout.unpacker) and not unpacker_of(layout).whole
        return self.bound.padded != self.bound.dims or made or any(not part.holds for part in layout.parts)

    def extent(self, holds: str) -> tuple[int, ...]:
        """Give the logical sizes that the array has room for, for one field; at least those that it covers."""
        layout = self.form.layout
        size = field_sizes(self.bound, count_of(layout, holds)) if holds in layout.holds else {}
        return tuple(math.prod(size[name] for name in group) for group in self.bound.tiling.logical) if size else ()

    def blocks(self, axis: str = "", low: int = 0, high: int = 0) -> NDArray[np.uint8]:
        """Give the blocks as a strided view, shape (stored axes..., words, bytes of a word); a range of one axis if named."""
        shape = self.bound.stored_shape
        names = [name for name, _, _ in self.bound.tiling.stored]
        if axis and names.index(axis) == 0:
            step = math.prod(shape[1:])
            data = self.source.read(low * step, high * step).reshape(high - low, *shape[1:])
        else:
            data = self.source.read(0, self.source.n_bytes).reshape(shape)
            if axis:
                data = data[(slice(None),) * names.index(axis) + (slice(low, high),)]
        word = self.bound.tiling.word_axis
        data = np.moveaxis(data, names.index(word), -2) if word else data[..., None, :]
        if not self.swapped:
            return data
        together = data.reshape(*data.shape[:-2], self.bound.n_bytes)[..., list(self.form.layout.swap)]
        return together.reshape(data.shape)


def read_all(source: ByteSource, start: int, stop: int) -> NDArray[np.uint8]:
    """Give bytes [start, stop), for those who take their address. Raises UsageError where the source has fewer."""
    found = source.read(start, stop)
    if found.size != stop - start:
        raise UsageError(f"bytes {start} to {stop} of {source.n_bytes}", found=found.size, expected=stop - start)
    return found


def build(form: PartForm, dims: tuple[int, ...], values: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Pack logical arrays into the stored bytes of a part; whatever pads a block is zero.

    values : for every field that holds something, its logical array of shape `dims` (or groups of it)
    returns: flat uint8
    """
    bound = form.bind(dims)
    layout = form.layout
    names = [name for name, _, _ in bound.tiling.stored if name != bound.tiling.word_axis]
    blocks = np.zeros((*(bound.size[name] for name in names), bound.n_bytes), np.uint8)
    for field in layout.parts:
        if field.holds in layout.holds:
            low = -field.minus if isinstance(field, Bits) else 0  # stored as zero bits
            given = _in_blocks(bound, field.count, value_dtype(field), low, values[field.holds], field)
            write_field(given.reshape(*blocks.shape[:-1], field.count), layout, field, blocks)
    if layout.unpacker:
        _write_made(bound, layout, values[layout.made], blocks)
    if not bound.tiling.word_axis:
        return blocks.reshape(-1)
    words = blocks.reshape(*blocks.shape[:-1], -1, bound.tiling.word_bytes)
    axis = [name for name, _, _ in bound.tiling.stored].index(bound.tiling.word_axis)
    return np.ascontiguousarray(np.moveaxis(words, -2, axis)).reshape(-1)


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocate an array whose data begins at a multiple of 64 bytes."""
    n_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def _in_blocks(
    bound: Bound, count: int, dtype: np.dtype[Any], low: Any, given: NDArray[Any], field: Field | Bits | None = None
) -> NDArray[Any]:
    """Lay a logical array out as (stored axes..., in-block axes...), filled up with `low`."""
    full, view = _allocate(bound, count, dtype, None)
    if isinstance(field, Field) and given.dtype != full.dtype:
        raise UsageError(f"'{field.holds}' is {given.dtype}, expected {full.dtype}", field=field.holds)
    if given.shape != full.shape:
        full[...] = low
    full[tuple(slice(n) for n in given.shape)] = given
    return view


def _write_made(bound: Bound, layout: Layout, given: NDArray[Any], blocks: NDArray[np.uint8]) -> None:
    """Write what the layout's unpacker makes of its pieces; what pads a block is zero bits."""
    empty = read_made(np.zeros((1, layout.n_bytes), np.uint8), layout)
    full, view = _allocate(bound, empty.size, empty.dtype, None)
    view[...] = empty.reshape(view.shape[blocks.ndim - 1 :])
    full[tuple(slice(n) for n in given.shape)] = given
    write_made(view.reshape(*blocks.shape[:-1], empty.size), layout, blocks)


def _allocate(
    bound: Bound, count: int, dtype: np.dtype[Any], axis: tuple[str, int] | None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Allocate a logical array and the same memory seen as (stored axes..., in-block axes...).

    count : values in a block
    axis  : a stored axis of which there is a range only, and how long that is
    """
    tiling = bound.tiling
    size = field_sizes(bound, count)
    inner = [name for name, _, _ in tiling.inner]
    if axis is not None:
        size[axis[0]] = axis[1]
    shape = tuple(math.prod(size[name] for name in group) for group in tiling.logical)
    out = aligned(shape, dtype)
    order = [name for group in tiling.logical for name in group]
    split = out.reshape([size[name] for name in order])
    stored = [name for name, _, _ in tiling.stored if name != tiling.word_axis]
    view = split.transpose([order.index(name) for name in [*stored, *inner]])
    return out, view


def count_of(layout: Layout, holds: str) -> int:
    """Give the values of a block that are a parameter, or the codes."""
    field = layout.part(holds)
    return field.count if field is not None else layout.n_weights or layout.n_values


def field_sizes(bound: Bound, count: int) -> dict[str, int]:
    """Give the axis sizes for `count` values in a block: a parameter of it has fewer where there are codes."""
    size = dict(bound.size)
    inner = [name for name, _, _ in bound.tiling.inner]
    if count != math.prod(size[name] for name in inner):
        size.update(dict.fromkeys(inner, 1))
        size[inner[-1]] = count
    return size
