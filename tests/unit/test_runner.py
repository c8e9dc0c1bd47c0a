"""How long a worker's thread goes on after a nudge, and what becomes of the events that it does not run."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select

from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.services.clock import Clock
from worker import runner as runner_module
from worker.runner import AWAKE, TOGETHER, Limits, Runner


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Replace the runner's clock."""
    made = Clock()
    monkeypatch.setattr(runner_module, "time", made)
    return made


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
