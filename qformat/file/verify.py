"""Checking every byte of a `.qfmt` file.

Decides the order: documents and names, then the file from front to back, padding between planes included. What a byte
is checked against is decided by the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from qformat.errors import FileError
from qformat.file.records import CHUNK, HEADER_BYTES
from qformat.file.table import check_table

if TYPE_CHECKING:
    from qformat.file.read import File


def verify_file(file: File, progress: Callable[[int, int], None] | None) -> None:
    """Check documents, names, chunk records, chunks and padding, whatever `File` was told to leave out.

    Raises FileError for what is wrong first.
    """
    _ = file.metadata, file.recipe
    entries = [*file.tensors.values(), *file.assets.values()]
    planes = [(entry, part, plane) for entry in entries for part in entry.parts for plane in part.planes]
    # Empty planes share their place with the one behind them: the longer one comes last.
    planes.sort(key=lambda each: (each[2].byte_offset, each[2].stored_bytes))
    end = HEADER_BYTES
    for entry, part, plane in planes:
        check_padding(file.data, end, plane.byte_offset)
        table = check_table(file.data, file.header, file.index, entry, verify=True)
        for k in range(part.n_stripes):
            table.decode(file.data, part, plane, k, verify=True)
        end = plane.byte_offset + plane.stored_bytes
        if progress:
            progress(end, len(file.data))
    check_padding(file.data, end, file.header.table_offset)
    table_end = file.header.table_offset + file.index.counts["chunks"] * CHUNK.itemsize
    check_padding(file.data, table_end, file.header.index_offset)
    if progress:
        progress(len(file.data), len(file.data))


def check_padding(data: memoryview, begin: int, end: int) -> None:
    """Refuse padding that is not zero."""
    padding = np.frombuffer(data[begin:end], np.uint8)
    if padding.any():
        offset = begin + int(padding.argmax())
        raise FileError(
            f"padding byte is {data[offset]:#04x}, expected 0", field="padding", offset=offset, expected=0, found=data[offset]
        )
