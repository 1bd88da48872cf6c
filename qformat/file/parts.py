"""One part on its way into a file: bytes come in order, in pieces of any length; chunks go out.

Decides where stripes end and what becomes of each (spec/qfmt.md, "Parts, columns, stripes, chunks"). Raw parts of one column go
through uncopied; others are gathered one stripe at a time. Knows nothing of the index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from blake3 import blake3

from qformat.file import chunks
from qformat.file.records import RAW, Column, PartSpec, measure_stripe

if TYPE_CHECKING:
    from zstandard import ZstdCompressor


class Target(Protocol):
    """Where chunks go: raw bytes at an offset, or the next chunk of a plane whose place is not known yet."""

    def pwrite(self, data: chunks.Bytes | bytes, byte_offset: int) -> None: ...
    def append(self, plane: int, stored: bytes) -> None: ...


class PartWriter:
    """Takes the bytes of one part.

    part    : as `specs.check_tensors` gives it
    cuts    : its columns with their encodings
    planes  : number of the first plane; the others follow
    offsets : where raw planes begin; unused for others
    """

    __slots__ = ("columns", "cuts", "gathered", "hasher", "n_done", "offsets", "part", "planes", "records", "stripe_bytes")

    def __init__(self, part: PartSpec, cuts: Sequence[tuple[Column, int]], planes: int, offsets: Sequence[int]) -> None:
        self.part, self.cuts, self.planes = part, cuts, planes
        self.offsets = list(offsets)
        self.stripe_bytes = measure_stripe(part.block_bytes)
        self.records: list[bytearray] = [bytearray() for _ in cuts]
        self.n_done = 0
        self.gathered: list[chunks.Bytes] = []
        self.hasher = blake3()

    @property
    def is_mapped(self) -> bool:
        """Tell whether the part is stored as it comes."""
        return len(self.cuts) == 1 and self.cuts[0][1] == RAW

    def write(self, data: chunks.Bytes, target: Target, compressor: Callable[[], ZstdCompressor]) -> None:
        """Take the next bytes."""
        if self.is_mapped:
            target.pwrite(data, self.offsets[0] + self.n_done)
        taken = 0
        while taken < len(data):
            left = self.stripe_bytes - self.n_done % self.stripe_bytes
            piece = data[taken : taken + left]
            taken += len(piece)
            self.n_done += len(piece)
            is_end = len(piece) == left or self.n_done == self.part.n_bytes
            if self.is_mapped:
                self.hash_piece(piece, is_end)
            elif is_end:
                stripe = np.concatenate([*self.gathered, piece]) if self.gathered else piece
                self.gathered = []
                self.write_stripe(stripe, target, compressor())
            else:
                # The caller may reuse its buffer.
                self.gathered.append(piece.copy())

    def hash_piece(self, piece: chunks.Bytes, is_end: bool) -> None:
        """Go on with the digest of a raw chunk."""
        self.hasher.update(piece.data)
        if is_end:
            n_bytes = (self.n_done - 1) % self.stripe_bytes + 1
            self.records[0] += chunk_record(n_bytes, RAW, self.hasher.digest())
            self.hasher = blake3()

    def write_stripe(self, stripe: chunks.Bytes, target: Target, compressor: ZstdCompressor) -> None:
        """Cut a stripe into the chunks of its columns and send them off."""
        for k, (column, encoding) in enumerate(self.cuts):
            chunk = chunks.cut(stripe, self.part.block_bytes, column.begin, column.end)
            if encoding == RAW:
                stored = chunk.tobytes()
                target.pwrite(stored, self.offsets[k])
                self.offsets[k] += len(stored)
            else:
                encoding, stored = chunks.encode(chunk, column.element_bytes, compressor)
                target.append(self.planes + k, stored)
            self.records[k] += chunk_record(len(stored), encoding, blake3(stored).digest())


def chunk_record(stored_bytes: int, encoding: int, digest: bytes) -> bytes:
    """Give the 40 bytes of a chunk record."""
    return stored_bytes.to_bytes(4, "little") + bytes((encoding, 0, 0, 0)) + digest
