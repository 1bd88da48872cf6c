"""A position in a mapped header that cannot run past the bytes that are there.

Decides how fixed-size integers and length-prefixed text are read, and how a header that ends too early is reported.
Nothing is copied or allocated before the bytes it needs are known to exist. Must not know which container it reads.
"""

from __future__ import annotations

import struct

from qformat.errors import FileError


class Cursor:
    """A moving position over `data`.

    data : the bytes, from the container's first one unless `base` says otherwise
    order: "<" or ">", as in `struct`
    base : file offset of data[0], added to the offsets in errors
    """

    __slots__ = ("base", "data", "order", "path", "pos")

    def __init__(self, data: memoryview, order: str, path: str | None, pos: int = 0, base: int = 0) -> None:
        self.data = data
        self.order = order
        self.path = path
        self.pos = pos
        self.base = base

    def left(self) -> int:
        """Count the bytes from here to the end."""
        return len(self.data) - self.pos

    def take(self, n_bytes: int, field: str) -> memoryview:
        """View the next bytes and step over them. Raises FileError when they are not all there."""
        stop = self.pos + n_bytes
        if stop > len(self.data):
            raise self.cut(n_bytes, field)
        view = self.data[self.pos : stop]
        self.pos = stop
        return view

    def u32(self, field: str) -> int:
        """Read an unsigned 32-bit integer."""
        value: int = struct.unpack(self.order + "I", self.take(4, field))[0]
        return value

    def u64(self, field: str) -> int:
        """Read an unsigned 64-bit integer."""
        value: int = struct.unpack(self.order + "Q", self.take(8, field))[0]
        return value

    def string(self, field: str, max_bytes: int) -> str:
        """Read a u64 byte length and that much UTF-8. Raises FileError for a longer length or other bytes."""
        start = self.pos
        n_bytes = self.u64(field)
        if n_bytes > max_bytes:
            raise self.error(f"text of {n_bytes} bytes, expected at most {max_bytes}", field, start)
        raw = self.take(n_bytes, field)
        try:
            return text_of(raw)
        except UnicodeDecodeError as err:
            at = start + 8 + err.start
            raise self.error(f"byte {raw[err.start]:#04x} is not UTF-8, expected UTF-8 text", field, at) from err

    def skip_strings(self, count: int, field: str) -> None:
        """Step over strings, checking that each lies inside the data; their text is not looked at."""
        if count * 8 > self.left():
            raise self.cut(count * 8, field)
        data, pos, u64 = self.data, self.pos, struct.Struct(self.order + "Q").unpack_from
        try:
            for _ in range(count):
                pos += 8 + u64(data, pos)[0]
        except (struct.error, OverflowError, IndexError):
            pos = len(data) + 1  # a length pointed past the end; found anew below, where it can be named
        if pos <= len(data):
            self.pos = pos
            return
        for _ in range(count):
            self.take(self.u64(field), field)

    def cut(self, n_bytes: int, field: str) -> FileError:
        """Make the error of bytes that are not there."""
        message = f"{n_bytes} bytes needed, {self.left()} left in the file"
        return self.error(message, field, self.pos, expected=n_bytes, found=self.left())

    def error(self, message: str, field: str | None, pos: int, expected: object = None, found: object = None) -> FileError:
        """Make an error that names this file and a position in it."""
        return FileError(message, path=self.path, field=field, offset=self.base + pos, expected=expected, found=found)


def text_of(raw: memoryview) -> str:
    """Decode UTF-8 strictly. Raises UnicodeDecodeError."""
    return str(raw, "utf-8")
