"""Keeps machine code in files: one for each kernel, types of arguments and processor, each under a digest of its own.

numba asks for it through the two methods of its own file cache. That one keeps a list of files and numbers them: processes that
write at once come to the same number, and a kernel is then given another's code. Here a file is named by what it is for, is
there as a whole or not at all, and is not believed when damaged.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from numba.core.serialize import dumps

KEPT = 3  # folders of a module: one in use, the others of versions that take turns with it
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Files:
    """The files of a module's kernels, in the folder `<module>-<digest of its sources>`."""

    folder: Path

    def load(self, key: Any) -> Any:
        """Give what was kept under a key; None where it is missing or damaged."""
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        content = data[DIGEST_BYTES:]
        return pickle.loads(content) if data[:DIGEST_BYTES] == _digest(content) else None

    def save(self, key: Any, value: Any) -> None:
        """Keep a value under a key; what the key held before is replaced. Raises OSError where the folder takes no files."""
        if not self.folder.is_dir():
            self._make_room()
            self.folder.mkdir(parents=True, exist_ok=True)
        content = dumps(value)  # type: ignore[no-untyped-call]  # numba's
        hidden = self.folder / f".{uuid4().hex}"
        try:
            hidden.write_bytes(_digest(content) + content)
            os.replace(hidden, self._path(key))
        except OSError:
            hidden.unlink(missing_ok=True)
            raise

    def _path(self, key: Any) -> Path:
        return self.folder / _digest(repr(key).encode()).hex()

    def _make_room(self) -> None:
        """Remove the module's folders but for the newest; the sources that they were made from are gone or seldom used."""
        folders = self.folder.parent.glob(f"{self.folder.name.rpartition('-')[0]}-*")
        for folder in sorted(folders, key=_when_made, reverse=True)[KEPT - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)


def _when_made(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
