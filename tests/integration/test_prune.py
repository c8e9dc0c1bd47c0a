"""Pruning: payloads first, ids stay as tombstones, and no unfinished or parked event is changed."""

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select

from receiver.ledger.control import discard
from receiver.ledger.queue import Retention, prune
from receiver.ledger.queue.sweep import PRUNE_BATCH
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, ATTEMPT, CONFLICT, COUNTER, DUPLICATE, EVENT
from tests.integration.steps import (
    LEASE,
    ONLY_POSTGRES,
    attempts,
    conflicts,
    count,
    crowd,
    deliver,
    duplicates,
    end,
    later,
    row,
    state,
    take,
    worst_plan,
)
from tests.services.claiming import claim

WINDOWS = {"stripe": Retention(retention=timedelta(days=90), payload_retention=timedelta(days=30))}
ENDS = [Move.FINISH, Move.GIVE_UP, Move.IGNORE]


def ended(store: Store, move: Move = Move.FINISH) -> UUID:
    """Record an event and end it."""
    made = deliver(store).event
    end(store, made, move)
    return made


@pytest.mark.parametrize("move", ENDS)
def test_the_payload_goes_first_and_the_id_stays(store: Store, move: Move) -> None:
    """After payload_retention only id, type, times and the body's hash are left."""
    made = deliver(store, headers={"h": "v"}, address="192.0.2.1").event
    deliver(store, body=b"other", address="192.0.2.2")
    end(store, made, move)
    before = row(store, made)
    later(store, days=29)
    assert prune(store, WINDOWS) == {"payloads": 0, "ids": 0, "rejections": 0}
    later(store, days=2)
    assert prune(store, WINDOWS) == {"payloads": 1, "ids": 0, "rejections": 0}
    found = row(store, made)
    assert (found.body, found.headers, found.address) == (None, None, None)
    assert (found.event_id, found.body_hash, found.state) == ("evt_1", before.body_hash, before.state)
    assert (conflicts(store, made), [duplicate.address for duplicate in duplicates(store, made)]) == (
        [],
        [None],
    )
    assert prune(store, WINDOWS)["payloads"] == 0, "an erased payload was counted again"


@pytest.mark.parametrize("move", ENDS)
def test_the_id_goes_when_retention_is_over(store: Store, move: Move) -> None:
    """The event's rows in all tables are deleted, and the id is first seen again."""
    made = ended(store, move=move)
    later(store, days=91)
    assert prune(store, WINDOWS)["ids"] == 1
    with store.read() as connection:
        for table in (EVENT, ATTEMPT, ACTION, CONFLICT, DUPLICATE):
            left = connection.execute(select(func.count()).select_from(table)).scalar_one()
            assert left == 0, f"{left} rows are left in {table}"
    again = deliver(store)
    assert (again.first_seen, again.event != made) == (True, True)


def test_retention_counts_from_the_end(store: Store) -> None:
    """Both retention times start when the event ends."""
    made = deliver(store).event
    end(store, made, Move.RETRY_LATER)
    later(store, days=200)
    end(store, made)
    later(store, days=29)
    assert prune(store, WINDOWS) == {"payloads": 0, "ids": 0, "rejections": 0}
    later(store, days=2)
    assert prune(store, WINDOWS)["payloads"] == 1
    later(store, days=60)
    assert prune(store, WINDOWS)["ids"] == 1


def test_an_id_that_is_still_sent_stays(store: Store) -> None:
    """A duplicate prolongs the tombstone by another retention."""
    made = ended(store)
    later(store, days=80)
    prune(store, WINDOWS)
    assert not deliver(store).first_seen
    later(store, days=80)
    assert prune(store, WINDOWS)["ids"] == 0
    assert deliver(store).event == made
    later(store, days=91)
    assert prune(store, WINDOWS)["ids"] == 1


