"""A file being written whose tensors have known places: bytes of any tensor, in any order, from any thread.

Decides how bytes reach the file and when it is whole. Must not know how a header is made, where bytes come from, nor
rename or sync files: the caller gives a path that does not exist yet and moves the finished file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from qformat.disk import Writeback, reserve
from qformat.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class Place(Protocol):
    """Where a tensor's bytes lie."""

    @property
    def name(self) -> str: ...
    @property
    def byte_offset(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...


K = TypeVar("K")
P = TypeVar("P", bound=Place)


class PlacedWriter(Generic[K, P]):
    """Writes one file; a context manager that ends with `close` unless an error left it.

    target  : a path that does not exist, created with the modes the umask leaves of 0o666; or the descriptor of an empty
              file open for writing, which the writer closes
    tensors : each one's place, by what `write` calls it
    n_bytes : of the whole file
    parts   : (byte offset, bytes) of what is written at once: the header, padding that is not zeros

    Raises UsageError when the file cannot be made.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | int,
        tensors: Mapping[K, P],
        n_bytes: int,
        parts: Iterable[tuple[int, ReadableBuffer]],
    ) -> None:
        self.tensors = tensors
        self.n_bytes = n_bytes
        self.path = None if isinstance(target, int) else os.fspath(target)
        self._n_left = sum(info.n_bytes for info in tensors.values())
        self._count = threading.Lock()
        self._fd = -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = target if isinstance(target, int) else os.open(target, flags, 0o666)
            os.ftruncate(self._fd, n_bytes)  # what nobody writes reads as zeros: canonical padding
            reserve(self._fd, n_bytes)
            self._writeback = Writeback(self._fd)
        except (OSError, ValueError, OverflowError) as err:
            self._release()
            raise UsageError(f"cannot be created: {_reason(err)}", path=self.path) from err
        for byte_offset, data in parts:
            self._put(memoryview(data), byte_offset)

    def write(self, tensor: K, byte_offset: int, data: ReadableBuffer) -> None:
        """Write bytes of one tensor; each byte once.

        byte_offset: from the start of the tensor
        data       : contiguous; arrays of ml_dtypes types are passed as `array.view("uint8")`

        Raises UsageError when there is no such tensor, the bytes do not fit in it, or the disk refuses them.
        """
        info = self.tensors.get(tensor)
        if info is None:
            raise UsageError("there is no such tensor in the file being written", path=self.path, tensor=str(tensor))
        try:
            view = memoryview(data)
            if not view.c_contiguous:
                raise BufferError("its bytes are not contiguous")
            view = view.cast("B") if view.nbytes else memoryview(b"")
        except (BufferError, TypeError, ValueError) as err:
            raise UsageError(f"the data cannot be read as bytes: {err}", path=self.path, tensor=info.name) from err
        stop = byte_offset + len(view)
        if byte_offset < 0 or stop > info.n_bytes:
            message = f"bytes {byte_offset} to {stop} were given, expected 0 to {info.n_bytes} at most"
            raise UsageError(message, path=self.path, tensor=info.name, expected=info.n_bytes, found=stop)
        self._put(view, info.byte_offset + byte_offset)
        with self._count:
            self._n_left -= len(view)
            self._writeback.written(info.byte_offset + byte_offset, len(view))

    def close(self) -> None:
        """Close the file, which is whole. May be called again.

        Raises UsageError when the bytes written are not as many as the tensors hold.
        """
        if self._fd < 0:
            return
        self._release()
        if self._n_left:
            n_bytes = sum(info.n_bytes for info in self.tensors.values())
            message = f"{n_bytes - self._n_left} bytes of tensors were written, expected {n_bytes}"
            raise UsageError(message, path=self.path, expected=n_bytes, found=n_bytes - self._n_left)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._release()

    def _release(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _put(self, rest: memoryview, at: int) -> None:
        while rest:
            try:
                n_put = os.pwrite(self._fd, rest, at)
            except OSError as err:
                self._release()
                raise UsageError(f"cannot be written: {_reason(err)}", path=self.path, offset=at) from err
            rest, at = rest[n_put:], at + n_put


def _reason(err: Exception) -> str:
    reason = err.strerror if isinstance(err, OSError) else None
    return (reason or str(err)).lower()
