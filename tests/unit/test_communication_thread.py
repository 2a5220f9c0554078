"""Which thread runs an operation, and in which order; no MPI call is made."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("gsdist.collectives.mpi.runtime", exc_type=ImportError)
from gsdist.collectives.mpi.thread import CommunicationThread

TIME_LIMIT = 30.0


class Recorded:
    """Be an operation that notes where it ran and how it ended."""

    def __init__(self, work: Callable[[], None] = lambda: None) -> None:
        self._work = work
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None
        self.ended = threading.Event()

    def start(self) -> tuple[()]:
        self.thread = threading.current_thread()
        self._work()
        return ()

    def finish(self, statuses: object) -> None:
        self.ended.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.ended.set()


@pytest.fixture
def thread() -> Iterator[CommunicationThread]:
    thread = CommunicationThread("test")
    yield thread
    thread.stop()


def test_the_caller_runs_it_when_nothing_is_under_way(thread: CommunicationThread) -> None:
    operation = Recorded()
    thread.run(operation)
    assert operation.ended.is_set()
    assert operation.thread is threading.current_thread()


def test_what_is_handed_in_does_not_hold_up_the_caller(thread: CommunicationThread) -> None:
    gate = threading.Event()
    operation = Recorded(lambda: gate.wait(TIME_LIMIT))
    thread.submit(operation)
    assert not operation.ended.is_set()
    gate.set()
    assert operation.ended.wait(TIME_LIMIT)
    assert operation.thread is not threading.current_thread()


def test_it_waits_for_its_turn_behind_what_was_handed_in_before(
    thread: CommunicationThread,
) -> None:
    gate, order = threading.Event(), list[str]()

    def first() -> None:
        gate.wait(TIME_LIMIT)
        order.append("first")

    thread.submit(Recorded(first))
    second = Recorded(lambda: order.append("second"))
    thread.run(second)
    assert order == []
    gate.set()
    assert second.ended.wait(TIME_LIMIT)
    assert order == ["first", "second"]


def test_after_an_error_the_next_one_runs(thread: CommunicationThread) -> None:
    def spill() -> None:
        raise RuntimeError("spilt coffee")

    broken, sound = Recorded(spill), Recorded()
    thread.run(broken)
    assert str(broken.error) == "spilt coffee"
    thread.run(sound)
    assert sound.thread is threading.current_thread()
    assert sound.error is None


def test_many_callers_run_one_at_a_time_and_each_in_its_order(thread: CommunicationThread) -> None:
    order: list[tuple[int, int]] = []
    running = threading.Lock()

    def note(caller: int, number: int) -> None:
        assert running.acquire(blocking=False), "two operations at a time"
        order.append((caller, number))
        running.release()

    def issue(caller: int) -> None:
        for number in range(200):
            operation = Recorded(lambda n=number: note(caller, n))  # type: ignore[misc]
            (thread.run if number % 3 else thread.submit)(operation)
        assert operation.ended.wait(TIME_LIMIT)
        assert operation.error is None

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(issue, range(4)))
    for caller in range(4):
        assert [number for who, number in order if who == caller] == list(range(200))
