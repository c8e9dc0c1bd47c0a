"""Statistics: counts by minute, by source and by state, pending events, and worker heartbeats."""

import json
from datetime import timedelta

import pytest

from receiver.ledger.control import discard
from receiver.ledger.counters import ALL_TIME, Rejected, record_rejections
from receiver.ledger.queue import forget_worker, prune, record_heartbeat
from receiver.ledger.reports import flow, pending, stats, throughput, workers
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import COUNTER
from receiver.ledger.text import uuid7
from tests.integration.steps import change, crowd, deliver, deliver_all, end, hooked, later


def repeat(store: Store, *names: str) -> None:
    """Deliver these events once more."""
    for name in names:
        deliver(store, name)


def test_each_minute_has_its_counts(store: Store) -> None:
    """The present minute is the last one, and older ones than the span are left out."""
    for event in deliver_all(store, 3)[:2]:
        end(store, event)
    repeat(store, "evt_0", "evt_1")
    deliver(store, "evt_2", b"another body")
    report = throughput(store, 5).as_json()
    assert [sum(report[name]) for name in ("accepted", "duplicates", "done")] == [3, 3, 2]
    assert [len(report[name]) for name in ("accepted", "duplicates", "done")] == [5, 5, 5]
    assert sum(report["done"][-2:]) == 2
    later(store, minutes=10)
    assert [sum(throughput(store, 5).as_json()[name]) for name in ("accepted", "duplicates", "done")] == [
        0,
        0,
        0,
    ]


def test_only_done_events_count_as_done(store: Store) -> None:
    """A dead event is not counted as done."""
    end(store, deliver(store, "evt_1").event)
    end(store, deliver(store, "evt_2").event, Move.GIVE_UP)
    assert sum(throughput(store, 5).as_json()["done"]) == 1


def test_counts_are_separate_by_source(store: Store) -> None:
    """Each source has its own accepted, duplicates, done and rejections."""
    end(store, deliver(store, "evt_1").event)
    deliver(store, "evt_2", source="github")
    deliver(store, "evt_1")
    record_rejections(store, [Rejected("shopify", "too_old")] * 2)
    found = {name: counts.as_json() for name, counts in flow(store, 60).items()}
    assert found["stripe"] == {"accepted": 1, "duplicates": 1, "done": 1, "rejections": {}}
    assert found["github"]["accepted"] == 1
    assert found["shopify"]["rejections"] == {"too_old": 2}
    later(store, hours=2)
    assert "stripe" not in (now := flow(store, 60)) or now["stripe"].accepted == 0


def test_a_span_reads_no_older_rows(store: Store) -> None:
    """The query searches an index, whatever the table's size."""
    crowd(store, 2_000, state="done", finished_at=store.after(timedelta(days=-9)))
    plans = list[str]()

    def explain(connection: object, _cursor: object, statement: str, given: object, *_: object) -> None:
        if "event.finished_at >=" in statement and not statement.startswith("EXPLAIN"):
            kind = "EXPLAIN QUERY PLAN" if store.sqlite else "EXPLAIN"
            cursor = connection.connection.cursor()  # type: ignore[attr-defined]
            cursor.execute(f"{kind} {statement}", given)
            plans.extend(" ".join(map(str, row)) for row in cursor.fetchall())

    with hooked(store, "before_cursor_execute", explain):
        throughput(store, 60)
    assert ("event_done" if store.sqlite else "Index") in " ".join(plans), plans
    assert not [line for line in plans if "Seq Scan on event" in line or line.endswith("SCAN event")], plans


def test_old_minutes_are_forgotten(store: Store) -> None:
    """Counts by minute are deleted after days, and totals stay."""
    repeat(store, "evt_0", "evt_0")
    later(store, days=3)
    repeat(store, "evt_0")
    prune(store, {})
    with store.read() as connection:
        kept = connection.execute(COUNTER.select().where(COUNTER.c.what == "duplicate")).all()
    assert sorted(row.count for row in kept if row.minute > ALL_TIME) == [1]
    assert sum(row.count for row in kept if row.minute == ALL_TIME) == 2


def test_pending_events_are_counted_by_source_and_state(store: Store) -> None:
    """Done events are not counted, and the oldest unfinished event is named."""
    first, second, third = deliver_all(store, 3)
    end(store, first)
    end(store, second, Move.PARK, reason="Look.")
    deliver(store, "evt_github", source="github")
    report = pending(store).as_json()
    assert report["states"] == {"stripe": {"parked": 1, "received": 1}, "github": {"received": 1}}
    assert report["oldest"]["id"] == str(third)
    assert report["due"]["count"] == 2
    later(store, minutes=5)
    assert pending(store).as_json()["due"]["seconds"] == pytest.approx(300, abs=60)


def test_the_oldest_is_found_in_any_state(store: Store) -> None:
    """A waiting event can be older than a received one."""
    old, _new = deliver_all(store, 2)
    change(store, old, state="waiting", received_at=store.after(timedelta(hours=-2)))
    report = pending(store).as_json()["oldest"]
    assert (report["id"], report["state"]) == (str(old), "waiting")
    assert report["seconds"] == pytest.approx(7200, abs=60)


def test_an_empty_ledger_has_nothing_pending(store: Store) -> None:
    """The counts are zero."""
    report = pending(store).as_json()
    assert (report["states"], report["oldest"], report["due"]) == ({}, None, {"count": 0, "seconds": 0.0})
    assert flow(store, 60) == {}


def test_a_worker_lives_while_it_says_so(store: Store) -> None:
    """A worker is listed for an hour after its last heartbeat, or until it stops in order."""
    record_heartbeat(store, "one:1")
    later(store, minutes=5)
    record_heartbeat(store, "two:2")
    report = workers(store)
    assert [worker.name for worker in report] == ["two:2", "one:1"]
    assert report[1].silent_seconds == pytest.approx(300, abs=30)
    later(store, minutes=58)
    record_heartbeat(store, "two:2")
    assert [worker.name for worker in workers(store)] == ["two:2"]
    forget_worker(store, "two:2")
    assert workers(store) == []


def test_ids_begin_with_their_minute() -> None:
    """The lower bound of a minute is below every id of it."""
    assert uuid7(1_000, 0) <= uuid7(1_000) < uuid7(1_001, 0)


def test_stats_count_by_source(store: Store) -> None:
    """Each source has its states, duplicates, conflicts, oldest unfinished event and rejections."""
    deliver(store, "evt_1")
    later(store, seconds=90)
    deliver(store, "evt_1", body=b"other")
    discard(store, deliver(store, "evt_2").event, "ann")
    end(store, deliver(store, "evt_1", source="github").event)
    record_rejections(store, [Rejected("slack", "bad_signature")] * 3)
    github, slack, stripe = stats(store).as_json()["data"]
    assert (stripe["source"], stripe["accepted"], stripe["duplicates"], stripe["conflicts"]) == (
        "stripe",
        2,
        1,
        1,
    )
    assert (stripe["states"]["received"], stripe["states"]["dead"], stripe["states"]["done"]) == (1, 1, 0)
    assert 89 < stripe["oldest_unfinished_seconds"] < 120
    assert (github["states"]["done"], github["oldest_unfinished"]) == (1, None)
    assert (slack["accepted"], slack["rejections"]) == (0, {"bad_signature": 3})
    json.dumps(stats(store).as_json())
