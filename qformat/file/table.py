"""Chunk records of one entry, and the stored bytes that they vouch for.

Decides rule 13 of spec/qfmt.md, "Ranges and illegal values": records against the digest of the entry and against its form,
stored bytes against records. Hands out chunks, not parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from qformat.errors import FileError
from qformat.file.chunks import Bytes, decode
from qformat.file.header import Header
from qformat.file.index import Index
from qformat.file.records import CHUNK, RAW, ZSTD, PartEntry, PlaneEntry, TensorEntry


class Table:
    """Chunk records of one entry, checked; remembers which chunks were.

    name       : of the tensor or asset
    first_chunk: number of the first record
    records    : CHUNK records
    offsets    : where each chunk lies in the file
    """

    __slots__ = ("checked", "first_chunk", "name", "offsets", "records")

    def __init__(self, name: str, first_chunk: int, records: NDArray[Any], offsets: NDArray[np.int64]) -> None:
        self.name, self.first_chunk, self.records, self.offsets = name, first_chunk, records, offsets
        self.checked = bytearray(len(records))

    def chunk(
        self, data: memoryview, part: PartEntry, plane: PlaneEntry, k: int, verify: bool
    ) -> tuple[memoryview, int, int, int]:
        """Give stored bytes, encoding, place and unencoded length of chunk k of a plane.

        verify: compare the stored bytes with their digest, unless that was done

        Raises FileError when they differ.
        """
        number = plane.first_chunk - self.first_chunk + k
        record = self.records[number]
        offset, stored_bytes = int(self.offsets[number]), int(record["stored_bytes"])
        stored = data[offset : offset + stored_bytes]
        if verify and not self.checked[number]:
            found, expected = blake3(stored).digest(), record["digest"].tobytes()
            if found != expected:
                raise FileError(
                    f"chunk {k} of {part.n_stripes} ({stored_bytes} bytes, part bytes from {k * part.stripe_bytes}): "
                    f"BLAKE3 is {found.hex()[:16]}..., expected {expected.hex()[:16]}...",
                    tensor=self.name,
                    field=name_plane(part, plane),
                    offset=offset,
                    expected=expected,
                    found=found,
                )
            self.checked[number] = 1
        n_blocks = min(part.stripe_bytes, part.n_bytes - k * part.stripe_bytes) // part.block_bytes
        return stored, int(record["encoding"]), offset, n_blocks * (plane.end - plane.begin)

    def decode(self, data: memoryview, part: PartEntry, plane: PlaneEntry, k: int, verify: bool) -> Bytes:
        """Give chunk k of a plane, decoded.

        Raises FileError when it differs from its digest, or its frame is damaged.
        """
        stored, encoding, offset, n_bytes = self.chunk(data, part, plane, k, verify)
        try:
            return decode(stored, encoding, n_bytes, plane.element_bytes)
        except FileError as error:
            error.tensor, error.field, error.offset = self.name, name_plane(part, plane), offset
            raise


def check_table(data: memoryview, header: Header, index: Index, entry: TensorEntry, verify: bool) -> Table:
    """Check the chunk records of an entry.

    Raises FileError when they disagree with its digest (looked at if `verify`) or its form.
    """
    record = index.entries[entry.number]
    first, n_chunks = int(record["first_chunk"]), int(record["n_chunks"])
    offset = header.table_offset + first * CHUNK.itemsize
    stored = data[offset : offset + n_chunks * CHUNK.itemsize]
    if verify:
        found, expected = blake3(stored).digest(), record["digest"].tobytes()
        if found != expected:
            raise FileError(
                f"BLAKE3 of its {n_chunks} chunk records is {found.hex()[:16]}..., expected {expected.hex()[:16]}...",
                tensor=entry.name,
                field="chunk table",
                offset=offset,
                expected=expected,
                found=found,
            )
    records = np.frombuffer(stored, CHUNK)
    offsets = np.zeros(n_chunks, np.int64)
    for part in entry.parts:
        for plane in part.planes:
            own = slice(plane.first_chunk - first, plane.first_chunk - first + part.n_stripes)
            try:
                offsets[own] = place_chunks(records[own], part, plane)
            except FileError as error:
                error.tensor, error.field, error.offset = entry.name, name_plane(part, plane), offset
                raise
    return Table(entry.name, first, records, offsets)


def place_chunks(records: NDArray[Any], part: PartEntry, plane: PlaneEntry) -> NDArray[np.int64]:
    """Give where the chunks of a plane lie, their records checked against its form."""
    width = plane.end - plane.begin
    raw_bytes = np.full(part.n_stripes, part.stripe_bytes // part.block_bytes * width, np.int64)
    if part.n_stripes:
        raw_bytes[-1] = (part.n_bytes - (part.n_stripes - 1) * part.stripe_bytes) // part.block_bytes * width
    stored_bytes, encoding = records["stored_bytes"].astype(np.int64), records["encoding"]
    is_smaller = (stored_bytes > 0) & (stored_bytes < raw_bytes) if plane.encoding == "zstd" else np.zeros(1, np.bool_)
    is_legal = ((encoding == RAW) & (stored_bytes == raw_bytes)) | ((encoding == ZSTD) & is_smaller)
    is_legal &= ~records["reserved"].any(axis=1)
    if not is_legal.all():
        k = int(is_legal.argmin())
        raise FileError(
            f"record of chunk {k}: {int(stored_bytes[k])} bytes of encoding {int(encoding[k])}, "
            f"expected {int(raw_bytes[k])} raw, or fewer as zstd in a zstd column",
            expected=int(raw_bytes[k]),
            found=int(stored_bytes[k]),
        )
    ends = np.cumsum(stored_bytes)
    n_stored = int(ends[-1]) if len(ends) else 0
    if n_stored != plane.stored_bytes:
        raise FileError(
            f"chunks take {n_stored} bytes, expected the {plane.stored_bytes} of their plane",
            expected=plane.stored_bytes,
            found=n_stored,
        )
    return plane.byte_offset + ends - stored_bytes


def name_plane(part: PartEntry, plane: PlaneEntry) -> str:
    """Name a plane in an error.

    The whole of a part goes by its role, a column of it by role and byte range.
    """
    return part.role if len(part.planes) == 1 else f"{part.role}[{plane.begin}:{plane.end}]"
