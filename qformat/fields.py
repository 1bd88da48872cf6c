"""The values of one field of every block: out of bytes and into them.

Knows a field and the bytes of blocks, whole values by NumPy, packed ones by the kernels, and what an unpacker makes of its
pieces. How blocks lie over a tensor is decided by `arrays`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qformat.bits import OWN
from qformat.errors import UsageError
from qformat.layout import Bits, Field, Layout, Plane

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qformat import decode
else:
    from qformat.deferred import Deferred, np

    decode = Deferred("qformat.decode")  # of all layouts few need it


def read_field(blocks: NDArray[np.uint8], layout: Layout, field: Field | Bits, out: NDArray[Any]) -> None:
    """Read one field of every block into `out`, shape (stored axes..., values in a block)."""
    if isinstance(field, Field):
        end = field.at + field.n_bytes
        words = blocks.reshape(*blocks.shape[:-2], layout.n_bytes)[..., field.at : end]
        if words.strides[-1] != words.itemsize:  # bytes of a value that lie apart, as in the order of another machine
            words = np.ascontiguousarray(words)
        out[...] = words.view(numpy_dtype(field.dtype)).reshape(out.shape)
        return
    from qformat.kernels.planes import unpack

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
    from qformat.kernels.planes import pack

    pack(np.ascontiguousarray(values).view(np.uint16) if field.dtype else values, field, blocks)


def read_made(blocks: NDArray[np.uint8], layout: Layout) -> NDArray[Any]:
    """Give what the layout's unpacker makes of the pieces of every block, shape (stored axes..., values)."""
    pieces = {}
    for piece, field in layout.pieces.items():
        pieces[piece] = np.empty((*blocks.shape[:-2], field.count), value_dtype(field))
        read_field(blocks, layout, field, pieces[piece])
    unpacker = unpacker_of(layout)
    if isinstance(unpacker.how, decode.LessOne):
        return _more_by_one(pieces, unpacker.how)
    return unpacker.unpack(pieces)


def _more_by_one(pieces: dict[str, NDArray[Any]], how: decode.LessOne) -> NDArray[np.uint8]:
    """Do what `decode.unpack_less_one` does, by a kernel."""
    from qformat.kernels.planes import unpack

    words = pieces["words"].astype(np.uint32) + np.uint32(how.ones)
    data = words.view(np.uint8)[..., None, :]
    out = np.empty((*words.shape[:-1], 8 * data.shape[-1] // how.bits), np.uint8)
    unpack(data, Bits("fields", (Plane(0, how.bits, word=4),), out.shape[-1]), out)
    if not how.ones:
        out = (out + np.uint8(1)) & np.uint8((1 << how.bits) - 1)
    return out


def write_made(values: NDArray[Any], layout: Layout, blocks: NDArray[np.uint8]) -> None:
    """Write the pieces of what the layout's unpacker makes. Raises NotExact for values that they cannot say."""
    for piece, stored in unpacker_of(layout).pack(values).items():
        write_field(stored, layout, layout.pieces[piece], blocks)


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Give the NumPy dtype of an element type; types that only this library names are their bit patterns."""
    if name in OWN:
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


def unpacker_of(layout: Layout) -> decode.Unpacker:
    """Find what makes codes of a layout's pieces."""
    return decode.find(layout.unpacker)
