"""Nudges in a flood: how many are sent, and how far a worker's thread goes on after one of them."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from receiver import dispatch
from receiver.dispatch import BACKLOG, Dispatcher, Pace
from receiver.ledger.intake import Delivery, Recorder, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due
from receiver.ledger.schema import migrate
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.services.clock import Clock
from tests.services.waiting import wait_until
from worker import runner as runner_module
from worker.runner import AWAKE, TOGETHER, Limits, Runner


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Give nudges and threads the test's clock."""
    made = Clock()
    monkeypatch.setattr(dispatch, "time", made)
    monkeypatch.setattr(runner_module, "time", made)
    return made


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


def test_the_first_few_do_not_wait(clock: Clock) -> None:
    """A few go at once, then one each pause; after a rest a few go at once again."""
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
    assert states(store)["parked"] == 2 - ("replay_guard" in change)


class Hands:
    """An attempt that takes so many seconds each, by the number of its run."""

    def __init__(self, clock: Clock, usual: float = 0.0, **slow: float) -> None:
        self.clock, self.usual, self.slow, self.ran = clock, usual, slow, 0

    def __call__(self, _: Claim) -> Outcome:
        """Take that long, and finish."""
        self.ran += 1
        self.clock.now += self.slow.get(f"run_{self.ran}", self.usual)
        return Outcome(Move.FINISH)


@pytest.fixture
def store() -> Iterator[Store]:
    """Open a ledger in memory."""
    opened = Store("sqlite://", pool=1)
    migrate(opened)
    yield opened
    opened.close()


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many events a thread asks for each time."""
    asked: list[int] = []

    def several(*arguments: Any, limit: int, **terms: Any) -> list[Claim]:
        asked.append(limit)
        return claim_due(*arguments, limit=limit, **terms)

    monkeypatch.setattr(runner_module, "claim_due", several)
    return asked


LIMITS = Limits(timedelta(seconds=60), timedelta(minutes=10), timedelta(seconds=5), 1)


def wake(store: Store, hands: Hands, count: int) -> None:
    """Record so many events and nudge one thread for the first of them."""
    Runner(store, hands, LIMITS).run_nudged(recorded(store, count))


def recorded(store: Store, count: int) -> UUID:
    """Record so many events and return the first of them."""
    deliveries = [Delivery("stripe", f"evt_{number}", "invoice.paid", b"{}") for number in range(count)]
    return record(store, deliveries)[0].event


def states(store: Store) -> dict[str, int]:
    """Return how many events stand in each state."""
    with store.read() as connection:
        rows = connection.execute(select(EVENT.c.state, func.count()).group_by(EVENT.c.state))
        return {str(state): number for state, number in rows}


def test_a_woken_thread_goes_on_with_what_is_due(store: Store, clock: Clock, claimed: list[int]) -> None:
    """One nudge is enough for a hundred events of a quick handler, more and more of them at a time."""
    wake(store, Hands(clock), 100)
    assert states(store) == {"done": 100}
    assert claimed[:7] == [1, 2, 4, 8, 16, TOGETHER, TOGETHER]
    assert max(claimed) == TOGETHER


def test_a_slow_handlers_events_are_left_to_others(store: Store, clock: Clock, claimed: list[int]) -> None:
    """They are claimed one by one, and after a few seconds the thread hears the broker again."""
    wake(store, Hands(clock, usual=1.0), 20)
    assert set(claimed) == {1}
    assert states(store) == {"done": 1 + int(AWAKE), "received": 19 - int(AWAKE)}


def test_what_a_thread_does_not_come_to_is_given_back(store: Store, clock: Clock) -> None:
    """One that is suddenly slow keeps none of its batch from others: the rest waits, no attempt counted."""
    hands = Hands(clock, run_10=30.0)
    wake(store, hands, 40)
    assert (hands.ran, states(store)) == (10, {"done": 10, "waiting": 6, "received": 24})
    with store.read() as connection:
        given_back = connection.execute(select(EVENT.c.attempts).where(EVENT.c.state == "waiting")).scalars()
        assert set(given_back) == {0}


@pytest.mark.usefixtures("clock")
def test_what_has_ended_at_shutdown_is_settled_so(store: Store) -> None:
    """Of a batch of two one has returned as the worker shuts down: it is done, and the other goes back."""
    ran: list[Claim] = []

    def attempt(held: Claim) -> Outcome:
        ran.append(held)
        # The nudged one, one more, and two together: this is the last of those.
        if len(ran) == 4:
            runner.stopping.set()
            runner.release()
        return Outcome(Move.FINISH)

    runner = Runner(store, attempt, LIMITS)
    runner.run_nudged(recorded(store, 5))
    assert (len(ran), states(store)) == (4, {"done": 3, "waiting": 1, "received": 1})
