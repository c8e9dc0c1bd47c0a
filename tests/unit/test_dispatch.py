"""Nudges and counters, published after the response: bounded, in order, and few of many at once."""

import logging
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from receiver import dispatch
from receiver.dispatch import BACKLOG, Background, Dispatcher, Pace
from receiver.ledger.intake import Delivery, Recorder
from receiver.ledger.states import State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.services.clock import Clock
from tests.services.waiting import wait_until


class Broker:
    """Notes nudges, once it is let go."""

    def __init__(self, dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[str] = []
        self.go_on = threading.Event()
        monkeypatch.setattr(dispatcher._app, "send_task", self._send)

    def _send(self, *, args: tuple[str], **_: Any) -> None:
        assert self.go_on.wait(60)
        self.sent.append(args[0])

    def heard_of(self, event: UUID) -> list[str]:
        """Return what was sent, once this event was."""
        wait_until(lambda: str(event) in self.sent, "the nudge")
        return self.sent


def nudged(count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Nudge so many events while the broker hesitates; return them, and what was sent up to the last."""
    monkeypatch.setattr(dispatch, "PAUSE", 0.002)
    dispatcher = Dispatcher("memory://")
    broker, events = Broker(dispatcher, monkeypatch), [UUID(int=number) for number in range(count)]
    dispatcher.nudge(events)
    broker.go_on.set()
    return [str(event) for event in events], list(broker.heard_of(events[-1]))


def test_a_few_are_nudged_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """While little comes every event has its nudge, in order."""
    events, sent = nudged(5, monkeypatch)
    assert sent == events


def test_a_flood_is_not_nudged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand at once a few wake every thread there is, the newest among them."""
    events, sent = nudged(1000, monkeypatch)
    assert sent[-1] == events[-1]
    # What came before the first was sent, and what came meanwhile.
    assert len(sent) <= 2 * BACKLOG


def test_the_first_few_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few go at once, then one each pause; after a rest a few go at once again."""
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
def test_what_waits_for_a_person_is_not_nudged(store: Store, change: Any) -> None:
    """What has a problem is parked, and so are signed bytes that come again under another id."""
    recorder = Recorder(store)
    for name in ("evt_1", "evt_2"):
        (verdict,) = recorder.record([Delivery("stripe", name, "invoice.paid", b"{}", **change)])
    assert not verdict.nudge
    with store.read() as connection:
        parked = select(func.count()).select_from(EVENT).where(EVENT.c.state == State.PARKED)
        assert connection.execute(parked).scalar_one() == 2 - ("replay_guard" in change)


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
