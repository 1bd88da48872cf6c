"""Where a file may be written: checked before any work is done, so that a refusal costs nothing.

Must not know what is written there, nor how.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from qformat.errors import UsageError

HEADER_SLACK = 1 << 22  # bytes that headers and padding may take beyond the tensors, when free space is looked at


def check_paths(src: Path, dst: Path, force: bool) -> None:
    """Refuse a destination that exists, or that is the source."""
    check_folder(dst)
    if dst.exists() or dst.is_symlink():
        if dst.exists() and dst.samefile(src):
            raise UsageError("destination is the source", path=dst)
        if dst.is_dir():
            raise UsageError("destination is a folder", path=dst)
        if not force:
            raise UsageError("destination exists; use --force to replace it", path=dst)


def check_folder(dst: Path) -> None:
    """Refuse a destination in a folder that does not exist."""
    if not dst.parent.is_dir():
        raise UsageError(f"folder '{dst.parent}' does not exist", path=dst)


def check_space(dst: Path, n_bytes: int) -> None:
    """Refuse a conversion that the disk has no room for."""
    free = shutil.disk_usage(dst.parent).free
    if free < n_bytes + HEADER_SLACK:
        raise UsageError(f"{n_bytes} bytes to write, {free} free", path=dst, expected=n_bytes, found=free)
