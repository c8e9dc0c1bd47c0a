"""The sweeper's queries: few nudges, no lost event, no starvation, and no scan of the whole table."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from receiver.ledger.intake import record
from receiver.ledger.queue import (
    Retention,
    claim_due,
    expire,
    ignored_types,
    prune,
    reopen,
    starved,
    take_nudges,
    unattended,
)
from receiver.ledger.queue.sweep import NUDGES_OPEN
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import (
    LEASE,
    ONLY_POSTGRES,
    SWEEP,
    change,
    count,
    crowd,
    deliver,
    deliver_all,
    delivery,
    end,
    hooked,
    later,
    row,
    state,
    take,
    worst_plan,
)


def test_a_new_event_is_left_to_the_web_process_for_one_sweep(store: Store) -> None:
    """Web nudges a new event; the sweeper nudges it after a sweep without a claim."""
    made = deliver(store).event
    assert take_nudges(store, SWEEP) == []
    later(store, seconds=6)
    assert take_nudges(store, SWEEP) == [made]


def test_a_due_retry_is_nudged_at_once(store: Store) -> None:
    """Only the sweeper nudges a retry that became due."""
    made = deliver(store).event
    end(store, made, Move.RETRY_LATER, delay=timedelta(minutes=1))
    assert take_nudges(store, SWEEP) == []
    later(store, seconds=61)
    assert take_nudges(store, SWEEP) == [made]


@pytest.mark.parametrize("move", [Move.FINISH, Move.PARK, Move.GIVE_UP, Move.IGNORE])
def test_ended_events_are_not_nudged(store: Store, move: Move) -> None:
    """Ended and parked events are not nudged."""
    end(store, deliver(store).event, move)
    later(store, days=1)
    assert take_nudges(store, SWEEP) == []


def test_held_events_are_not_nudged(store: Store) -> None:
    """An event that a worker holds is not nudged."""
    take(store, deliver(store).event)
    later(store, days=1)
    assert take_nudges(store, SWEEP) == []


def test_nudges_of_one_event_back_off(store: Store) -> None:
    """The first pause is 30 s; it doubles up to ten minutes."""
    made = deliver(store).event
    later(store, seconds=6)
    assert take_nudges(store, SWEEP) == [made]
    for pause in (30, 60, 120, 240, 480, 600, 600):
        later(store, seconds=pause - 5)
        assert take_nudges(store, SWEEP) == [], f"nudged before {pause} s were over"
        later(store, seconds=5)
        assert take_nudges(store, SWEEP) == [made], f"not nudged after {pause} s"


def test_a_claim_starts_the_back_off_anew(store: Store) -> None:
    """An event that ran and waits again is nudged as soon as it is due."""
    made = deliver(store).event
    for _ in range(3):
        later(store, minutes=10)
        assert take_nudges(store, SWEEP) == [made]
    end(store, made, Move.RETRY_LATER)
    assert take_nudges(store, SWEEP) == [made]


def test_fifty_thousand_waiting_events_do_not_fill_the_broker(store: Store) -> None:
    """Ten sweeps without a consumer nudge at most 2,000 times, each at most 1,000."""
    crowd(store, 50_000)
    passes = []
    for _ in range(10):
        passes.append(len(take_nudges(store, SWEEP)))
        later(store, seconds=5)
    assert passes[0] == NUDGES_OPEN
    assert max(passes) <= NUDGES_OPEN
    assert sum(passes) <= 2000, f"messages after ten passes: {passes}"
    assert sum(passes) > NUDGES_OPEN, "nothing was nudged again"
    assert count(store, EVENT.c.nudges > 0) == NUDGES_OPEN


def test_room_in_the_broker_is_used(store: Store) -> None:
    """As many events are nudged as nudged ones were claimed."""
    crowd(store, NUDGES_OPEN + 500)
    first = take_nudges(store, SWEEP)
    for item in first[:7]:
        end(store, item)
    second = take_nudges(store, SWEEP)
    assert (len(first), len(second)) == (NUDGES_OPEN, 7)
    assert set(first).isdisjoint(second)


def test_sweepers_at_once_share_the_cap(store: Store) -> None:
    """Six concurrent sweepers nudge a thousand different events in all."""
    crowd(store, 5000)
    with ThreadPoolExecutor(6) as pool:
        nudged = [item for mine in pool.map(lambda _: take_nudges(store, SWEEP), range(6)) for item in mine]
    assert (len(nudged), len(set(nudged))) == (NUDGES_OPEN, NUDGES_OPEN)


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_pass_is_a_pass_whatever_the_plan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds even if PostgreSQL runs the subquery again for each row."""
    monkeypatch.setattr("receiver.ledger.queue.sweep.NUDGES_OPEN", 5)
    crowd(store, 30)
    with worst_plan(store):
        assert len(take_nudges(store, SWEEP)) == 5


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_locked_row_holds_no_sweep_up(store: Store) -> None:
    """Locked rows are skipped by nudges, expiry and claims by turn."""
    held, free = deliver_all(store, 2)
    later(store, seconds=6)
    with store.engine.connect() as other:
        other.execute(text("SELECT 1 FROM event WHERE id = :id FOR UPDATE"), {"id": held})
        assert take_nudges(store, SWEEP) == [free]
        assert expire(store) == 0
        later(store, minutes=1)
        (taken,) = claim_due(store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP))
        assert taken.event == free
        other.rollback()


