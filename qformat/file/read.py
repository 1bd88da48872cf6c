"""Reading a `.qfmt` file.

Decides what is checked when: header and index at open, chunk records of an entry and every chunk at their first use
(spec/qfmt.md, "Decoding"). Hands out bytes; what they mean is the business of descriptors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from blake3 import blake3

from qformat.closing import Closing
from qformat.errors import FileError, QFormatError, UsageError
from qformat.file.chunks import Bytes, paste
from qformat.file.header import Header, unpack_header
from qformat.file.index import Index
from qformat.file.index_check import check_index
from qformat.file.mapped import map_file
from qformat.file.metadata import Typed, decode
from qformat.file.records import ASSET_ROLE, HEADER_BYTES, PartEntry, TensorEntry
from qformat.file.specs import is_asset_name
from qformat.file.table import Table, check_table
from qformat.file.verify import verify_file

CACHED_STRIPES = 8


class Entries(Mapping[str, TensorEntry]):
    """Tensors or assets by name, in the order of the file; names and objects are made when asked for.

    Raises FileError at the first use of names when two are the same, or one is not allowed.
    """

    def __init__(self, file: File, begin: int, end: int, is_allowed: Callable[[str], bool] | None = None) -> None:
        self.file, self.begin, self.end, self.is_allowed = file, begin, end, is_allowed
        self.found: dict[str, int] | None = None

    def __len__(self) -> int:
        return self.end - self.begin

    def __iter__(self) -> Iterator[str]:
        return iter(self.numbers())

    def __getitem__(self, name: str) -> TensorEntry:
        return self.file.build_entry(self.numbers()[name], name)

    def __contains__(self, name: object) -> bool:
        return name in self.numbers()

    def numbers(self) -> dict[str, int]:
        """Give the number of every name."""
        if self.found is None:
            names = self.file.index.names(self.begin, self.end)
            found = {name: number for number, name in enumerate(names, self.begin)}
            if len(found) != len(names):
                twice = next(name for number, name in enumerate(names, self.begin) if found[name] != number)
                raise FileError("name given twice", path=self.file.path, tensor=twice)
            wrong = next((name for name in names if self.is_allowed and not self.is_allowed(name)), None)
            if wrong is not None:
                raise FileError(
                    f"asset name {wrong!r}, expected a relative path with '/' between plain names",
                    path=self.file.path,
                    found=wrong,
                )
            self.found = found
        return self.found


class File(Closing):
    """An open `.qfmt` file, mapped; may be read from several threads.

    path   : as given
    header : its fields
    tensors: entries by name, in the order of the file
    assets : entries of whole files by name

    Views that `read` gave stay valid after `close`.
    """

    def __init__(self, path: str | Path, data: memoryview, verify: bool = True) -> None:
        self.path, self.data, self.is_checked = str(path), data, verify
        with self.placed():
            self.header, self.index = read_index(data)
        n_tensors = self.index.counts["tensors"]
        self.tensors = Entries(self, 0, n_tensors)
        self.assets = Entries(self, n_tensors, len(self.index.entries), is_asset_name)
        self.tables: dict[int, Table] = {}
        self.stripes: OrderedDict[tuple[int, int, int], Bytes] = OrderedDict()
        self.lock = Lock()

    @cached_property
    def forms(self) -> list[int]:
        """Give the number of every entry's form."""
        found: list[int] = self.index.entries["form"].tolist()
        return found

    @property
    def metadata(self) -> dict[str, Typed]:
        """Give the typed metadata, in the order of the file."""
        with self.placed():
            return decode(self.index.document(0))

    @property
    def recipe(self) -> Any:
        """Give what the file says about giving its source back; None if nothing."""
        with self.placed():
            return self.index.document(1)

    def asset(self, name: str) -> bytes:
        """Give the bytes of an asset.

        Raises UsageError when there is none of this name.
        """
        if name not in self.assets:
            raise UsageError(f"no asset {name!r}", path=self.path, found=name)
        return self.read(self.assets[name], ASSET_ROLE).tobytes()

    def form_of(self, name: str) -> int:
        """Give the number of a tensor's form: all that entries say but for name, place and digests."""
        return self.forms[self.tensors.numbers()[name]]

    def build_entry(self, number: int, name: str) -> TensorEntry:
        """Build the object for an entry, checked."""
        with self.placed():
            entry = self.index.entry(number, name)
            is_asset = number >= self.index.counts["tensors"]
            plain = [(part.role, part.dtype, part.shape) for part in entry.parts]
            if is_asset and plain != [(ASSET_ROLE, "uint8", (entry.n_bytes,))]:
                raise FileError(f"asset {name!r} has parts {plain}, expected one of role 'asset'", found=plain)
            return entry

    def read(self, entry: TensorEntry, role: str, start: int = 0, stop: int | None = None) -> Bytes:
        """Give bytes start..stop of a part, checked against their digests.

        entry  : from `tensors` or `assets` of this file
        returns: read-only uint8; a view of the mapped file where the part is stored as it is, otherwise a new array

        Raises UsageError when there is no such role or range, FileError when the bytes do not match their digests.
        """
        if not self.data:
            raise UsageError("the file is closed", path=self.path)
        part = next((part for part in entry.parts if part.role == role), None)
        if part is None:
            roles = ", ".join(part.role for part in entry.parts)
            raise UsageError(f"no part {role!r}, expected one of {roles}", path=self.path, tensor=entry.name, found=role)
        stop = part.n_bytes if stop is None else stop
        if not 0 <= start <= stop <= part.n_bytes:
            raise UsageError(
                f"bytes {start} to {stop}, expected a range within {part.n_bytes}",
                path=self.path,
                tensor=entry.name,
                field=role,
            )
        with self.placed():
            return self.read_part(entry, part, start, stop)

    def read_part(self, entry: TensorEntry, part: PartEntry, start: int, stop: int) -> Bytes:
        """Give bytes of a part, within its length."""
        stripes = range(start // part.stripe_bytes, -(-stop // part.stripe_bytes) if stop > start else 0)
        if is_mapped(part):
            plane = part.planes[0]
            table = self.table(entry)
            for k in stripes:
                table.chunk(self.data, part, plane, k, self.is_checked)
            return np.frombuffer(self.data[plane.byte_offset + start : plane.byte_offset + stop], np.uint8)
        out = np.empty(stop - start, np.uint8)
        for k in stripes:
            first = k * part.stripe_bytes
            stripe = self.stripe(entry, part, k)
            begin, end = max(start, first), min(stop, first + len(stripe))
            out[begin - start : end - start] = stripe[begin - first : end - first]
        out.flags.writeable = False
        return out

    def stripe(self, entry: TensorEntry, part: PartEntry, k: int) -> Bytes:
        """Give stripe k of a part, decoded; the last few are remembered, as rows are read a few at a time."""
        key = (entry.number, part.planes[0].first_chunk, k)
        with self.lock:
            if key in self.stripes:
                self.stripes.move_to_end(key)
                return self.stripes[key]
        table = self.table(entry)
        columns = [table.decode(self.data, part, plane, k, self.is_checked) for plane in part.planes]
        stripe = np.empty(sum(len(column) for column in columns), np.uint8)
        for plane, column in zip(part.planes, columns, strict=True):
            paste(stripe, part.block_bytes, plane.begin, plane.end, column)
        with self.lock:
            self.stripes[key] = stripe
            while len(self.stripes) > CACHED_STRIPES:
                self.stripes.popitem(last=False)
        return stripe

    def table(self, entry: TensorEntry) -> Table:
        """Give the chunk records of an entry, checked at their first use."""
        table = self.tables.get(entry.number)
        if table is None:
            table = check_table(self.data, self.header, self.index, entry, self.is_checked)
            self.tables[entry.number] = table
        return table

    def verify(self, progress: Callable[[int, int], None] | None = None, anew: bool = True) -> None:
        """Check every byte of the file.

        progress: called with bytes done and bytes in all
        anew    : also what was checked when it was read

        Raises FileError that names tensor, part, chunk and offset of what is wrong first.
        """
        with self.placed():
            read_index(self.data)
            verify_file(self, progress, anew)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Add the path to errors that know only what is inside the file."""
        try:
            yield
        except QFormatError as error:
            error.path = error.path or self.path
            raise

    def close(self) -> None:
        """Let go of the file; it is unmapped when the last view is gone."""
        self.data = memoryview(b"")


def open_file(path: str | Path, verify: bool = True) -> File:
    """Open a `.qfmt` file: header and index are checked, no payload is read.

    verify: False leaves out the digests of chunks; header and index are checked all the same

    Raises FileError when the path is not a whole, sound `.qfmt` file.
    """
    return File(path, map_file(path), verify)


def is_mapped(part: PartEntry) -> bool:
    """Tell whether a part is stored as it is read."""
    return len(part.planes) == 1 and part.planes[0].encoding == "raw"


def read_index(data: memoryview) -> tuple[Header, Index]:
    """Check header and index, and give both."""
    header = unpack_header(bytes(data[:HEADER_BYTES]), len(data))
    records = data[header.index_offset :]
    digest = blake3(records).digest()
    if digest != header.index_digest:
        raise FileError(
            f"BLAKE3 of the index is {digest.hex()}, expected {header.index_digest.hex()}",
            field="index_digest",
            offset=header.index_offset,
            expected=header.index_digest,
            found=digest,
        )
    index = Index(records, header.index_offset)
    check_index(index, header)
    return header, index
