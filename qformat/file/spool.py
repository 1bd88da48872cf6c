"""Where stored bytes of zstd columns wait for their place.

Decides the order in which chunks of unknown length reach the file: planes in the order of the index, each without gaps,
whatever order they arrive in. Knows nothing of tensors or compression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile

from qformat.file.records import align

MEMORY_BYTES = 16 << 20


@dataclass(slots=True)
class Waiting:
    """Chunks of one plane: how many are still to come, and where those lie that wait."""

    n_left: int
    spans: list[tuple[int, int]] = field(default_factory=list)


class Spool:
    """Places chunks plane after plane; those of later planes wait in memory, and beyond 16 MiB in a temporary file.

    n_chunks : chunks of every plane, by plane number, in the order in which planes lie
    start    : where the first plane begins
    pwrite   : writes bytes at an offset of the file
    folder   : where the temporary file goes
    """

    def __init__(
        self,
        n_chunks: Mapping[int, int],
        start: int,
        alignment: int,
        pwrite: Callable[[memoryview | bytes, int], None],
        folder: str,
    ) -> None:
        self.waiting = {plane: Waiting(n_left) for plane, n_left in n_chunks.items()}
        self.order = list(n_chunks)
        self.alignment = alignment
        self.pwrite = pwrite
        self.file = SpooledTemporaryFile(MEMORY_BYTES, dir=folder)  # noqa: SIM115 closed by close()
        self.n_spooled = 0
        self.n_waiting = 0
        self.current = 0
        self.end = start
        self.places: dict[int, tuple[int, int]] = {}
        self.plane_start = start
        self.advance()

    def add(self, plane: int, stored: memoryview | bytes) -> None:
        """Take the next chunk of a plane."""
        waiting = self.waiting[plane]
        waiting.n_left -= 1
        if plane == self.order[self.current]:
            self.place(stored)
            self.advance()
            return
        self.file.seek(self.n_spooled)
        self.file.write(stored)
        waiting.spans.append((self.n_spooled, len(stored)))
        self.n_spooled += len(stored)
        self.n_waiting += 1

    def advance(self) -> None:
        """Close planes that are complete, and place what waits for the plane whose turn it is."""
        while self.current < len(self.order) and self.waiting[self.order[self.current]].n_left == 0:
            self.places[self.order[self.current]] = (self.plane_start, self.end - self.plane_start)
            self.current += 1
            if self.current < len(self.order):
                self.plane_start = self.end = align(self.end, self.alignment)
                self.drain(self.waiting[self.order[self.current]])

    def drain(self, waiting: Waiting) -> None:
        """Place the chunks of a plane that wait."""
        for first, n_bytes in waiting.spans:
            self.file.seek(first)
            self.place(self.file.read(n_bytes))
        self.n_waiting -= len(waiting.spans)
        waiting.spans.clear()
        if self.n_waiting == 0:
            self.n_spooled = 0

    def place(self, stored: memoryview | bytes) -> None:
        """Write a chunk where the plane whose turn it is has its end."""
        self.pwrite(stored, self.end)
        self.end += len(stored)

    def close(self) -> None:
        """Drop the temporary file."""
        self.file.close()
