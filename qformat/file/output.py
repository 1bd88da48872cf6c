"""A file that has its name only once it is whole, written at any offset.

Decides how bytes reach the disk: durable before the rename. Knows nothing of what is written.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import numpy as np

from qformat.disk import Writeback, reserve
from qformat.file.chunks import Bytes
from qformat.file.hidden import Hidden, explain


class Output:
    """A hidden file beside `path`, with the mode that the umask gives.

    n_bytes: space to reserve at once

    Raises FileError when the file system refuses.
    """

    def __init__(self, path: str | Path, n_bytes: int) -> None:
        self.name = Hidden(path)
        self.hidden = self.name.place
        self.folder = str(self.name.path.parent)
        self.is_closed = False
        with self.explain():
            self.file = os.open(self.hidden, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with self.explain():
                reserve(self.file, n_bytes)
            self.writeback = Writeback(self.file)
        except BaseException:
            self.abort()
            raise

    def pwrite(self, data: Bytes | memoryview | bytes, byte_offset: int) -> None:
        """Write all of `data` at an offset."""
        rest = data.data if isinstance(data, np.ndarray) else memoryview(data)
        begin, total = byte_offset, len(rest)
        with self.explain():
            while rest:
                n_bytes = os.pwrite(self.file, rest, byte_offset)
                byte_offset += n_bytes
                rest = rest[n_bytes:]
        self.writeback.written(begin, total)

    def sync(self) -> None:
        """Make what was written durable."""
        with self.explain():
            os.fsync(self.file)

    def commit(self) -> None:
        """Give the file its name, and make the name durable."""
        self.name.commit()
        self.close()

    def abort(self) -> None:
        """Remove the file, if it has no name yet."""
        if not self.is_closed:
            self.close()
            with suppress(OSError):
                self.name.abort()

    def close(self) -> None:
        """Close the file."""
        self.is_closed = True
        os.close(self.file)

    def explain(self) -> AbstractContextManager[None]:
        """Turn what the system says into one line about the path that was asked for."""
        return explain(self.name.path)