def test_starved_means_nudged_twice_without_a_claim(store: Store) -> None:
    """The queue is starved 30 s after an event's second nudge without a claim."""
    made = deliver(store).event
    report = []
    for second in (6, 12, 40, 46, 69, 75):
        store.shift = timedelta(seconds=second)
        take_nudges(store, SWEEP)
        report.append(starved(store, SWEEP))
    assert report == [False, False, False, False, False, True]
    end(store, made, Move.RETRY_LATER)
    assert not starved(store, SWEEP)


def test_events_without_a_claim_are_unattended(store: Store) -> None:
    """Unattended events include those that the cap kept from being nudged."""
    crowd(store, NUDGES_OPEN + 1)
    take_nudges(store, SWEEP)
    (held,) = claim_due(store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP))
    assert row(store, held.event).nudges == 0
    assert claim_due(store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP)) == []
    later(store, seconds=31)
    assert claim_due(store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP))


def test_ignored_events_reopen_for_a_day(store: Store) -> None:
    """A new handler reopens ignored events of the last 24 hours, with fresh attempts."""
    old = deliver(store, "old").event
    end(store, old, Move.IGNORE)
    later(store, hours=23)
    made, other = deliver(store, "new").event, deliver(store, "other", type="else").event
    for item in (made, other):
        end(store, item, Move.IGNORE)
    assert sorted(ignored_types(store)) == [("stripe", "else"), ("stripe", "invoice.paid")]
    later(store, hours=2)
    assert reopen(store, "stripe", "invoice.paid") == 1
    assert [state(store, item) for item in (old, made, other)] == ["ignored", "waiting", "ignored"]
    assert row(store, made).finished_at is None
    assert take(store, made).attempt == 1


def test_an_ignored_event_without_its_body_stays_ignored(store: Store) -> None:
    """An event whose payload was erased is not reopened."""
    made = deliver(store).event
    end(store, made, Move.IGNORE)
    change(store, made, body=None)
    assert reopen(store, "stripe", "invoice.paid") == 0


