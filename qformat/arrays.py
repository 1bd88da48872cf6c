"""From stored bytes to arrays of values and back: a part of a tensor seen through its layout and tiling.

Takes the bytes from wherever they are (a mapped file, a verified chunk, memory), sees them as a strided array of blocks,
and lets a kernel read one field of every block. It knows neither schemes nor files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from qformat.errors import UsageError
from qformat.formats.form import PartForm
from qformat.layout import CODES, PIECE, Bits, Field, Layout
from qformat.tiling import Bound

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat.decode import Unpacker
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
        crop = (slice(None), *(slice(n) for n in self.bound.dims[1:]))
        if holds == CODES and layout.unpacker:
            pieces = {piece: self._field(layout.part(PIECE + piece), first, last) for piece in layout.pieces}
            return _unpacker(layout).unpack(pieces)[crop]
        return self._field(layout.part(holds), first, last)[crop]

    def _field(self, field: Field | Bits | None, first: int, last: int | None) -> NDArray[Any]:
        """Give the values of one field for indices [first, last) of the first logical axis, whole blocks along the others."""
        if field is None:
            raise UsageError(f"layout '{self.form.layout.name}' holds no such field")
        size, lead = field_sizes(self.bound, field), self.bound.tiling.logical[0]
        n_lead = math.prod(size[name] for name in lead)
        last = min(self.bound.dims[0], n_lead) if last is None else last
        is_stored = lead[0] in [name for name, _, _ in self.bound.tiling.stored]
        per = math.prod(size[name] for name in lead[1:]) if is_stored else n_lead  # slabs: any range touches every slab
        low, high = first // per, -(-last // per)
        whole = per == n_lead
        blocks = self.blocks() if whole else self.blocks(lead[0], low, high)
        out, view = _allocate(self.bound, field, None if whole else (lead[0], high - low))
        n_stored = blocks.ndim - 2
        if view.ndim == n_stored + 1:
            read_field(blocks, self.form.layout, field, view)
        else:  # several in-block axes, which the logical order tears apart
            values = np.empty((*view.shape[:n_stored], field.count), out.dtype)
            read_field(blocks, self.form.layout, field, values)
            view[...] = values.reshape(view.shape)
        return out[first - low * per : last - low * per]

    def ordered(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give stored bytes [start, stop) in little-endian order; of a swapped part, whole blocks that lie together."""
        data = self.source.read(start, stop)
        layout = self.form.layout
        return data.reshape(-1, layout.n_bytes)[:, list(layout.swap)].reshape(-1) if self.swapped else data

    @property
    def has_spare_bits(self) -> bool:
        """Whether there are bits that no value depends on: fields that hold nothing, blocks filled up at an end."""
        layout = self.form.layout
        return self.bound.padded != self.bound.dims or bool(layout.unpacker) or any(not part.holds for part in layout.parts)

    def extent(self, holds: str) -> tuple[int, ...]:
        """Give the logical sizes that the array has room for, for one field; at least those that it covers."""
        field = self.form.layout.part(holds)
        size = {} if field is None else field_sizes(self.bound, field)
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


def read_field(blocks: NDArray[np.uint8], layout: Layout, field: Field | Bits, out: NDArray[Any]) -> None:
    """Read one field of every block into `out`, shape (stored axes..., values in a block)."""
    if isinstance(field, Field):
        end = field.at + field.n_bytes
        words = blocks.reshape(*blocks.shape[:-2], layout.n_bytes)[..., field.at : end]
        out[...] = np.ascontiguousarray(words).view(numpy_dtype(field.dtype)).reshape(out.shape)
        return
    from qformat.kernels import unpack

    if not field.dtype:
        unpack(blocks, field, out)
        return
    patterns = np.empty(out.shape, np.int32)
    unpack(blocks, field, patterns)
    out[...] = patterns.astype(np.uint16).view(out.dtype)


def write_field(values: NDArray[Any], layout: Layout, field: Field | Bits, blocks: NDArray[np.uint8]) -> None:
    """Write one field of every block; `blocks` is contiguous per block and its bits of the field are zero."""
    if isinstance(field, Field):
        data = np.ascontiguousarray(values, numpy_dtype(field.dtype)).view(np.uint8)
        blocks[..., field.at : field.at + field.n_bytes] = data.reshape(*blocks.shape[:-1], field.n_bytes)
        return
    from qformat.kernels import pack

    pack(np.ascontiguousarray(values).view(np.uint16) if field.dtype else values, field, blocks)


