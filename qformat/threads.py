"""How many threads work at a time, and the spreading of work over them.

Decides how far work may run ahead of whoever takes its results, and what becomes of it when that ends early. Work is spread
once: what is asked for inside of a worker runs there, so that nothing waits for itself and cores are not shared out twice.
Knows nothing of what the work is.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from qformat.errors import UsageError

T = TypeVar("T")
R = TypeVar("R")

VARIABLE = "QFORMAT_THREADS"
AHEAD = 2  # results and work of each thread: one in work, one that waits
LOOK_AGAIN = 0.1  # seconds; only where an interrupt took the news that work has ended


class _Job(Generic[R]):
    """Work that a thread does, whoever waits for it, and how it ended."""

    __slots__ = ("call", "error", "has_begun", "has_ended", "is_wanted", "news", "process", "result")
    result: R

    def __init__(self, call: Callable[[], R]) -> None:
        self.call = call
        self.error: BaseException | None = None
        self.has_begun, self.has_ended, self.is_wanted = False, False, True
        self.process = os.getpid()
        self.news = threading.Lock()
        self.news.acquire()

    def run(self) -> None:
        """Do the work, if it is wanted still."""
        self.has_begun = True  # before the question: whoever no longer wants it sees that it begins, or it does not begin
        try:
            if self.is_wanted:
                self.result = self.call()
        except BaseException as error:  # raised where the result is taken
            self.error = error
        self.has_ended = True
        self.news.release()

    def wait(self) -> None:
        """Return when the work has ended; in a process that was forked meanwhile at once, for its thread did not come along."""
        while not self.has_ended and self.process == os.getpid():
            self.news.acquire(timeout=LOOK_AGAIN)

    def take(self) -> R:
        """Wait for the result; raises what the work raised, and RuntimeError where a process was forked meanwhile."""
        self.wait()
        if not self.has_ended:
            raise RuntimeError("work that was begun before a fork ends in the process that began it")
        if self.error is not None:
            raise self.error
        return self.result


class _Crew:
    """Threads that do what lies in a queue, for as long as the process lives.

    An interrupt may come between any two steps of the thread that waits, and concurrent.futures does not bear that: a thread
    that has started and is in no list yet keeps the process from ending. Nobody waits for these.
    """

    def __init__(self) -> None:
        self.jobs = SimpleQueue[_Job[Any]]()
        self.members = list[threading.Thread]()

    def hire(self, size: int) -> None:
        """Have as many threads; those that an interrupt kept from starting are made up for."""
        self.members = [member for member in self.members if member.is_alive()]
        while len(self.members) < size:
            member = threading.Thread(target=self._work, name=f"qformat-{len(self.members)}", daemon=True)
            member.start()
            self.members.append(member)

    def _work(self) -> None:
        _HERE.is_worker = True
        while True:
            self.jobs.get().run()


class _Pool:
    """The crews that all share, by their size; `asked` is what `set_threads` was given."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.forget()

    def forget(self) -> None:
        """Begin without threads, as after a fork: they do not come along."""
        self.lock = threading.Lock()
        self.crews: dict[int, _Crew] = {}

    def of(self, size: int) -> _Crew:
        """Give a crew of as many threads."""
        with self.lock:
            crew = self.crews.setdefault(size, _Crew())
            crew.hire(size)
            return crew


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
    head = deque(islice(rest, 2))
    if len(head) < 2 or size <= 1 or getattr(_HERE, "is_worker", False):  # a single item keeps nobody else busy
        yield from map(work, _emptied(head, rest))
        return
    crew, waiting, held = _POOL.of(size), deque[tuple[int, _Job[R]]](), 0
    try:
        for item in _emptied(head, rest):
            taken = 0 if cost is None else cost(item)
            while waiting and (len(waiting) >= AHEAD * size or held + taken > most > 0):
                result = waiting[0][1].take()
                held -= waiting.popleft()[0]
                yield result
            waiting.append((taken, _Job(partial(work, item))))
            crew.jobs.put(waiting[-1][1])
            held += taken
        while waiting:
            result = waiting[0][1].take()
            waiting.popleft()
            yield result
    finally:
        _end([job for _, job in waiting])


def _emptied(head: deque[T], rest: Iterable[T]) -> Iterator[T]:
    """Give what was looked at, then the rest, and keep none of it: what work is made of may be large."""
    while head:
        yield head.popleft()
    yield from rest


def _end(jobs: list[_Job[R]]) -> None:
    """Let nothing begin any more, and wait for what has begun."""
    for job in jobs:
        job.is_wanted = False
    for job in jobs:
        if job.has_begun:
            job.wait()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_POOL.forget)
