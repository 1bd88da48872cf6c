"""Where a file may be written: checked before any work is done, so that a refusal costs nothing.

Must not know what is written there, nor how.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from qformat.errors import UsageError, show

HEADER_SLACK = 1 << 22  # bytes that headers and padding may take beyond the tensors, when free space is looked at


def check_paths(sources: Iterable[Path], dst: Path, force: bool, is_folder: bool = False) -> None:
    """Refuse a destination that is of the source, or that exists and is not to be replaced; an empty folder may be taken.

    is_folder : whether a folder may be made there
    """
    check_folder(dst)
    if not os.path.lexists(dst):
        return
    if dst.exists() and any(dst.samefile(src) for src in sources if src.exists()):
        raise UsageError("destination is the source", path=dst)
    if dst.is_dir() and (not is_folder or dst.is_symlink() or dst.name in ("", "..")):
        raise UsageError("destination is a folder", path=dst)
    if not force and not (dst.is_dir() and not os.listdir(dst)):
        raise UsageError("destination exists; use --force to replace it", path=dst)


def check_held(sources: Iterable[Path], dst: Path, names: Collection[str]) -> None:
    """Refuse to replace what a destination holds, unless it is a folder of nothing but files that are written anew.

    names : of the files in the folder that is to be made; none where it is to be a file
    """
    if not os.path.lexists(dst) or (not names and not dst.is_dir()):
        return
    if not names:
        raise UsageError("destination is a folder", path=dst)
    if not dst.is_dir():
        raise UsageError("destination is a file, and a folder is to be written", path=dst)
    if any(dst.resolve() in (src.parent.resolve(), *src.resolve().parents) for src in sources):
        raise UsageError("destination is the folder of the source", path=dst)
    for name in sorted(os.listdir(dst)):
        if name not in names or (dst / name).is_dir():
            message = f"destination holds {show(name, quote=True)}, which is not written anew: it stays unless you remove it"
            raise UsageError(message, path=dst, found=name, expected=tuple(names))


def check_beside(sources: Iterable[Path], receipt: Path, dst: Path, force: bool) -> None:
    """Refuse a receipt in the place of a source or of the destination, and one that exists already unless `force`."""
    if receipt.resolve() == dst.resolve():
        raise UsageError("the receipt has the name of the destination", path=receipt)
    check_paths(sources, receipt, force)


def check_folder(dst: Path) -> None:
    """Refuse a destination in a folder that does not exist."""
    if not dst.parent.is_dir():
        raise UsageError(f"folder '{dst.parent}' does not exist", path=dst)


def check_space(dst: Path, n_bytes: int) -> None:
    """Refuse a conversion that the disk has no room for."""
    free = shutil.disk_usage(dst.parent).free
    if free < n_bytes + HEADER_SLACK:
        raise UsageError(f"{n_bytes} bytes to write, {free} free", path=dst, expected=n_bytes, found=free)
