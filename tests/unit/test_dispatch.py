"""Nudges and background work after the response: bounded, in order, and few of many at once."""

import logging
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from sqlalchemy import func, select

from receiver import dispatch
from receiver.dispatch import AT_ONCE, BACKLOG, Background, Dispatcher, Pace
from receiver.ledger.intake import Delivery, Recorder
from receiver.ledger.states import State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.services.checkout import CHECKOUT
from tests.services.clock import Clock
from tests.services.waiting import wait_until

# A number of events that no test nudges for otherwise.
LAST = 7


def nudged(counts: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Nudge for these numbers of events while the broker blocks; return how many nudges it got."""
    monkeypatch.setattr(dispatch, "PAUSE", 0.002)
    go_on, last, sent = threading.Event(), threading.Event(), 0

    def send(**message: Any) -> None:
        nonlocal sent
        assert go_on.wait(60)
        assert not {"args", "kwargs"} & set(message), "it names an event"
        sent += 1

    def publish(counts: Sequence[int]) -> None:
        real(counts)
        if LAST in counts:
            last.set()

    dispatcher = Dispatcher("memory://")
    real = dispatcher._publish
    monkeypatch.setattr(dispatcher._app, "send_task", send)
    monkeypatch.setattr(dispatcher._background, "_work", publish)
    for count in (*counts, LAST):
        dispatcher.nudge(count)
    go_on.set()
    assert last.wait(60)
    return sent - LAST


def test_the_client_is_loaded_without_a_connection() -> None:
    """Nothing listens at this address, and the first nudge imports nothing; in a process without imports."""
    code = """
import sys
from receiver.dispatch import Dispatcher
dispatcher = Dispatcher("redis://127.0.0.1:1/0")
assert "kombu.transport.redis" not in sys.modules
dispatcher.load()
before = set(sys.modules)
dispatcher._publish([1])
assert dispatcher.state == "unreachable"
late = {name for name in set(sys.modules) - before if name.startswith(("kombu.transport", "redis"))}
assert not late, late
"""
    subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=True)


def test_a_few_events_are_all_nudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One nudge for each, and none for none."""
    assert nudged([2, 0, 3], monkeypatch) == 5


def test_of_a_thousand_events_at_once_a_few_are_nudged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to wake every worker thread."""
    sent = nudged([1] * 1000, monkeypatch)
    # Those queued before the first was published, and those queued meanwhile.
    assert AT_ONCE <= sent + LAST <= 2 * BACKLOG


def test_the_first_few_nudges_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then one goes each pause; after a rest a few go at once again."""
    clock = Clock()
    monkeypatch.setattr("receiver.dispatch.time", clock)
    pace = Pace(4, 0.05)
    for _ in range(2):
        clock.slept = 0.0
        for _ in range(4):
            pace.wait()
        assert clock.slept == 0.0
        for _ in range(10):
            pace.wait()
        assert clock.slept == pytest.approx(0.5)
        clock.now += 60


@pytest.mark.parametrize("change", [{"problem": "It has no event id."}, {"replay_guard": "park"}])
def test_parked_events_are_not_nudged(store: Store, change: Any) -> None:
    """Neither an event with a problem nor a suspected replay."""
    recorder = Recorder(store)
    for name in ("evt_1", "evt_2"):
        (verdict,) = recorder.record([Delivery("stripe", name, "invoice.paid", b"{}", **change)])
    assert not verdict.nudge
    with store.read() as connection:
        parked = select(func.count()).select_from(EVENT).where(EVENT.c.state == State.PARKED)
        assert connection.execute(parked).scalar_one() == 2 - ("replay_guard" in change)


class Work:
    """Work that blocks until `go_on` is set; it records its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, batch: Sequence[int]) -> None:
        """Wait for `go_on`, then record the batch."""
        self.begun.set()
        assert self.go_on.wait(60)
        self.batches.append(list(batch))


def drained(work: Work, count: int) -> list[int]:
    """Wait until this many items are done and return them."""
    wait_until(lambda: sum(map(len, work.batches)) >= count, lambda: f"{count} items, not {work.batches}")
    return [item for batch in work.batches for item in batch]


def test_the_thread_starts_with_the_first_item() -> None:
    """A server that forks after loading would lose an earlier one."""
    work = Work()
    work.go_on.set()
    background = Background("late", work, room=1, batch=1)
    assert "late" not in {thread.name for thread in threading.enumerate()}
    background.put(1)
    assert drained(work, 1) == [1]
    assert "late" in {thread.name for thread in threading.enumerate()}


def test_items_are_processed_in_order_and_in_batches() -> None:
    work = Work()
    background = Background("ordered", work, room=10, batch=4)
    background.put(0)
    assert work.begun.wait(60)
    assert all(background.put(item) for item in range(1, 10))
    work.go_on.set()
    assert drained(work, 10) == list(range(10))
    assert [len(batch) for batch in work.batches] == [1, 4, 4, 1]


def test_a_full_queue_refuses_items() -> None:
    """At once; there is room again afterwards."""
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
    """An error costs one batch and leaves a log line."""
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
    """Items of many threads all arrive, once each, on one thread."""
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


class Pauses:
    """A clock whose `sleep` lasts until the test releases `over`."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.begun, self.over = threading.Semaphore(0), threading.Semaphore(0)

    def sleep(self, seconds: float) -> None:
        """Record the seconds, then block."""
        self.asked.append(seconds)
        self.begun.release()
        assert self.over.acquire(timeout=60)


def test_items_of_one_pause_are_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    work, rest = Work(), Pauses()
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
