"""Write a planned GGUF file: the header at once, then the bytes of any tensor in any order.

Decides how bytes reach the file and when it is whole. Must not know how a header is made, where bytes come from, nor
rename or sync files: the caller gives a path that does not exist yet and moves the finished file.
"""

from __future__ import annotations

import os
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from qconvert.containers.gguf_plan import Plan
from qformat.errors import UsageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class GGUFWriter:
    """A file being written; a context manager that ends with `close` unless an error left it.

    target: a path that does not exist, created with the modes the umask leaves of 0o666; or the descriptor of an
            empty file open for writing, which the writer closes
    plan  : from `plan_gguf` or `plan_from_recipe`

    Raises UsageError when the file cannot be made.
    """

    def __init__(self, target: str | os.PathLike[str] | int, plan: Plan) -> None:
        self.tensors = plan.tensors
        self.n_bytes = plan.n_bytes
        self.path = None if isinstance(target, int) else os.fspath(target)
        self._n_left = sum(info.n_bytes for info in plan.tensors)
        self._count = threading.Lock()
        self._fd = -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._fd = target if isinstance(target, int) else os.open(target, flags, 0o666)
            os.ftruncate(self._fd, plan.n_bytes)  # what nobody writes reads as zeros: canonical padding
        except (OSError, ValueError, OverflowError) as err:
            self._release()
            raise UsageError(f"cannot be created: {_reason(err)}", path=self.path) from err
        for byte_offset, data in plan.parts:
            self._put(memoryview(data), byte_offset)

    def write(self, index: int, byte_offset: int, data: ReadableBuffer) -> None:
        """Write bytes of one tensor; from any thread, in any order, each byte once.

        index      : of the tensor in `tensors`
        byte_offset: from the start of the tensor
        data       : contiguous

        Raises UsageError when the bytes do not fit in the tensor, or the disk refuses them.
        """
        info = self.tensors[index]
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

    def close(self) -> None:
        """Close the file, which is whole. May be called again.

        Raises UsageError when the bytes written are not as many as the tensors hold.
        """
        if self._fd < 0:
            return
        self._release()
        if self._n_left:
            n_bytes = sum(info.n_bytes for info in self.tensors)
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
