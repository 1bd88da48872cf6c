"""What can go wrong, by who is at fault.

    QFormatError
    ├── FileError    the bytes break the format (truncated, contradictory, unknown required feature)
    ├── UsageError   the caller asked wrongly (unknown name, shape mismatch, destination exists)
    │   └── Missing  a mapping has nothing under this name; a KeyError as well
    └── NotExact     the target cannot hold the source without loss

Every error is one line: where, found, expected, and the way out if there is one. The facts are kept as attributes,
so that a caller never parses the message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class QFormatError(Exception):
    """An error that a user can act on; its text is one line.

    message  : the sentence without its place: what was found, what was expected
    path     : file or folder at fault
    tensor   : tensor at fault
    field    : header field, parameter or plane at fault
    index    : flat index within that parameter, or of a weight
    offset   : byte offset in the file at `path`
    expected : what the format or the target asks for
    found    : what was there
    """

    def __init__(
        self,
        message: str,
        *,
        path: str | Path | None = None,
        tensor: str | None = None,
        field: str | None = None,
        index: int | None = None,
        offset: int | None = None,
        expected: object = None,
        found: object = None,
    ) -> None:
        self.message = message
        self.path = None if path is None else str(path)
        self.tensor = tensor
        self.field = field
        self.index = index
        self.offset = offset
        self.expected = expected
        self.found = found
        super().__init__(message)

    def __str__(self) -> str:
        place = [] if self.path is None else [show(self.path)]
        where = [] if self.tensor is None else [f"tensor {show(self.tensor, quote=True)}"]
        if self.field is not None:
            where.append(f"field {show(self.field, quote=True)}")
        if self.offset is not None:
            where.append(f"at {self.offset:#x}")
        if where:
            place.append(" ".join(where))
        return ": ".join([*place, show(self.message)])


class FileError(QFormatError):
    """The bytes break the format."""


class UsageError(QFormatError):
    """The caller asked wrongly."""


class Missing(UsageError, KeyError):
    """A mapping has nothing under this name; a KeyError too, by which mappings answer `in` and `get`."""


class NotExact(QFormatError):
    """The target cannot hold the source without loss."""


@contextmanager
def about(path: str | Path | None, tensor: str) -> Iterator[None]:
    """Name the file, if there is one, and the tensor of an error that names none itself."""
    try:
        yield
    except QFormatError as err:
        err.path, err.tensor = err.path or (None if path is None else str(path)), err.tensor or tensor
        raise


def show(text: str, quote: bool = False, limit: int = 400) -> str:
    """Make any text safe for one line of a terminal: control characters escaped, long text cut.

    >>> show("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    if len(text) > limit:
        text = f"{text[: limit - 20]}... ({len(text)} characters)"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
    return f"'{text}'" if quote else text