@pytest.mark.parametrize("shape", ["received", "processing", "waiting", "parked", "parked at once"])
def test_unfinished_and_parked_events_are_never_pruned(store: Store, shape: str) -> None:
    """Unfinished and parked events keep their payload, however old they are."""
    problem = "It has no id." if shape == "parked at once" else None
    made = deliver(store, body=b"precious", headers={"h": "v"}, problem=problem).event
    deliver(store, body=b"other")
    match shape:
        case "processing":
            take(store, made)
        case "waiting":
            end(store, made, Move.RETRY_LATER)
        case "parked":
            end(store, made, Move.PARK)
    before = row(store, made)
    later(store, days=4000)
    assert prune(store, WINDOWS) == {"payloads": 0, "ids": 0, "rejections": 0}
    assert (row(store, made), len(conflicts(store, made))) == (before, 1)


def test_a_discarded_event_is_pruned_like_a_dead_one(store: Store) -> None:
    """Its audit row is deleted with it."""
    made = deliver(store).event
    discard(store, made, "ada")
    later(store, days=91)
    assert prune(store, WINDOWS)["ids"] == 1


def test_each_source_has_its_own_windows(store: Store) -> None:
    """A source without a configured retention is not pruned."""
    for source in ("stripe", "github", "gone"):
        end(store, deliver(store, source=source).event)
    later(store, days=91)
    long = Retention(retention=timedelta(days=400), payload_retention=timedelta(days=400))
    assert prune(store, WINDOWS | {"github": long})["ids"] == 1
    assert count(store, EVENT.c.body.is_not(None)) == 2


def test_a_tombstone_cannot_be_claimed(store: Store) -> None:
    """An erased event cannot be claimed."""
    made = ended(store, move=Move.GIVE_UP)
    later(store, days=31)
    prune(store, WINDOWS)
    deliver(store)
    assert claim(store, made, lease=LEASE, worker="w") is None
    assert state(store, made) == "dead"


def test_another_body_that_came_after_the_erasure_goes_too(store: Store) -> None:
    """A conflicting body that arrived later is kept for payload_retention from its own time."""
    made = ended(store)
    later(store, days=31)
    prune(store, WINDOWS)
    assert deliver(store, body=b"late").conflict
    later(store, days=29)
    prune(store, WINDOWS)
    assert [conflict.body for conflict in conflicts(store, made)] == [b"late"]
    later(store, days=2)
    prune(store, WINDOWS)
    assert conflicts(store, made) == []


def test_one_pass_takes_several_batches(store: Store) -> None:
    """One pass prunes more than one batch."""
    crowd(store, PRUNE_BATCH + 1, state="done", finished_at=store.after(timedelta(days=-31)))
    assert prune(store, WINDOWS) == {"payloads": PRUNE_BATCH + 1, "ids": 0, "rejections": 0}
    later(store, days=91)
    assert prune(store, WINDOWS)["ids"] == PRUNE_BATCH + 1


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_batch_is_a_batch_whatever_the_plan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds even if PostgreSQL runs the subquery again for each row."""
    monkeypatch.setattr("receiver.ledger.queue.sweep.PRUNE_BATCH", 5)
    monkeypatch.setattr("receiver.ledger.queue.sweep.PRUNE_BATCHES", 2)
    crowd(store, 30, state="done", finished_at=store.after(timedelta(days=-31)))
    with worst_plan(store):
        assert prune(store, WINDOWS)["payloads"] == 10


def test_old_rejections_go_after_thirty_days(store: Store) -> None:
    """Rejection counts per minute are deleted after thirty days."""
    refused = {"kind": "rejection", "name": "stripe", "what": "signature", "slot": 0, "count": 1}
    with store.write() as connection:
        for age in (29, 31):
            minute = store.after(timedelta(days=-age))
            connection.execute(COUNTER.insert().values(**refused, minute=minute))
    assert prune(store, {})["rejections"] == 1


def test_tracebacks_go_with_the_payload(store: Store) -> None:
    """Tracebacks, which may quote the payload, are erased with it; reason and outcome stay."""
    event = deliver(store).event
    end(store, event, Move.GIVE_UP, reason="It failed.", error="KeyError: 'jenny@example.com'")
    later(store, days=31)
    prune(store, {"stripe": Retention(timedelta(days=400), timedelta(days=30))})
    (attempt,) = attempts(store, event)
    assert (attempt.error, attempt.reason, attempt.outcome) == (None, "It failed.", "give up")
