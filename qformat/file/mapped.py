"""A regular file as read-only memory.

Decides what can be mapped: regular files, links followed. Never blocks on a pipe or device, and knows nothing of content.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from qformat.errors import FileError


def map_file(path: str | Path) -> memoryview:
    """Map a file; it is unmapped when the last view of it is gone.

    Raises FileError when the path is missing, unreadable, or not a regular file.
    """
    try:
        # Opening a pipe for reading would wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno or 0).lower() if isinstance(error, OSError) else str(error)
        raise FileError(f"cannot be opened: {why}", path=path) from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise FileError("not a regular file", path=path, expected="a .qfmt file")
        if status.st_size == 0:
            raise FileError("0 bytes, expected a .qfmt file", path=path, found=0)
        return memoryview(mmap.mmap(file, 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError, OverflowError) as error:
        raise FileError(f"cannot be mapped: {error}", path=path) from error
    finally:
        os.close(file)
