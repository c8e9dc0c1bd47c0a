"""Work off the answer's path: bounded, ordered, never in the way."""

import logging
import threading
from collections.abc import Sequence

import pytest

from receiver.dispatch import Background
from tests.services.waiting import wait_until


class Work:
    """Work that can be held up; notes its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, batch: Sequence[int]) -> None:
        """Wait to be let go, then note the batch."""
        self.begun.set()
        assert self.go_on.wait(60)
        self.batches.append(list(batch))


def drained(work: Work, count: int) -> list[int]:
    """Return the items done, once there are so many."""
    wait_until(lambda: sum(map(len, work.batches)) >= count, lambda: f"{count} items, not {work.batches}")
    return [item for batch in work.batches for item in batch]


def test_nothing_starts_before_the_first_item() -> None:
    """No thread runs before the first item: a server that forks after loading would lose it."""
    before = threading.active_count()
    background = Background("late", Work(), room=1, batch=1)
    assert threading.active_count() == before
    background.put(1)
    assert threading.active_count() == before + 1


def test_items_are_worked_off_in_order_and_in_batches() -> None:
    """What waits is done in order, at most `batch` at a time."""
    work = Work()
    background = Background("ordered", work, room=10, batch=4)
    background.put(0)
    assert work.begun.wait(60)
    assert all(background.put(item) for item in range(1, 10))
    work.go_on.set()
    assert drained(work, 10) == list(range(10))
    assert [len(batch) for batch in work.batches] == [1, 4, 4, 1]


def test_full_means_dropped() -> None:
    """With no room left an item is refused at once, and there is room again afterwards."""
    work = Work()
    background = Background("full", work, room=2, batch=1)
    assert background.put(0)
    assert work.begun.wait(60)
    assert [background.put(item) for item in (1, 2, 3)] == [True, True, False]
    work.go_on.set()
    assert drained(work, 3) == [0, 1, 2]
    assert background.put(4)
    assert drained(work, 4)[-1] == 4


def test_failing_work_drops_its_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """An error costs one batch and leaves a log line; the next batch is worked off."""
    done = threading.Event()

    def work(batch: Sequence[int]) -> None:
        if 1 in batch:
            raise RuntimeError("refused")
        done.set()

    background = Background("brittle", work, room=10, batch=1)
    with caplog.at_level(logging.ERROR):
        background.put(1)
        background.put(2)
        assert done.wait(60)
    assert "brittle dropped 1 items" in caplog.text


def test_many_threads_lose_nothing() -> None:
    """Items put by many threads at once all arrive, once each, over one thread."""
    work = Work()
    work.go_on.set()
    background = Background("many", work, room=10_000, batch=50)
    names = {thread.name for thread in threading.enumerate()}
    threads = [
        threading.Thread(target=lambda start=start: [background.put(start * 100 + n) for n in range(100)])
        for start in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(drained(work, 800)) == list(range(800))
    assert "many" not in names
    assert [thread.name for thread in threading.enumerate()].count("many") == 1


class Rest:
    """Time in which a thread rests until it is told to go on."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.begun, self.over = threading.Semaphore(0), threading.Semaphore(0)

    def sleep(self, seconds: float) -> None:
        """Note for how long, and rest."""
        self.asked.append(seconds)
        self.begun.release()
        assert self.over.acquire(timeout=60)


def test_what_comes_in_a_pause_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread rests after each batch, and takes what came meanwhile together."""
    work, rest = Work(), Rest()
    work.go_on.set()
    monkeypatch.setattr("receiver.dispatch.time", rest)
    background = Background("rarely", work, room=10, batch=10, pause=0.5)
    background.put(1)
    assert rest.begun.acquire(timeout=60)
    for item in (2, 3):
        background.put(item)
    rest.over.release()
    assert drained(work, 3) == [1, 2, 3]
    assert work.batches == [[1], [2, 3]]
    assert rest.begun.acquire(timeout=60)
    assert rest.asked == [0.5, 0.5]
    rest.over.release()
