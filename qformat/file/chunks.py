"""One chunk of one column: cut out, shuffled, compressed, and back.

Decides how bytes of a stripe become stored bytes (spec/qfmt.md, "Parts, columns, stripes, chunks"). Knows neither where
chunks lie nor who owns them, and does not check digests.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from qformat.errors import FileError
from qformat.file.records import RAW, ZSTD

if TYPE_CHECKING:
    from zstandard import ZstdCompressor

# Levels above gain less than half a point on weights: what compresses is the byte histogram.
LEVEL = 3
Bytes = NDArray[np.uint8]
_HERE = threading.local()


def compressor() -> ZstdCompressor:
    """Give this thread's compressor, whose frames declare their size and carry no checksum."""
    from zstandard import ZstdCompressor

    if not hasattr(_HERE, "compressor"):
        _HERE.compressor = ZstdCompressor(level=LEVEL, write_checksum=False, write_content_size=True, write_dict_id=False)
    found: ZstdCompressor = _HERE.compressor
    return found


def cut(stripe: Bytes, block_bytes: int, begin: int, end: int) -> Bytes:
    """Give the bytes `begin` to `end - 1` of every block of a stripe: contiguous, a view if that is all of it."""
    if end - begin == block_bytes:
        return stripe
    return np.ascontiguousarray(view_column(stripe, block_bytes, begin, end)).view(np.uint8)


def paste(stripe: Bytes, block_bytes: int, begin: int, end: int, column: Bytes) -> None:
    """Write the bytes `begin` to `end - 1` of every block of a stripe."""
    view_column(stripe, block_bytes, begin, end)[:] = column.view(f"V{end - begin}")


def view_column(stripe: Bytes, block_bytes: int, begin: int, end: int) -> NDArray[np.void]:
    """View one column of a stripe, an item per block: ten times faster to copy than rows of bytes."""
    return np.ndarray(len(stripe) // block_bytes, f"V{end - begin}", stripe.data, begin, (block_bytes,))


def encode(chunk: Bytes, element_bytes: int) -> tuple[int, bytes]:
    """Give the encoding and the stored bytes of a chunk of a zstd column."""
    shuffled = np.ascontiguousarray(chunk.reshape(-1, element_bytes).T)
    frame = compressor().compress(shuffled.data)
    return (ZSTD, frame) if len(frame) < len(chunk) else (RAW, chunk.tobytes())


def decode(stored: memoryview, encoding: int, n_bytes: int, element_bytes: int) -> Bytes:
    """Give the bytes of a chunk.

    stored  : stored bytes, their digest checked
    n_bytes : length of the chunk by its form, at most 1 MiB

    Raises FileError when the frame does not declare and hold exactly n_bytes.
    """
    if encoding == RAW:
        return np.frombuffer(stored, np.uint8)
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

    try:
        # The decompressor allocates what the frame declares, whatever limit it is given.
        declared = get_frame_parameters(stored).content_size
        if declared != n_bytes:
            raise FileError(f"frame declares {declared} bytes, expected {n_bytes}", expected=n_bytes, found=declared)
        raw = ZstdDecompressor().decompress(stored, max_output_size=n_bytes, allow_extra_data=False)
    except ZstdError as error:
        raise FileError(f"damaged zstd frame: {error}", expected=n_bytes) from error
    if len(raw) != n_bytes:
        raise FileError(f"frame holds {len(raw)} bytes, expected {n_bytes}", expected=n_bytes, found=len(raw))
    return unshuffle(np.frombuffer(raw, np.uint8), element_bytes)


def unshuffle(shuffled: Bytes, element_bytes: int) -> Bytes:
    """Give elements byte after byte again."""
    if element_bytes == 1:
        return shuffled
    elements = np.empty((len(shuffled) // element_bytes, element_bytes), np.uint8)
    # One strided pass per byte of the element: transposing at once would step along the short axis.
    for k, column in enumerate(shuffled.reshape(element_bytes, -1)):
        elements[:, k] = column
    return elements.reshape(-1)