def build(form: PartForm, dims: tuple[int, ...], values: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """Pack logical arrays into the stored bytes of a part; whatever pads a block is zero.

    values : for every field that holds something, its logical array of shape `dims` (or groups of it)
    returns: flat uint8
    """
    bound = form.bind(dims)
    if form.layout.unpacker:
        values = values | _pieces(bound, form.layout, values[CODES])
    names = [name for name, _, _ in bound.tiling.stored if name != bound.tiling.word_axis]
    blocks = np.zeros((*(bound.size[name] for name in names), bound.n_bytes), np.uint8)
    for field in form.layout.parts:
        if not field.holds:
            continue
        full, view = _allocate(bound, field, None, zero=True)
        given = values[field.holds]
        if isinstance(field, Field) and given.dtype != full.dtype:
            raise UsageError(f"'{field.holds}' is {given.dtype}, expected {full.dtype}", field=field.holds)
        if isinstance(field, Bits):
            full[...] = -field.minus  # stored as zero bits
        full[tuple(slice(n) for n in given.shape)] = given
        write_field(view.reshape(*blocks.shape[:-1], field.count), form.layout, field, blocks)
    if not bound.tiling.word_axis:
        return blocks.reshape(-1)
    words = blocks.reshape(*blocks.shape[:-1], -1, bound.tiling.word_bytes)
    axis = [name for name, _, _ in bound.tiling.stored].index(bound.tiling.word_axis)
    return np.ascontiguousarray(np.moveaxis(words, -2, axis)).reshape(-1)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Give the NumPy dtype of an element type; types that only this library names are their bit patterns."""
    if name in ("float8_e8m0half", "float8_ue4m3"):
        return np.dtype(np.uint8)
    if hasattr(np, name) and name != "bool":
        dtype: np.dtype[Any] = np.dtype(name).newbyteorder("<")
        return dtype
    if name == "bool":
        return np.dtype(np.bool_)
    import ml_dtypes

    small: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return small


def value_dtype(field: Field | Bits) -> np.dtype[Any]:
    """Give the dtype in which the values of a field are handed out."""
    if isinstance(field, Field) or field.dtype:
        return numpy_dtype(field.dtype)
    for kind in (np.uint8, np.int8, np.int16, np.int32):
        info = np.iinfo(kind)
        if info.min <= field.low and field.high <= info.max:
            return np.dtype(kind)
    raise UsageError(f"field '{field.name}' has {field.width} bits, expected at most 31")


def aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Allocate an array whose data begins at a multiple of 64 bytes."""
    n_bytes = math.prod(shape) * dtype.itemsize
    raw = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def _unpacker(layout: Layout) -> Unpacker:
    """Find what makes codes of a layout's pieces."""
    from qformat import decode  # here: of all layouts few need it

    return decode.find(layout.unpacker)


def _pieces(bound: Bound, layout: Layout, codes: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Take codes apart into the pieces that a layout stores; what pads a block is zero bits."""
    fields = {piece: layout.part(PIECE + piece) for piece in layout.pieces}
    unpacker = _unpacker(layout)
    full = unpacker.unpack({piece: _allocate(bound, f, None, zero=True)[0] for piece, f in fields.items() if f is not None})
    full[tuple(slice(n) for n in codes.shape)] = codes
    return {PIECE + piece: array for piece, array in unpacker.pack(full).items()}


def _allocate(
    bound: Bound, field: Field | Bits, axis: tuple[str, int] | None, zero: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Allocate a logical array and the same memory seen as (stored axes..., in-block axes...)."""
    tiling = bound.tiling
    size = field_sizes(bound, field)
    inner = [name for name, _, _ in tiling.inner]
    if axis is not None:
        size[axis[0]] = axis[1]
    shape = tuple(math.prod(size[name] for name in group) for group in tiling.logical)
    dtype = value_dtype(field)
    out = np.zeros(shape, dtype) if zero else aligned(shape, dtype)
    order = [name for group in tiling.logical for name in group]
    split = out.reshape([size[name] for name in order])
    stored = [name for name, _, _ in tiling.stored if name != tiling.word_axis]
    view = split.transpose([order.index(name) for name in [*stored, *inner]])
    return out, view


def field_sizes(bound: Bound, field: Field | Bits) -> dict[str, int]:
    """Give the axis sizes of one field: a parameter of the block has `count` values where codes have more."""
    size = dict(bound.size)
    inner = [name for name, _, _ in bound.tiling.inner]
    if field.count != math.prod(size[name] for name in inner):
        size.update(dict.fromkeys(inner, 1))
        size[inner[-1]] = field.count
    return size
