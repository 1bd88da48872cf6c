"""Map a regular file read-only, or say in one line what stands in its place.

Decides what may be mapped: a regular file of at least one byte, reached through links if need be. Folders, pipes,
sockets and devices are refused before they are opened, so nothing blocks. Recognises by their first bytes the things
that are found where weights should be: git-lfs pointers, web pages, pickles, archives, other containers.

Must not know any container's structure beyond those first bytes. Uses the standard library alone.
"""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from qformat.closing import Closing
from qformat.errors import FileError, UsageError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)

#: Stands in place of a file's first 8 bytes while its header is written over.
EDIT_MARK = b"QFMTEDIT"

_PICKLE = "a pickle, which could run code and is never read; convert it to safetensors where it came from"
_SIGNATURES = (
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer instead of the file; fetch it with 'git lfs pull'"),
    (b"PK\x03\x04", "a ZIP archive, as torch.save writes; convert it to safetensors where it came from"),
    (b"GGUF", "a GGUF file"),
    (EDIT_MARK, "a file whose header was cut off while it was written; put the old one back: cat .NAME.header 1<> NAME"),
    (b"\x89QFMT\r\n\x1a", "a qfmt file"),
    (b"lmgg", "a file of GGUF's predecessor GGML; convert it to GGUF with the tools that wrote it"),
    (b"fmgg", "a file of GGUF's predecessor GGMF; convert it to GGUF with the tools that wrote it"),
    (b"tjgg", "a file of GGUF's predecessor GGJT; convert it to GGUF with the tools that wrote it"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
)
_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")


class Mapped(Closing):
    """A regular file mapped read-only: `data` (memoryview of the whole file), `n_bytes`, `path`.

    The length is taken once, when the file is opened. Views of `data` that outlive `close` stay valid: the mapping
    is released with the last of them. The file must not be shortened by others while it is mapped.
    """

    __slots__ = ("_map", "data", "n_bytes", "path")

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self._map = mapping
        self.data = memoryview(mapping)
        self.n_bytes = len(mapping)

    def view(self, start: int, stop: int) -> memoryview:
        """Give some bytes of the file. Raises UsageError once it is closed."""
        try:
            return self.data[start:stop]
        except ValueError as err:
            raise UsageError("the file is closed", path=self.path) from err

    def close(self) -> None:
        """Release the mapping, or leave that to the last view of it. May be called again."""
        try:
            self.data.release()
            self._map.close()
        except BufferError:
            return  # a caller still holds a view; the map goes with it


def open_mapped(path: str | os.PathLike[str]) -> Mapped:
    """Map a regular file read-only; links are followed.

    Raises FileError, without blocking, for what is missing, unreadable, empty, a folder, a pipe, a socket, a device
    or a loop of links.
    """
    try:
        # stat comes before open: opening a device may already act on it, opening a pipe may wait for a writer.
        _refuse_irregular(path, os.stat(path).st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            status = os.fstat(fd)
            _refuse_irregular(path, status.st_mode)
            if status.st_size == 0:
                raise FileError("empty file (0 bytes)", path=os.fspath(path), found=0, expected="a file with content")
            return Mapped(Path(path), mmap.mmap(fd, status.st_size, access=mmap.ACCESS_READ))
        finally:
            os.close(fd)
    except OSError as err:
        raise FileError(_reason(err), path=os.fspath(path), found=err.strerror) from err
    except (ValueError, OverflowError) as err:
        raise FileError(f"cannot be opened: {err}", path=os.fspath(path)) from err


def explain_foreign(data: bytes | memoryview) -> str | None:
    """Name what a file is by its first bytes, in words that end a sentence: "found ...".

    data   : the file, or at least its first 64 bytes
    returns: None for anything not recognised. Safetensors has no signature: "{" after a plausible length stands for it.

    >>> explain_foreign(b"<!DOCTYPE html><html>")
    'an HTML page, probably of a download that failed'
    """
    head = bytes(data[:64])
    for signature, words in _SIGNATURES:
        if head.startswith(signature):
            return words
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_HTML):
        return "an HTML page, probably of a download that failed"
    # A safetensors header of 0x280 bytes starts like a pickle of protocol 2, but only it has "{" as ninth byte.
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000:
        return "a safetensors file"
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return _PICKLE
    if len(data) and not any(head):
        return "zeros, as of a download that was cut short"
    return None


def _refuse_irregular(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((words for is_kind, words in _KINDS if is_kind(mode)), "not a regular file")
    raise FileError(f"{kind}, expected a regular file", path=os.fspath(path), found=kind, expected="a regular file")


def _reason(err: OSError) -> str:
    if isinstance(err, FileNotFoundError):
        return "no such file"
    return f"cannot be opened: {err.strerror or err}"
