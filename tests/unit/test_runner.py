"""A worker thread after a nudge: how many due events it claims, and when it returns unfinished ones."""

import threading
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.services.clock import Clock
from worker import runner as runner_module
from worker.runner import AWAKE, RENEW_PAUSE, TOGETHER, Limits, Runner, renew_for_ever


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the runner's clock."""
    made = Clock()
    monkeypatch.setattr(runner_module, "time", made)
    return made


class TimedAttempt:
    """An attempt that takes `usual` seconds of the test's clock, or the seconds given for its run number."""

    def __init__(self, clock: Clock, usual: float = 0.0, **slow: float) -> None:
        self.clock, self.usual, self.slow, self.ran = clock, usual, slow, 0

    def __call__(self, _: Claim) -> Outcome:
        """Advance the clock and finish."""
        self.ran += 1
        self.clock.now += self.slow.get(f"run_{self.ran}", self.usual)
        return Outcome(Move.FINISH)


@pytest.fixture
def claimed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the `limit` of each claim."""
    asked: list[int] = []

    def several(*arguments: Any, limit: int, **terms: Any) -> list[Claim]:
        asked.append(limit)
        return claim_due(*arguments, limit=limit, **terms)

    monkeypatch.setattr(runner_module, "claim_due", several)
    return asked


LIMITS = Limits(timedelta(seconds=60), timedelta(minutes=10), timedelta(seconds=5), 1)


def wake(store: Store, attempt: TimedAttempt, count: int) -> None:
    """Record this many events and nudge one thread."""
    add(store, count)
    Runner(store, attempt, LIMITS).run_nudged()


def add(store: Store, count: int) -> None:
    """Record this many events."""
    record(store, [Delivery("stripe", f"evt_{number}", "invoice.paid", b"{}") for number in range(count)])


def states(store: Store) -> dict[str, int]:
    """Return how many events are in each state."""
    with store.read() as connection:
        rows = connection.execute(select(EVENT.c.state, func.count()).group_by(EVENT.c.state))
        return {str(state): number for state, number in rows}


def test_a_nudged_thread_continues_with_due_events(store: Store, clock: Clock, claimed: list[int]) -> None:
    """One nudge is enough for a hundred events of a quick handler; claims grow."""
    wake(store, TimedAttempt(clock), 100)
    assert states(store) == {"done": 100}
    assert claimed[:6] == [1, 2, 4, 8, 16, TOGETHER]
    assert max(claimed) == TOGETHER


def test_a_slow_handlers_events_are_claimed_one_by_one(
    store: Store, clock: Clock, claimed: list[int]
) -> None:
    """After a few seconds the thread returns to the broker and leaves the rest to others."""
    wake(store, TimedAttempt(clock, usual=1.0), 20)
    assert set(claimed) == {1}
    assert states(store) == {"done": int(AWAKE), "received": 20 - int(AWAKE)}


def test_the_rest_of_a_slow_batch_is_released(store: Store, clock: Clock) -> None:
    """Another worker can claim it, and no attempt is counted."""
    attempt = TimedAttempt(clock, run_10=30.0)
    wake(store, attempt, 40)
    # Claims take 1, 2, 4 and 8 events, so this is the third event of the batch of eight.
    assert (attempt.ran, states(store)) == (10, {"done": 10, "waiting": 5, "received": 25})
    with store.read() as connection:
        given_back = connection.execute(select(EVENT.c.attempts).where(EVENT.c.state == "waiting")).scalars()
        assert set(given_back) == {0}


@pytest.mark.usefixtures("clock")
def test_a_finished_event_is_settled_at_shutdown(store: Store) -> None:
    """Of a batch of two, the finished one is done and the other one is released."""
    ran: list[Claim] = []

    def attempt(held: Claim) -> Outcome:
        ran.append(held)
        # Claims take 1 and 2 events, so this is the last event of the batch of two.
        if len(ran) == 3:
            runner.stopping.set()
            runner.release()
        return Outcome(Move.FINISH)

    runner = Runner(store, attempt, LIMITS)
    add(store, 5)
    runner.run_nudged()
    assert (len(ran), states(store)) == (3, {"done": 2, "waiting": 1, "received": 2})


class Ended(BaseException):
    """The end of a loop that has none."""


def test_a_failed_renewal_is_repeated_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the ledger is silent a lease runs out; the next renewal does not wait for a third of it."""
    slept: list[float] = []
    answers = iter([LedgerUnavailable(), OSError(), None, Ended()])

    class Flaky(Runner):
        def renew(self) -> int:
            answer = next(answers)
            if answer is not None:
                raise answer
            return 1

    monkeypatch.setattr(runner_module.time, "sleep", slept.append)
    with pytest.raises(Ended):
        renew_for_ever(Flaky(store, lambda _: Outcome(Move.FINISH), LIMITS), timedelta(seconds=20))
    assert slept == [20, RENEW_PAUSE, RENEW_PAUSE, 20]


def test_events_behind_a_slow_handler_are_given_back(store: Store) -> None:
    """Events that were claimed together with a slow one are released for other threads, and run once."""
    slow, go_on = threading.Event(), threading.Event()
    ran: list[Any] = []

    def attempt(held: Claim) -> Outcome:
        ran.append(held.event)
        # The first of a batch of four, after one and two.
        if len(ran) == 4:
            slow.set()
            assert go_on.wait(60)
        return Outcome(Move.FINISH)

    runner = Runner(store, attempt, LIMITS)
    add(store, 7)
    thread = threading.Thread(target=runner.run_nudged, daemon=True)
    thread.start()
    assert slow.wait(60)
    runner._longest_wait = 0.0
    runner.renew()
    assert states(store)["processing"] == 1
    assert Runner(store, attempt, LIMITS).run_nudged() == 3
    go_on.set()
    thread.join(60)
    assert (states(store), len(set(ran)), len(ran)) == ({"done": 7}, 7, 7)
