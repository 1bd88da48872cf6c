"""Give a file another header and carry all the rest over, byte for byte.

Decides how the new bytes reach the disk so that no interruption leaves a file that looks whole and is not. Must not know
what a header says.

In place, for a header as long as the old one: the old header is kept in a hidden file beside, EDIT_MARK takes the place of
the first 8 bytes, the header's other bytes follow, its first 8 come last; each step is durable before the next begins. Eight
bytes at the start of a file are one sector, written whole or not at all, so whatever is cut off leaves the old header, the
new one, or a file that every reader refuses by its first bytes, with the header it had beside it. An error puts the old
header back at once. The data is never touched.

By copy, for all else: a hidden file, durable and proved against the source before it takes the name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qconvert.containers.mapped import EDIT_MARK, Mapped, open_mapped
from qformat.errors import FileError, NotExact, UsageError
from qformat.file.hidden import sync
from qformat.file.output import Output

CHUNK_BYTES = 1 << 22
N_MARK = len(EDIT_MARK)


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A file's new header, and where everything else goes.

    old, new   : all bytes before the data, as they are and as they shall be
    pieces     : (byte offset in the old file, in the new one, n_bytes) of what is carried over; zeros lie between
    n_old_bytes, n_bytes: of the whole file, before and after
    """

    old: bytes
    new: bytes
    pieces: tuple[tuple[int, int, int], ...]
    n_old_bytes: int
    n_bytes: int

    @property
    def fits(self) -> bool:
        """Tell whether nothing but the header's own bytes changes."""
        is_as_long = len(self.new) == len(self.old) and self.n_bytes == self.n_old_bytes
        return is_as_long and all(before == after for before, after, _ in self.pieces)


def write_in_place(path: Path, change: Rewrite) -> None:
    """Write a header that fits over the old one, durably; see above.

    Raises FileError when the file system refuses, UsageError when the header is no longer the one that was read, or when
    one kept from an earlier edit lies beside the file.
    """
    name = os.fsdecode(os.fsencode(path.name)[:240])  # of the 255 bytes that a name may have
    kept = path.with_name(f".{name}.header")
    old, new = change.old, change.new
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise _unwritable(err, path) from err
    try:
        if os.pread(fd, len(old), 0) != old:
            raise UsageError("the header changed while it was being edited", path=path, offset=0)
        kept_fd = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _put_durably(kept_fd, ((0, old),))
            sync(path.parent)
            _put_durably(fd, ((0, EDIT_MARK), (N_MARK, new[N_MARK:]), (0, new[:N_MARK])))
        except BaseException:
            with suppress(OSError):
                _put_durably(fd, ((N_MARK, old[N_MARK:]), (0, old[:N_MARK])))
            raise
        finally:
            os.close(kept_fd)
            if os.pread(fd, len(old), 0) in (old, new):
                kept.unlink(missing_ok=True)
    except FileExistsError as err:
        message = f"'{kept.name}' lies beside it: another edit is under way, or one was cut off; remove it to go on"
        raise UsageError(message, path=path, found=kept.name) from err
    except OSError as err:
        raise _unwritable(err, path, f"; the header it had is kept in '{kept.name}'" if kept.exists() else "") from err
    finally:
        os.close(fd)


def write_copy(
    source: Path,
    target: Path,
    change: Rewrite,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Write the whole file anew; it takes its name only once it is durable and proved.

    target  : may be the source itself, whose mode and owner the copy then takes over
    progress: told the stage, bytes done and bytes in all

    Raises FileError when the file system refuses, NotExact when the copy is not what it should be.
    """
    total = sum(n_bytes for *_, n_bytes in change.pieces)
    with open_mapped(source) as mapped:
        output = Output(target, change.n_bytes)
        try:
            with output.explain():
                os.ftruncate(output.file, change.n_bytes)
            if source == target:
                _take_over_mode(source, output)
            output.pwrite(change.new, 0)
            for before, after, n_bytes, done in _chunks(change):
                output.pwrite(np.frombuffer(mapped.data[before : before + n_bytes], np.uint8), after)
                progress("write", done, total)
            output.sync()
            with open_mapped(output.hidden) as written:
                _compare(mapped.data, written, change, lambda done: progress("prove", done, total))
            output.commit()
        finally:
            output.abort()


def _chunks(change: Rewrite) -> Iterable[tuple[int, int, int, int]]:
    """Cut the pieces: offset before, offset after, n_bytes, bytes done with this one."""
    done = 0
    for before, after, n_bytes in change.pieces:
        for start in range(0, n_bytes, CHUNK_BYTES):
            n_chunk = min(CHUNK_BYTES, n_bytes - start)
            done += n_chunk
            yield before + start, after + start, n_chunk, done


def _compare(source: memoryview, written: Mapped, change: Rewrite, progress: Callable[[int], None]) -> None:
    if written.n_bytes != change.n_bytes or bytes(written.data[: len(change.new)]) != change.new:
        message = f"{written.n_bytes} bytes were written, expected {change.n_bytes} that begin with the header"
        raise NotExact(message, path=written.path)
    for before, after, n_bytes, done in _chunks(change):
        mine = np.frombuffer(source[before : before + n_bytes], np.uint8)
        copy = np.frombuffer(written.data[after : after + n_bytes], np.uint8)
        if not np.array_equal(mine, copy):
            where = after + int(np.argmax(mine != copy))
            raise NotExact("the byte is not its source's", path=written.path, offset=where)
        progress(done)


def _take_over_mode(source: Path, output: Output) -> None:
    status = source.stat()
    with suppress(PermissionError):  # a group one does not belong to; the mode still counts
        os.fchown(output.file, status.st_uid, status.st_gid)
    with output.explain():
        os.fchmod(output.file, status.st_mode & 0o7777)


def _put_durably(fd: int, steps: Iterable[tuple[int, bytes]]) -> None:
    """Write each run of bytes at its offset, durable before the next."""
    for byte_offset, data in steps:
        rest = memoryview(data)
        while rest:
            n_put = os.pwrite(fd, rest, byte_offset)
            rest, byte_offset = rest[n_put:], byte_offset + n_put
        os.fsync(fd)


def _unwritable(err: OSError, path: Path, more: str = "") -> FileError:
    return FileError(f"cannot be written: {(err.strerror or str(err)).lower()}{more}", path=path)
