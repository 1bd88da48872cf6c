"""One part on its way into a file: bytes come in order, in pieces of any length; chunks go out.

Decides where stripes end and what becomes of each (spec/qfmt.md, "Parts, columns, stripes, chunks"). Raw parts of one column go
through uncopied; others are gathered one stripe at a time. Knows nothing of the index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from blake3 import blake3

from qformat.file import chunks
from qformat.file.records import RAW, Column, PartSpec, measure_stripe


class Target(Protocol):
    """Where chunks go: raw bytes at an offset, or the next chunk of a plane whose place is not known yet."""

    def pwrite(self, data: chunks.Bytes | memoryview | bytes, byte_offset: int) -> None: ...
    def append(self, plane: int, stored: memoryview | bytes) -> None: ...


class Chunk(NamedTuple):
    """A chunk as it is stored, and its digest."""

    encoding: int
    stored: memoryview | bytes
    digest: bytes


# Of every stripe of some bytes, the chunk of each column.
Stripes: TypeAlias = Sequence[Sequence[Chunk]]


class PartWriter:
    """Takes the bytes of one part.

    part    : as `specs.check_tensors` gives it
    cuts    : its columns with their encodings
    planes  : number of the first plane; the others follow
    offsets : where raw planes begin; unused for others
    """

    __slots__ = ("cuts", "gathered", "hasher", "n_done", "offsets", "part", "planes", "records", "stripe_bytes")

    def __init__(self, part: PartSpec, cuts: Sequence[tuple[Column, int]], planes: int, offsets: Sequence[int]) -> None:
        self.part, self.cuts, self.planes = part, cuts, planes
        self.offsets = list(offsets)
        self.stripe_bytes = measure_stripe(part.block_bytes)
        self.records: list[bytearray] = [bytearray() for _ in cuts]
        self.n_done = 0
        self.gathered: list[chunks.Bytes] = []
        self.hasher = blake3()

    def write(self, data: chunks.Bytes, target: Target, stripes: Stripes | None = None) -> None:
        """Take the next bytes; `stripes` is what `encode_stripes` makes of them, where they begin and end stripes."""
        if is_mapped(self.cuts):
            target.pwrite(data, self.offsets[0] + self.n_done)
        if stripes is not None:
            self.n_done += len(data)
            for encoded in stripes:
                self.put(encoded, target)
            return
        taken = 0
        while taken < len(data):
            left = self.stripe_bytes - self.n_done % self.stripe_bytes
            piece = data[taken : taken + left]
            taken += len(piece)
            self.n_done += len(piece)
            is_end = len(piece) == left or self.n_done == self.part.n_bytes
            if is_mapped(self.cuts):
                self.hash_piece(piece, is_end)
            elif is_end:
                stripe = np.concatenate([*self.gathered, piece]) if self.gathered else piece
                self.gathered = []
                self.put(encode_stripe(self.part, self.cuts, stripe), target)
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

    def put(self, stripe: Sequence[Chunk], target: Target) -> None:
        """Send the chunks of a stripe off, but for what is written as it came, and keep their records."""
        for k, (column, chunk) in enumerate(zip(self.cuts, stripe, strict=True)):
            if column[1] != RAW:
                target.append(self.planes + k, chunk.stored)
            elif not is_mapped(self.cuts):
                target.pwrite(chunk.stored, self.offsets[k])
                self.offsets[k] += len(chunk.stored)
            self.records[k] += chunk_record(len(chunk.stored), chunk.encoding, chunk.digest)


def encode_stripes(part: PartSpec, cuts: Sequence[tuple[Column, int]], byte_offset: int, data: chunks.Bytes) -> Stripes | None:
    """Encode bytes of a part that are whole stripes; None where they are not. May be called from any thread."""
    stripe_bytes, end = measure_stripe(part.block_bytes), byte_offset + len(data)
    if byte_offset % stripe_bytes or (end % stripe_bytes and end != part.n_bytes):
        return None
    return [encode_stripe(part, cuts, data[start : start + stripe_bytes]) for start in range(0, len(data), stripe_bytes)]


def encode_stripe(part: PartSpec, cuts: Sequence[tuple[Column, int]], stripe: chunks.Bytes) -> Sequence[Chunk]:
    """Cut a stripe into the chunks of its columns."""
    found = []
    for column, encoding in cuts:
        chunk = chunks.cut(stripe, part.block_bytes, column.begin, column.end)
        kind, stored = (RAW, chunk.data) if encoding == RAW else chunks.encode(chunk, column.element_bytes)
        found.append(Chunk(kind, stored, blake3(stored).digest()))
    return found


def is_mapped(cuts: Sequence[tuple[Column, int]]) -> bool:
    """Tell whether a part is stored as it comes."""
    return len(cuts) == 1 and cuts[0][1] == RAW


def chunk_record(stored_bytes: int, encoding: int, digest: bytes) -> bytes:
    """Give the 40 bytes of a chunk record."""
    return stored_bytes.to_bytes(4, "little") + bytes((encoding, 0, 0, 0)) + digest
