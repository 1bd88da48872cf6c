"""Files that have their names only once all of them are whole.

Decides how what was written under a hidden name becomes visible, all of it or nothing. Knows nothing of what is written, nor
how its bytes reach the disk.
"""

from __future__ import annotations

import os
import secrets
import shutil
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qformat.errors import FileError, show


class Hidden:
    """A hidden file or folder beside `path`, until `commit`; gone when this object is, wherever an interrupt comes.

    path      : final name
    names     : names beside `path` that files of a hidden folder take instead; readers begin with the first of them
    is_folder : whether what takes the name `path` is a folder
    place     : the hidden file, which the caller makes, or the hidden folder, which is made here

    Raises FileError when the file system refuses.
    """

    def __init__(self, path: str | Path, names: Sequence[str] = (), is_folder: bool = False) -> None:
        self.path, self.names = Path(path), names
        self.is_folder = is_folder or bool(names)
        # 60: names of 255 bytes are allowed, and a character has at most 4
        self.place = self.path.with_name(f".{self.path.name[:60]}.{secrets.token_hex(4)}.part")
        weakref.finalize(self, remove, self.place)
        if self.is_folder:
            with explain(self.path):
                self.place.mkdir()

    @property
    def entry(self) -> Path:
        """What a reader is given to read everything while it is hidden."""
        return self.place / self.names[0] if self.names else self.place

    def at(self, name: str) -> Path:
        """Give the hidden path of one file."""
        return self.place / name if self.is_folder else self.place

    def commit(self) -> None:
        """Give everything its name, and make the names durable.

        Raises FileError when the file system refuses; what was there before is then there again.
        """
        with explain(self.path):
            if self.names:
                self._place_all()
            elif self.is_folder and self.path.is_dir() and not self.path.is_symlink():
                self._exchange()
            else:
                os.replace(self.place, self.path)
            sync(self.path.parent)

    def abort(self) -> None:
        """Remove what has no name yet."""
        remove(self.place)

    def _exchange(self) -> None:
        """Take the place of a folder, and remove its files of the same names; it stays where it holds anything else."""
        held, made = sorted(os.listdir(self.path)), set(os.listdir(self.place))
        for name in held:
            if name not in made or (self.path / name).is_dir():
                message = f"the folder holds {show(name, quote=True)}, which is not written anew"
                raise FileError(message, path=self.path, found=name)
        old = self.place.with_suffix(".old")
        os.replace(self.path, old)
        try:
            os.replace(self.place, self.path)
        except BaseException:
            os.replace(old, self.path)
            raise
        for name in held:
            (old / name).unlink()
        old.rmdir()

    def _place_all(self) -> None:
        """Move files that are replaced away, the first one first, and the finished ones in, the first one last.

        So there is never a first file beside others that are not its own, wherever the power fails.
        """
        folder, moved = self.path.parent, list[tuple[Path, Path]]()
        old = [(folder / name, self.place / f"{name}.old") for name in self.names if os.path.lexists(folder / name)]
        new = [(self.place / name, folder / name) for name in reversed(self.names)]
        try:
            for source, target in (*old, *new):
                os.replace(source, target)
                moved.append((source, target))
        except BaseException:
            for source, target in reversed(moved):
                os.replace(target, source)
            raise
        self.abort()


def remove(place: Path) -> None:
    """Remove a hidden file or folder, if it is there."""
    if place.is_dir():
        shutil.rmtree(place, ignore_errors=True)
    else:
        place.unlink(missing_ok=True)


def sync(path: str | Path) -> None:
    """Make a file, or the names in a folder, durable."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def explain(path: Path) -> Iterator[None]:
    """Turn what the system says into one line about the path that was asked for."""
    try:
        yield
    except OSError as error:
        raise FileError(f"cannot be written: {os.strerror(error.errno or 0).lower()}", path=path) from error
