"""Work spread over threads: its order, how far it runs ahead, and what becomes of it when it ends early."""

import os
import threading
from collections.abc import Iterator
from functools import partial

import pytest

import qformat
from qformat.errors import UsageError
from qformat.threads import spread


@pytest.fixture(autouse=True)
def unset() -> Iterator[None]:
    yield
    qformat.set_threads(None)


every_number = pytest.mark.parametrize("threads", [1, 2, 5])


@every_number
def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    done = [threading.Event() for _ in range(40)]

    def later_items_first(item: int) -> int:
        if threads > 1 and item % 2 == 0:
            assert done[item + 1].wait(10)
        done[item].set()
        return item * item

    assert list(spread(later_items_first, range(40), threads=threads)) == [item * item for item in range(40)]


def test_work_is_done_by_other_threads_where_there_are_several() -> None:
    met = threading.Barrier(2, timeout=10)

    def meet(item: int) -> int:
        met.wait()
        return threading.get_ident()

    found = set(spread(meet, range(2), threads=2))

    assert len(found) == 2
    assert threading.get_ident() not in found


def test_one_thread_works_where_it_is_asked_and_when() -> None:
    asked = list[int]()

    def work(item: int) -> int:
        asked.append(item)
        return threading.get_ident()

    found = spread(work, range(5), threads=1)

    assert next(found) == threading.get_ident()
    assert asked == [0]


@pytest.mark.parametrize("threads", [2, 5])
def test_no_more_items_are_taken_than_two_for_each_thread(threads: int) -> None:
    taken = list[int]()

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    found = spread(lambda item: item, items(), threads=threads)
    assert next(found) == 0

    assert len(taken) == 2 * threads + 1  # the one that is to take the place of the first
    found.close()
    assert len(taken) == 2 * threads + 1


def test_items_that_cost_much_wait_for_one_another() -> None:
    held, most, lock = 0, 0, threading.Lock()

    def work(cost: int) -> int:
        nonlocal held, most
        with lock:
            held += cost
            most = max(most, held)
        with lock:
            held -= cost
        return cost

    costs = [3, 3, 3, 100, 3, 5, 5, 5, 1]

    assert list(spread(work, costs, threads=5, cost=lambda cost: cost, most=10)) == costs
    assert most == 100  # alone: nothing else was held beside it


@every_number
def test_an_exception_comes_in_its_place_and_ends_everything(threads: int) -> None:
    began, running = list[int](), set[int]()

    def work(item: int) -> int:
        began.append(item)
        running.add(item)
        try:
            if item >= 3:
                raise ValueError(f"item {item}")
            return item
        finally:
            running.discard(item)

    found = spread(work, range(1000), threads=threads)

    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="item 3"):
        next(found)
    assert running == set()
    assert max(began) <= 3 + 2 * threads
    assert list(found) == []


def test_work_has_ended_when_its_iterator_is_closed() -> None:
    begun, go, ended = threading.Event(), threading.Event(), list[int]()

    def work(item: int) -> int:
        if item:
            begun.set()
            assert go.wait(10)
            ended.append(item)
        return item

    found = spread(work, range(100), threads=2)
    assert next(found) == 0
    assert begun.wait(10)
    threading.Timer(0.05, go.set).start()

    found.close()

    assert 1 in ended
    n_ended = len(ended)
    assert list(spread(lambda item: item, range(4), threads=2)) == [0, 1, 2, 3]  # whatever waited would have begun
    assert len(ended) == n_ended


def test_an_exception_of_the_items_themselves_ends_the_work() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("no more")

    with pytest.raises(KeyError):
        list(spread(lambda item: item, items(), threads=2))


@every_number
def test_work_inside_of_work_runs_where_it_is(threads: int) -> None:
    def inner(outer: int, item: int) -> tuple[int, int]:
        return outer * item, threading.get_ident()

    def outer(item: int) -> tuple[int, bool]:
        found = list(spread(partial(inner, item), range(20), threads=threads))
        return sum(number for number, _ in found), {where for _, where in found} == {threading.get_ident()}

    assert list(spread(outer, range(30), threads=threads)) == [(190 * item, True) for item in range(30)]


def test_work_is_spread_while_other_results_are_taken() -> None:
    found = [list(spread(lambda item: item + 1, range(item), threads=2)) for item in spread(int, "123456", threads=2)]

    assert found == [list(range(1, item + 1)) for item in range(1, 7)]


def test_threads_are_as_many_as_were_set_or_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFORMAT_THREADS", "7")

    assert qformat.n_threads() == 7
    qformat.set_threads(3)
    assert qformat.n_threads() == 3
    qformat.set_threads(None)
    assert qformat.n_threads() == 7


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores a process may use")
def test_threads_are_as_many_as_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QFORMAT_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6})

    assert qformat.n_threads() == 3


@pytest.mark.parametrize("said", ["0", "-1", "two", "1.5"])
def test_a_number_of_threads_that_means_nothing_is_refused(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("QFORMAT_THREADS", said)

    with pytest.raises(UsageError, match=f"QFORMAT_THREADS is '{said}', expected a number of threads from 1"):
        qformat.n_threads()


@pytest.mark.parametrize("n", [0, -1, True, 1.5, "2"])
def test_setting_a_number_of_threads_that_means_nothing_is_refused(n: object) -> None:
    with pytest.raises(UsageError, match="threads, expected an integer from 1"):
        qformat.set_threads(n)  # type: ignore[arg-type] # what is refused


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_process_has_threads_of_its_own() -> None:
    assert list(spread(abs, [-1, -2], threads=2)) == [1, 2]

    child = os.fork()
    if not child:
        os._exit(list(spread(abs, [-3, -4, -5], threads=2)) != [3, 4, 5])

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked on this system alone")
def test_a_process_forked_meanwhile_does_not_wait_for_threads_that_stayed_behind() -> None:
    go = threading.Event()

    def work(item: int) -> int:
        return item if item == 0 else int(go.wait(10))

    found = spread(work, range(6), threads=2)
    assert next(found) == 0
    child = os.fork()
    if child == 0:
        try:
            next(found)  # ends what had begun, without waiting
            os._exit(1)
        except RuntimeError:
            os._exit(0)
    try:
        for _ in range(1000):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            threading.Event().wait(0.01)
        else:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert (ended, os.waitstatus_to_exitcode(status)) == (child, 0)
    finally:
        go.set()
    assert list(found) == [1] * 5
