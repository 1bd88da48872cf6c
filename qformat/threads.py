"""How many threads work at a time, and the spreading of work over them.

Decides how far work may run ahead of whoever takes its results, and what becomes of it when that ends early. Work is spread
once: what is asked for inside of a worker runs there, so that nothing waits for itself and cores are not shared out twice.
Knows nothing of what the work is.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from itertools import chain, islice
from typing import TYPE_CHECKING, TypeVar

from qformat.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")
R = TypeVar("R")

VARIABLE = "QFORMAT_THREADS"
AHEAD = 2  # results and work of each thread: one in work, one that waits


class _Pool:
    """The executor that all share, made when it is first needed; `asked` is what `set_threads` was given."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.forget()

    def forget(self) -> None:
        """Begin without an executor, as after a fork: threads do not come along."""
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0

    def of(self, size: int) -> ThreadPoolExecutor:
        """Give an executor of as many threads."""
        from concurrent.futures import ThreadPoolExecutor  # here: listing a file takes none

        with self.lock:
            if self.executor is None or self.size != size:
                self.executor, self.size = ThreadPoolExecutor(size, "qformat", _begin), size
            return self.executor


_POOL = _Pool()
_HERE = threading.local()


def n_threads() -> int:
    """Give how many threads work at a time: what was set, else QFORMAT_THREADS, else the cores that the process may use.

    Raises UsageError where the variable is no positive number.
    """
    if _POOL.asked is not None:
        return _POOL.asked
    said = os.environ.get(VARIABLE)
    if not said:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not said.isdecimal() or int(said) < 1:
        raise UsageError(f"{VARIABLE} is {said!r}, expected a number of threads from 1", field=VARIABLE, found=said)
    return int(said)


def set_threads(n: int | None) -> None:
    """Set how many threads work at a time; None for what the environment or the machine says. Results never depend on it.

    Raises UsageError for what is no positive integer.
    """
    if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
        raise UsageError(f"{n!r} threads, expected an integer from 1", field="threads", found=n)
    _POOL.asked = n


def spread(
    work: Callable[[T], R],
    items: Iterable[T],
    *,
    threads: int | None = None,
    cost: Callable[[T], int] | None = None,
    most: int = 0,
) -> Generator[R, None, None]:
    """Do work on every item, by several threads, and give the results in the order of the items.

    threads : how many; `n_threads()` if absent or 0. Where that is 1, and inside of such work, work is done here, when a result
              is asked for
    cost    : what an item takes while it is in work or its result waits; nothing, if absent
    most    : what all these may take together; one item may always be in work

    At most two items of each thread are in work or wait. An exception of an item comes in its place; what is in work then, or
    when the iterator is closed, has ended before this returns, and nothing else begins. Whoever may fail between results
    closes the iterator.
    """
    size = threads or n_threads()
    rest = iter(items)
    head = list(islice(rest, 2))
    if len(head) < 2 or size <= 1 or getattr(_HERE, "is_worker", False):  # a single item keeps nobody else busy
        yield from map(work, chain(head, rest))
        return
    executor, waiting, held = _POOL.of(size), deque["tuple[int, Future[R]]"](), 0
    try:
        for item in chain(head, rest):
            taken = 0 if cost is None else cost(item)
            while waiting and (len(waiting) >= AHEAD * size or held + taken > most > 0):
                freed, future = waiting[0]
                result = future.result()
                waiting.popleft()
                held -= freed
                yield result
            waiting.append((taken, executor.submit(work, item)))
            held += taken
        while waiting:
            result = waiting[0][1].result()
            waiting.popleft()
            yield result
    finally:
        _end(future for _, future in waiting)


def _end(futures: Iterable[Future[R]]) -> None:
    """Cancel what has not begun, and wait for the rest."""
    from concurrent.futures import wait

    wait([future for future in futures if not future.cancel()])


def _begin() -> None:
    _HERE.is_worker = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)
