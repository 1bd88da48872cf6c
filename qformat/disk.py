"""Space on the disk for a file that is written, and its bytes on their way there while others are still made.

Decides when the system is told to begin with what was written, so that making a file durable at its end waits for little.
Whether it does is its own affair: nothing else depends on it. Knows a descriptor and no content.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

WINDOW_BYTES = 16 << 20  # smaller windows are more requests, larger ones leave more for the end


def reserve(file: int, n_bytes: int) -> None:
    """Reserve space, so that a full disk is known before the work; file systems that cannot are left alone.

    Raises OSError where there is no room.
    """
    if n_bytes and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, n_bytes)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise


class Writeback:
    """Counts the bytes written to one file, and sends off a window of them at a time."""

    __slots__ = ("begin", "end", "file", "n_bytes")

    def __init__(self, file: int) -> None:
        self.file, self.begin, self.end, self.n_bytes = file, 0, 0, 0

    def written(self, byte_offset: int, n_bytes: int) -> None:
        """Take note of bytes that were written, and have the disk begin once they are many."""
        self.begin = min(self.begin, byte_offset) if self.n_bytes else byte_offset
        self.end = max(self.end, byte_offset + n_bytes)
        self.n_bytes += n_bytes
        if self.n_bytes >= WINDOW_BYTES:
            self.send()

    def send(self) -> None:
        """Have the disk begin; what it has not written yet stays in memory meanwhile."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # a file system that does not care
                os.posix_fadvise(self.file, self.begin, self.end - self.begin, os.POSIX_FADV_DONTNEED)
        self.n_bytes = self.end = 0
