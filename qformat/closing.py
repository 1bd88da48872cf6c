"""Context managers that close at their end, whatever happened: one home for what all open files are.

Must not know what is closed.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self


class _Closes(Protocol):
    def close(self) -> None: ...


class Closing:
    """A context manager of whatever has a `close` that may be called again."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self: _Closes, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