def test_more_ignored_events_than_a_batch_reopen(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are reopened, in several transactions."""
    monkeypatch.setattr("receiver.ledger.queue.sweep.REOPEN_BATCH", 10)
    crowd(store, 25, state="ignored", finished_at=store.now())
    assert reopen(store, "stripe", "invoice.paid") == 25
    assert count(store, EVENT.c.state == "waiting") == 25


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_reopening_and_duplicates_do_not_deadlock(store: Store) -> None:
    """Both lock many rows in the same order, so neither is aborted."""
    batch = [delivery(f"evt_{n:02}") for n in reversed(range(60))]
    for item in batch:
        record(store, [item])

    def recording() -> None:
        for _ in range(8):
            record(store, batch)

    with ThreadPoolExecutor(2) as pool:
        job = pool.submit(recording)
        while not job.done():
            with store.write() as connection:
                ignored = {"state": "ignored", "finished_at": store.now()}
                connection.execute(text("SELECT 1 FROM event ORDER BY event_id FOR UPDATE"))
                connection.execute(EVENT.update().values(**ignored))
            assert reopen(store, "stripe", "invoice.paid") == 60
        job.result()


OPERATIONS: dict[str, Callable[[Store], Any]] = {
    "nudges": lambda store: take_nudges(store, SWEEP),
    "starved": lambda store: starved(store, SWEEP),
    "claim_due": lambda store: claim_due(
        store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP)
    ),
    "expire": expire,
    "prune": lambda store: prune(store, {"stripe": Retention(timedelta(days=400), timedelta(days=30))}),
    "reopen": lambda store: reopen(store, "stripe", "else"),
    "record": lambda store: record(store, [delivery("done_7"), delivery("new", replay_guard="park")]),
}


@pytest.mark.parametrize("due_in", [-1, 60])
def test_nothing_reads_the_whole_table(store: Store, due_in: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 30,000 events, each statement searches an index and reads a batch at most."""
    monkeypatch.setattr("receiver.ledger.queue.sweep.NUDGES_OPEN", 100)
    crowd(store, 15_000, "done", state="done", finished_at=store.after(timedelta(days=-2)))
    crowd(store, 3000, "ignored", state="ignored", finished_at=store.after(timedelta(days=-2)))
    crowd(store, 12_000, "waiting", due_at=store.after(timedelta(minutes=due_in)))
    if not store.sqlite:
        with store.write() as connection:
            connection.execute(text("ANALYZE event"))
    for name, operation in OPERATIONS.items():
        plans = Explained(store)
        with hooked(store, "before_cursor_execute", plans.hook):
            operation(store)
        for statement, bad in plans.complaints:
            pytest.fail(f"{name}: {bad}\n{statement}")
        assert plans.seen, f"{name} was not explained"


class Explained:
    """Explains each statement before it runs, and keeps the complaints about its plan."""

    MOST_ROWS = 500

    def __init__(self, store: Store) -> None:
        self.store = store
        self.seen = 0
        self.complaints: list[tuple[str, str]] = []

    def hook(self, _: Any, cursor: Any, statement: str, values: Any, *__: Any) -> None:
        """Explain a statement on events, over the same connection."""
        verbs = ("SELECT", "UPDATE", "DELETE", "WITH")
        if "event" not in statement or not statement.startswith(verbs):
            return
        self.seen += 1
        other = cursor.connection.cursor()
        if self.store.sqlite:
            other.execute(f"EXPLAIN QUERY PLAN {statement}", values)
            lines = [line[3] for line in other.fetchall()]
            scans = [line for line in lines if line.startswith("SCAN event") and "INDEX" not in line]
            # Most rows may be in one state, but only few have a lease.
            states = [
                line for line in lines if "event_by_state" in line and "lease_until <=" not in statement
            ]
            bad = scans + states
        else:
            other.execute("SAVEPOINT explained")
            other.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {statement}", values)
            bad = list(self._wide(other.fetchone()[0][0]["Plan"]))
            other.execute("ROLLBACK TO SAVEPOINT explained")
        self.complaints += [(statement, item) for item in bad]

    def _wide(self, node: dict[str, Any]) -> Any:
        read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        if node.get("Relation Name") == "event" and read * node["Actual Loops"] > self.MOST_ROWS:
            yield json.dumps({key: value for key, value in node.items() if key != "Plans"})
        for child in node.get("Plans", []):
            yield from self._wide(child)
