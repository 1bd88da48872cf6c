"""Lines of bytes picked out of several runs of them, in any order: a source of bytes like any other.

Decides how lines that lie near one another are read together, so that a range costs little more than itself. What a line
is, and why lines move, is decided by `rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    from qformat.deferred import np

SKIPPED_BYTES = 1 << 12  # between lines that are still read at once: a page, which comes from a disk as a whole

# Gives lines [first, last) of a run: (last - first, bytes of a line) uint8.
ReadLines: TypeAlias = "Callable[[int, int], NDArray[np.uint8]]"


@dataclass(frozen=True, slots=True)
class Gathered:
    """Picked lines, one after the other.

    runs       : give lines of each run
    begins     : (n_runs + 1,) int64, the number of each run's first line when all are counted through, and of all lines
    picked     : (n_picked,) int64, numbers of lines counted through all runs; any may come again
    line_bytes : bytes of a line
    """

    runs: tuple[ReadLines, ...]
    begins: NDArray[np.int64]
    picked: NDArray[np.int64]
    line_bytes: int

    @property
    def n_bytes(self) -> int:
        """Bytes of all picked lines."""
        return int(self.picked.size) * self.line_bytes

    def read(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Give bytes [start, stop); a view where the lines lie together."""
        if stop <= start:
            return np.empty(0, np.uint8)
        first, last = start // self.line_bytes, -(-stop // self.line_bytes)
        data = self._lines(self.picked[first:last]).reshape(-1)
        return data[start - first * self.line_bytes : stop - first * self.line_bytes]

    def _lines(self, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        order = None if (wanted[1:] >= wanted[:-1]).all() else np.argsort(wanted, kind="stable")
        ascending = wanted if order is None else wanted[order]
        out: NDArray[np.uint8] | None = None
        for low, high, run, is_whole in self._together(ascending):
            first, last = (int(ascending[i] - self.begins[run]) for i in (low, high - 1))
            found = self.runs[run](first, last + 1)
            if not is_whole:
                found = found[ascending[low:high] - self.begins[run] - first]
            if order is None and high - low == len(wanted):
                return found
            out = np.empty((len(wanted), self.line_bytes), np.uint8) if out is None else out
            out[slice(low, high) if order is None else order[low:high]] = found
        assert out is not None  # there are lines
        return out

    def _together(self, ascending: NDArray[np.int64]) -> Iterator[tuple[int, int, int, bool]]:
        """Cut ascending lines where the next is far, or of another run.

        returns: first, last, run, and whether the lines are all that lie between first and last, once each
        """
        of_run, steps = np.searchsorted(self.begins, ascending, "right") - 1, np.diff(ascending)
        cuts = np.flatnonzero(((steps - 1) * self.line_bytes > SKIPPED_BYTES) | (np.diff(of_run) != 0)) + 1
        edges = [0, *cuts.tolist(), len(ascending)]
        n_odd = np.concatenate([[0], np.cumsum(steps != 1)])  # steps up to each line that are not to the very next
        is_whole = n_odd[np.array(edges[1:]) - 1] == n_odd[edges[:-1]]
        yield from zip(edges[:-1], edges[1:], of_run[edges[:-1]].tolist(), is_whole.tolist(), strict=True)
