"""Writing a `.qfmt` file.

Decides where raw planes lie before the first byte comes, and the order in which a file becomes whole: payload, chunk
table, index, made durable; then the header; then the name (spec/qfmt.md, "Encoding"). Knows bytes, not what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from qformat.errors import UsageError
from qformat.file import json_text
from qformat.file.chunks import Bytes
from qformat.file.header import Header, pack_header
from qformat.file.index_build import IndexBuilder
from qformat.file.metadata import Typed, encode
from qformat.file.output import Output
from qformat.file.parts import PartWriter, Stripes, encode_stripes
from qformat.file.records import (
    ASSET_ROLE,
    CHUNK,
    ENTRY,
    HEADER_BYTES,
    MAX_ALIGNMENT,
    MIN_ALIGNMENT,
    RAW,
    TABLE_ALIGNMENT,
    TensorSpec,
    align,
    measure_stripe,
)
from qformat.file.specs import COMPRESS, asset_spec, check_tensors, cut_columns
from qformat.file.spool import Spool

Data = bytes | bytearray | memoryview | NDArray[Any]


class Writer:
    """Writes one file; not to be shared between threads.

    path     : final name; a file of that name is replaced. Bytes go to a hidden sibling until `commit`
    tensors  : what will be written, in the order in which the file lists it
    metadata : typed values, in order
    assets   : whole files by relative name; their bytes are kept until `finish`
    recipe   : JSON value that says how to give the source back
    compress : "none", "scales" (all but codes) or "all"
    alignment: of planes, a power of two from 64 to 65 536

    As a context manager it closes on success and removes what it wrote on an exception.
    Raises UsageError when a specification contradicts itself or a limit, FileError when the file system refuses.
    """

    def __init__(
        self,
        path: str | Path,
        tensors: Sequence[TensorSpec],
        *,
        metadata: Mapping[str, Typed] | None = None,
        assets: Mapping[str, Data] | None = None,
        recipe: object = None,
        compress: str = "none",
        alignment: int = MIN_ALIGNMENT,
    ) -> None:
        if compress not in COMPRESS:
            raise UsageError(f"compress {compress!r}, expected one of {', '.join(COMPRESS)}", found=compress)
        if not MIN_ALIGNMENT <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise UsageError(f"alignment {alignment}, expected a power of two from 64 to 65536", found=alignment)
        self.alignment = alignment
        self.metadata = json_text.dump(encode(metadata or {}), "metadata", sort_keys=False)
        self.recipe = json_text.dump(recipe, "recipe")
        self.assets = [as_bytes(data) for data in (assets or {}).values()]
        asset_specs = [asset_spec(name, len(data)) for name, data in zip(assets or {}, self.assets, strict=True)]
        checked = check_tensors(tensors)
        self.entries = [*checked, *asset_specs]
        self.n_tensors = len(checked)
        self.numbers = {spec.name: number for number, spec in enumerate(checked)}
        self.compress = compress
        self.builder = IndexBuilder(checked, asset_specs, compress)
        self.plan_planes()
        self.writing: dict[int, PartWriter] = {}
        self.records: dict[int, bytes] = {}
        self.output = Output(path, self.raw_end)
        self.spool = self.make_spool()

    def plan_planes(self) -> None:
        """Number parts and planes, and give raw planes their places."""
        self.parts = [part for spec in self.entries for part in spec.parts]
        self.first_part: list[int] = []
        self.part_cuts = [cut_columns(part, self.compress) for part in self.parts]
        self.first_plane: list[int] = []
        self.planes: list[tuple[int, int]] = []
        n_parts = 0
        for spec in self.entries:
            self.first_part.append(n_parts)
            n_parts += len(spec.parts)
        self.raw_end = HEADER_BYTES
        for part, cuts in zip(self.parts, self.part_cuts, strict=True):
            self.first_plane.append(len(self.planes))
            for column, encoding in cuts:
                n_bytes = part.n_bytes // part.block_bytes * (column.end - column.begin) if encoding == RAW else 0
                if encoding == RAW:
                    self.raw_end = align(self.raw_end, self.alignment)
                self.planes.append((self.raw_end, n_bytes))
                self.raw_end += n_bytes

    def make_spool(self) -> Spool:
        """Make the place where chunks of zstd columns wait, after all raw planes."""
        n_chunks = {}
        for part, cuts, first in zip(self.parts, self.part_cuts, self.first_plane, strict=True):
            for k, (_, encoding) in enumerate(cuts):
                if encoding != RAW:
                    n_chunks[first + k] = -(-part.n_bytes // measure_stripe(part.block_bytes))
        start = align(self.raw_end, self.alignment)
        return Spool(n_chunks, start, self.alignment, self.output.pwrite, self.output.folder)

    def encode(self, tensor: int, role: str, byte_offset: int, data: Bytes) -> Stripes | None:
        """Do with bytes of a part what can be done before their turn; may be called from any thread.

        returns: to be given to `write` with the same bytes, which stay as they are until then; None where there is nothing
        """
        spec, first = self.entries[tensor], self.first_part[tensor]
        k = next((k for k, part in enumerate(spec.parts) if part.role == role), None)
        if k is None or not len(data):
            return None
        return encode_stripes(spec.parts[k], self.part_cuts[first + k], byte_offset, data)

    def write(self, tensor: int | str, role: str, byte_offset: int, data: Data, encoded: Stripes | None = None) -> None:
        """Write the next bytes of a part.

        tensor     : number or name
        byte_offset: within the part; pieces of one part come in order, parts in any order
        data       : anything contiguous; copied or written before the call returns
        encoded    : what `encode` made of it, if anything

        Raises UsageError when the tensor or role is not planned, or the piece is not the next of its part.
        """
        number = self.numbers.get(tensor, -1) if isinstance(tensor, str) else tensor
        if not 0 <= number < self.n_tensors:
            raise UsageError(f"tensor {tensor!r} is not among the {self.n_tensors} planned", found=tensor)
        self.write_part(number, role, byte_offset, as_bytes(data), encoded)

    def write_part(self, number: int, role: str, byte_offset: int, data: Bytes, encoded: Stripes | None = None) -> None:
        """Write the next bytes of a part of an entry."""
        spec = self.entries[number]
        k = next((k for k, part in enumerate(spec.parts) if part.role == role), -1)
        if k < 0:
            raise UsageError(f"role {role!r}, expected one of {[part.role for part in spec.parts]}", tensor=spec.name)
        part_number = self.first_part[number] + k
        part, n_done = self.parts[part_number], 0
        if part_number in self.records:
            n_done = part.n_bytes
        elif part_number in self.writing:
            n_done = self.writing[part_number].n_done
        if byte_offset != n_done or len(data) > part.n_bytes - n_done:
            raise UsageError(
                f"{len(data)} bytes at {byte_offset}, expected at most {part.n_bytes - n_done} at {n_done}",
                tensor=spec.name,
                field=role,
                expected=n_done,
                found=byte_offset,
            )
        if len(data):
            self.push(part_number, data, encoded)

    def push(self, part_number: int, data: Bytes, encoded: Stripes | None) -> None:
        """Hand bytes to the writer of a part, and keep its records once it is whole."""
        part = self.parts[part_number]
        writer = self.writing.get(part_number)
        if writer is None:
            first, cuts = self.first_plane[part_number], self.part_cuts[part_number]
            offsets = [offset for offset, _ in self.planes[first : first + len(cuts)]]
            writer = self.writing[part_number] = PartWriter(part, cuts, first, offsets)
        writer.write(data, self, encoded)
        if writer.n_done == part.n_bytes:
            self.records[part_number] = b"".join(writer.records)
            del self.writing[part_number]

    def pwrite(self, data: Bytes | memoryview | bytes, byte_offset: int) -> None:
        """Write raw bytes at their place."""
        self.output.pwrite(data, byte_offset)

    def append(self, plane: int, stored: memoryview | bytes) -> None:
        """Take the next chunk of a zstd plane."""
        self.spool.add(plane, stored)

    def finish(self) -> Path:
        """Make the file whole and durable under its hidden name, and give that name.

        Raises UsageError when a part lacks bytes.
        """
        for number, data in enumerate(self.assets, self.n_tensors):
            self.write_part(number, ASSET_ROLE, 0, data)
        self.assets = []
        entries, table = self.entry_records()
        places = self.spool.places
        planes = [places.get(number, place) for number, place in enumerate(self.planes)]
        end = max((offset + stored_bytes for offset, stored_bytes in planes), default=HEADER_BYTES)
        table_offset = align(end, TABLE_ALIGNMENT)
        index_offset = align(table_offset + len(table), TABLE_ALIGNMENT)
        index = self.builder.build(self.metadata, self.recipe, entries, planes, len(table) // CHUNK.itemsize)
        header = Header(
            self.alignment,
            self.builder.required,
            index_offset + len(index),
            table_offset,
            index_offset,
            len(index),
            blake3(index).digest(),
        )
        self.output.pwrite(table, table_offset)
        self.output.pwrite(index, index_offset)
        self.output.sync()
        self.output.pwrite(pack_header(header), 0)
        self.output.sync()
        return self.output.hidden

    def entry_records(self) -> tuple[NDArray[Any], bytes]:
        """Give the entry records, names and forms left out, and the chunk table."""
        entries = np.zeros(len(self.entries), ENTRY)
        table = []
        n_chunks = 0
        for number, spec in enumerate(self.entries):
            first = self.first_part[number]
            for part_number, part in enumerate(spec.parts, first):
                if part.n_bytes and part_number not in self.records:
                    n_done = self.writing[part_number].n_done if part_number in self.writing else 0
                    raise UsageError(
                        f"{n_done} bytes written, expected {part.n_bytes}",
                        tensor=spec.name,
                        field=part.role,
                        expected=part.n_bytes,
                        found=n_done,
                    )
            records = b"".join(self.records.get(first + k, b"") for k in range(len(spec.parts)))
            digest = np.frombuffer(blake3(records).digest(), np.uint8)
            count = len(records) // CHUNK.itemsize
            entries[number] = (0, 0, 0, self.first_plane[first], n_chunks, count, digest)
            table.append(records)
            n_chunks += count
        return entries, b"".join(table)

    def commit(self) -> None:
        """Give the finished file its name."""
        self.spool.close()
        self.output.commit()

    def close(self) -> None:
        """Finish and commit; does nothing when the file has its name already."""
        if not self.output.is_closed:
            self.finish()
            self.commit()

    def abort(self) -> None:
        """Remove what was written; does nothing once the file has its name."""
        self.spool.close()
        self.output.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()


def as_bytes(data: Data) -> Bytes:
    """View anything contiguous as uint8; an array that is not contiguous is copied."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    try:
        return np.frombuffer(data, np.uint8) if memoryview(data).nbytes else np.zeros(0, np.uint8)
    except (ValueError, TypeError, BufferError) as error:
        raise UsageError(f"{type(data).__name__} is not contiguous bytes: {error}") from error
