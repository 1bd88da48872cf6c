"""Checking every byte of a `.qfmt` file.

Decides the order: documents and names, then the file from front to back, padding between planes included. What a byte
is checked against is decided by the modules it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qformat.errors import FileError
from qformat.file.records import CHUNK, HEADER_BYTES
from qformat.file.table import Table, check_table
from qformat.threads import spread

if TYPE_CHECKING:
    from qformat.file.read import File

BATCH_BYTES, BATCH_CHECKS = 1 << 22, 256


def verify_file(file: File, progress: Callable[[int, int], None] | None, anew: bool = True) -> None:
    """Check documents, names, chunk records, chunks and padding, whatever `File` was told to leave out.

    anew : also what was checked when it was read

    Raises FileError for what is wrong first.
    """
    _ = file.metadata, file.recipe
    with closing(spread(run_checks, batched(checks(file, anew)))) as done:
        for end in done:
            if progress:
                progress(end, len(file.data))
    if progress:
        progress(len(file.data), len(file.data))


class Check(NamedTuple):
    """What is checked by `run`, as many bytes, and where in the file these end."""

    run: Callable[[], object]
    n_bytes: int
    end: int


def checks(file: File, anew: bool) -> Iterator[Check]:
    """Give all checks from front to back; each may be made by any thread."""
    entries = [*file.tensors.values(), *file.assets.values()]
    planes = [(entry, part, plane) for entry in entries for part in entry.parts for plane in part.planes]
    # Empty planes share their place with the one behind them: the longer one comes last.
    planes.sort(key=lambda each: (each[2].byte_offset, each[2].stored_bytes))
    end, tables = HEADER_BYTES, dict[int, Table]() if anew or not file.is_checked else dict(file.tables)
    for entry, part, plane in planes:
        yield Check(partial(check_padding, file.data, end, plane.byte_offset), 0, plane.byte_offset)
        read = partial(check_table, file.data, file.header, file.index, entry, verify=True)
        end = plane.byte_offset + plane.stored_bytes
        try:
            # What is checked here is checked for those who read as well.
            table = tables[entry.number] = file.tables[entry.number] = tables.get(entry.number) or read()
        except FileError:
            yield Check(read, 0, end)  # which raises it again, once what is before it has been checked
            return
        for k in range(part.n_stripes):
            n_bytes = plane.stored_bytes // part.n_stripes
            yield Check(partial(table.decode, file.data, part, plane, k, verify=True), n_bytes, end)
    yield Check(partial(check_padding, file.data, end, file.header.table_offset), 0, file.header.table_offset)
    table_end = file.header.table_offset + file.index.counts["chunks"] * CHUNK.itemsize
    yield Check(partial(check_padding, file.data, table_end, file.header.index_offset), 0, file.header.index_offset)


def batched(found: Iterable[Check]) -> Iterator[Sequence[Check]]:
    """Join checks until they are worth a thread's while."""
    batch, n_bytes = list[Check](), 0
    for check in found:
        batch.append(check)
        n_bytes += check.n_bytes
        if n_bytes >= BATCH_BYTES or len(batch) >= BATCH_CHECKS:
            yield batch
            batch, n_bytes = [], 0
    if batch:
        yield batch


def run_checks(batch: Sequence[Check]) -> int:
    """Make some checks in order; give where in the file they end."""
    for check in batch:
        check.run()
    return batch[-1].end


def check_padding(data: memoryview, begin: int, end: int) -> None:
    """Refuse padding that is not zero."""
    padding = np.frombuffer(data[begin:end], np.uint8)
    if padding.any():
        offset = begin + int(padding.argmax())
        raise FileError(
            f"padding byte is {data[offset]:#04x}, expected 0", field="padding", offset=offset, expected=0, found=data[offset]
        )
