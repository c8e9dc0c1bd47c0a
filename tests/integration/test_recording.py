"""Recording: first seen, duplicates and conflicts, and no verified delivery lost."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, exc, text

from receiver.ledger.control import discard
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Delivery, record
from receiver.ledger.queue import Retention, prune
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import (
    ONLY_POSTGRES,
    change,
    conflicts,
    count,
    deliver,
    delivery,
    duplicates,
    end,
    hooked,
    later,
    row,
    state,
    take,
)


def test_nothing_recorded_says_nothing(store: Store) -> None:
    """An empty batch gives no verdict."""
    assert record(store, []) == []


def test_the_first_delivery_is_first_seen(store: Store) -> None:
    """A new event is stored exactly, is due at once, and asks for a nudge."""
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    every_byte = bytes(range(256))
    made = deliver(
        store,
        body=every_byte,
        headers={"X-Shop": "a\x00b ü"},
        content_type="application/json",
        created_at=at,
        address="192.0.2.1",
    )
    assert (made.first_seen, made.conflict, made.nudge, made.event_id) == (True, False, True, "evt_1")
    found = row(store, made.event)
    assert (found.state, found.attempts, found.duplicates, found.generation) == ("received", 0, 0, 0)
    assert (found.body, found.created_at, found.address) == (every_byte, at, "192.0.2.1")
    assert found.headers == '{"X-Shop": "a\\u0000b \\u00fc"}'
    assert found.due_at <= datetime.now(UTC)
    assert abs(found.received_at - datetime.now(UTC)) < timedelta(minutes=5)


def test_a_second_delivery_is_a_duplicate(store: Store) -> None:
    """A duplicate does not change the event's body, and nudges it while it is unfinished."""
    first, again = deliver(store, address="a"), deliver(store, address="b")
    assert (again.event, again.first_seen, again.conflict, again.nudge) == (first.event, False, False, True)
    found = row(store, first.event)
    assert (found.duplicates, found.conflicts) == (1, 0)
    assert found.received_at <= min(found.first_duplicate_at, found.last_duplicate_at)
    assert abs(found.last_duplicate_at - found.first_duplicate_at) < timedelta(seconds=1)
    assert [duplicate.address for duplicate in duplicates(store, first.event)] == ["b"]


@pytest.mark.parametrize("move", [Move.FINISH, Move.PARK, Move.IGNORE, Move.RETRY_LATER])
def test_a_duplicate_nudges_what_is_unfinished_only(store: Store, move: Move) -> None:
    """A duplicate of an ended or parked event does not nudge it."""
    first = deliver(store)
    end(store, first.event, move)
    assert deliver(store).nudge is (move == Move.RETRY_LATER)


def test_a_duplicate_of_what_is_being_processed_does_not_nudge(store: Store) -> None:
    """A worker holds the event already; its lease covers a crash."""
    first = deliver(store)
    take(store, first.event)
    again = deliver(store)
    assert (again.nudge, state(store, first.event)) == (False, "processing")


def test_the_same_id_of_two_sources_is_two_events(store: Store) -> None:
    """Event ids are unique per source."""
    made = record(store, [delivery(source="a"), delivery(source="b")])
    assert [item.first_seen for item in made] == [True, True]
    assert made[0].event != made[1].event


def test_copies_within_a_batch_are_merged(store: Store) -> None:
    """Of three copies in one batch the first is first seen and the others are duplicates."""
    batch = [delivery("b"), delivery("a"), delivery("b"), delivery("b")]
    made = record(store, batch)
    assert [item.event_id for item in made] == ["b", "a", "b", "b"]
    assert [item.first_seen for item in made] == [True, True, False, False]
    assert row(store, made[0].event).duplicates == 2


def test_one_object_twice_in_a_batch_is_first_seen_once(store: Store) -> None:
    """The same Delivery object twice is one first-seen delivery and one duplicate."""
    one = delivery()
    made = record(store, [one, one])
    assert [verdict.first_seen for verdict in made] == [True, False]
    assert row(store, made[0].event).duplicates == 1


def test_the_first_of_a_batch_wins_and_another_body_is_a_conflict(store: Store) -> None:
    """Of two bodies under one id in a batch, the first is the event and the second a conflict."""
    made = record(store, [delivery(body=b"one"), delivery(body=b"two", headers={"h": "v"})])
    assert [(item.first_seen, item.conflict) for item in made] == [(True, False), (False, True)]
    found = row(store, made[0].event)
    assert (found.body, found.conflicts, found.duplicates) == (b"one", 1, 1)
    kept = conflicts(store, made[0].event)
    assert [(item.body, item.headers) for item in kept] == [(b"two", '{"h": "v"}')]


def test_a_conflict_is_kept_once_and_ten_at_most(store: Store) -> None:
    """Only ten conflicting bodies are stored; all different ones are counted."""
    first = deliver(store)
    for n in range(12):
        assert deliver(store, body=b"%d" % n).conflict
    for n in range(5):
        assert deliver(store, body=b"%d" % n).conflict, "a known other body is still not the event's"
    assert row(store, first.event).conflicts == 12
    assert len(conflicts(store, first.event)) == 10


def test_only_the_last_twenty_duplicates_are_kept(store: Store) -> None:
    """All duplicates are counted, and the last twenty are stored."""
    first = deliver(store)
    record(store, [delivery(address=str(n)) for n in range(45)])
    assert row(store, first.event).duplicates == 45
    kept = {duplicate.address for duplicate in duplicates(store, first.event)}
    assert kept == {str(n) for n in range(25, 45)}


def test_a_problem_parks_at_once(store: Store) -> None:
    """A delivery with a problem is stored as a parked event with the reason, and is not nudged."""
    made = deliver(store, problem="It has no id.")
    assert (made.first_seen, made.nudge) == (True, False)
    found = row(store, made.event)
    assert (found.state, found.reason) == ("parked", "It has no id.")


BAD_IDS = {"nul": "evt_\x00", "surrogate": "evt_\ud800", "long": "x" * 256, "huge": "😀" * 5000}
BAD_TEXTS = {"nul": "\x00", "surrogate": "\ud800", "long": "x" * 300, "escapes": "\udfff" * 300}


@pytest.mark.parametrize("bad", BAD_IDS.values(), ids=BAD_IDS)
def test_an_unstorable_id_is_stored_by_its_hash(store: Store, bad: str) -> None:
    """The event is stored under the hash of its id, and the rest of the batch is unaffected."""
    made = record(store, [delivery("a"), delivery(bad), delivery("z"), delivery(bad)])
    assert [item.first_seen for item in made] == [True, True, True, False]
    assert count(store) == 3
    assert made[1].event_id.startswith("sha256:")
    assert deliver(store, bad).event == made[1].event


@pytest.mark.parametrize("bad", BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_texts_that_no_column_holds_are_made_to_fit(store: Store, bad: str) -> None:
    """Unstorable type, address, content type, headers and problem are escaped or cut."""
    made = deliver(
        store, type=bad, address=bad, content_type=bad, headers={bad: bad}, problem=bad, body=b"kept"
    )
    found = row(store, made.event)
    assert (made.first_seen, found.body, found.state) == (True, b"kept", "parked")
    assert all(0 < len(item) <= 255 for item in (found.type, found.address, found.content_type))
    assert deliver(store, type=bad, address=bad, content_type=bad, headers={bad: bad}, body=b"2").conflict


@pytest.mark.parametrize(
    "created",
    [
        datetime(2026, 1, 1),  # noqa: DTZ001
        datetime.min.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=UTC),
    ],
)
def test_an_absurd_time_of_the_provider_is_dropped(store: Store, created: datetime) -> None:
    """A naive or extreme `created_at` is stored as null."""
    found = row(store, deliver(store, created_at=created).event)
    assert found.created_at is None


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_row_that_the_database_refuses_fails_alone(store: Store) -> None:
    """The rest of the batch is recorded before the refused row's error is raised."""
    with store.write() as connection:
        connection.execute(text("ALTER TABLE event ADD CONSTRAINT no_bad CHECK (event_id <> 'bad')"))
    try:
        with pytest.raises(exc.IntegrityError):
            record(store, [delivery("a"), delivery("bad"), delivery("z")])
    finally:
        with store.write() as connection:
            connection.execute(text("ALTER TABLE event DROP CONSTRAINT no_bad"))
    assert count(store, EVENT.c.event_id.in_(["a", "z"])) == 2, "a neighbour is lost"


def test_a_thousand_and_more_in_one_batch(store: Store) -> None:
    """A batch larger than one statement's limit has a verdict for each delivery, in order."""
    made = record(store, [delivery(f"evt_{n % 1200}") for n in range(1300)])
    assert [item.first_seen for item in made] == [True] * 1200 + [False] * 100
    assert [item.event_id for item in made] == [f"evt_{n % 1200}" for n in range(1300)]
    assert len({item.event for item in made}) == 1200


def test_a_new_delivery_revives_a_dead_event_at_most_once_an_hour(store: Store) -> None:
    """A revived event has fresh attempts; within the hour it is not revived again."""
    first = deliver(store)
    end(store, first.event, Move.GIVE_UP, reason="It failed.")
    assert row(store, first.event).finished_at is not None
    again = deliver(store)
    assert (again.first_seen, again.nudge) == (False, True)
    found = row(store, first.event)
    assert (found.state, found.attempts, found.crashes, found.finished_at) == ("waiting", 0, 0, None)
    assert found.reason != "It failed."
    end(store, first.event, Move.GIVE_UP)
    later(store, minutes=59)
    assert (deliver(store).nudge, state(store, first.event)) == (False, "dead")
    later(store, minutes=2)
    assert (deliver(store).nudge, state(store, first.event)) == (True, "waiting")


def test_a_discarded_event_is_never_revived(store: Store) -> None:
    """No number of deliveries revives a discarded event."""
    first = deliver(store)
    discard(store, first.event, "ada")
    for _ in range(3):
        later(store, hours=2)
        assert (deliver(store).nudge, state(store, first.event)) == (False, "dead")


def test_a_dead_event_without_its_body_is_not_revived(store: Store) -> None:
    """A dead event whose payload was erased stays dead."""
    first = deliver(store)
    end(store, first.event, Move.GIVE_UP)
    later(store, days=31)
    prune(store, {"stripe": Retention(timedelta(days=90), timedelta(days=30))})
    assert (deliver(store).nudge, state(store, first.event)) == (False, "dead")


def test_equal_bytes_under_a_new_id_are_flagged(store: Store) -> None:
    """With `run` a copy is flagged and runs; another body, type or source is not flagged."""
    deliver(store, "a", b"same", replay_guard="run")
    copy = deliver(store, "b", b"same", replay_guard="run")
    others = [
        deliver(store, "c", b"other", replay_guard="run"),
        deliver(store, "d", b"same", type="other", replay_guard="run"),
        deliver(store, "e", b"same", source="other", replay_guard="run"),
        deliver(store, "f", b"same"),
    ]
    assert (copy.nudge, state(store, copy.event)) == (True, "received")
    assert [row(store, item.event).suspected_replay for item in (copy, *others)] == [True, *[False] * 4]


def test_a_suspected_replay_parks_where_the_source_says_so(store: Store) -> None:
    """With `park` a copy under a new id is parked, and the first event runs."""
    first = deliver(store, "a", b"same", replay_guard="park")
    copy = deliver(store, "b", b"same", replay_guard="park")
    assert (first.nudge, copy.nudge, copy.first_seen) == (True, False, True)
    assert [state(store, item.event) for item in (first, copy)] == ["received", "parked"]
    assert "replay" in row(store, copy.event).reason


def test_of_two_equal_bodies_in_one_batch_the_first_to_come_runs(store: Store) -> None:
    """The order of arrival decides, and not the order of the ids."""
    made = record(
        store, [delivery("z", b"same", replay_guard="park"), delivery("a", b"same", replay_guard="park")]
    )
    assert [item.nudge for item in made] == [True, False]
    assert [state(store, item.event) for item in made] == ["received", "parked"]


def test_a_replay_of_an_erased_event_is_still_suspected(store: Store) -> None:
    """The body's hash is kept when the body is erased."""
    first = deliver(store, "a", b"same", replay_guard="park")
    end(store, first.event)
    later(store, days=31)
    prune(store, {"stripe": Retention(timedelta(days=90), timedelta(days=30))})
    assert state(store, deliver(store, "b", b"same", replay_guard="park").event) == "parked"


def test_of_concurrent_copies_under_many_ids_one_runs(store: Store) -> None:
    """Of concurrent copies under different ids, with `park` exactly one is not parked."""
    gate = threading.Barrier(8)
    verdicts = []

    def send(n: int) -> None:
        gate.wait()
        verdicts.append(deliver(store, f"copy_{n}", b"same", replay_guard="park"))

    threads = [threading.Thread(target=send, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(verdict.nudge for verdict in verdicts) == [False] * 7 + [True]
    assert count(store, EVENT.c.state == "parked") == 7


def test_a_tombstone_still_knows_its_id(store: Store) -> None:
    """A delivery of an erased event is a duplicate, and its address is not stored."""
    first = deliver(store, address="192.0.2.1")
    end(store, first.event)
    later(store, days=31)
    windows = {"stripe": Retention(timedelta(days=90), timedelta(days=30))}
    assert prune(store, windows)["payloads"] == 1
    again = deliver(store, address="192.0.2.2")
    assert (again.first_seen, again.event, again.nudge, again.conflict) == (False, first.event, False, False)
    assert [duplicate.address for duplicate in duplicates(store, first.event)] == [None]
    assert deliver(store, body=b"other").conflict


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_an_id_that_is_pruned_in_the_midst_is_first_seen(store: Store) -> None:
    """An id pruned between the INSERT and the UPDATE of a delivery is inserted after all."""
    old = deliver(store)
    left = [old.event]

    def prune_it(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if left and statement.startswith("INSERT INTO event"):
            victim = left.pop()
            with store.write() as connection:
                connection.execute(delete(EVENT).where(EVENT.c.id == victim))

    with hooked(store, "after_cursor_execute", prune_it):
        again = deliver(store)
    assert again.first_seen
    assert again.event != old.event


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_the_first_insert_is_first_seen(store: Store) -> None:
    """If another process inserts the id just before our INSERT, ours is the duplicate."""
    theirs = []

    def overtake(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO event") and not theirs:
            theirs.append(None)
            theirs[0] = deliver(store)

    with hooked(store, "before_cursor_execute", overtake):
        ours = deliver(store)
    assert (theirs[0].first_seen, ours.first_seen, ours.event) == (True, False, theirs[0].event)
    assert row(store, ours.event).duplicates == 1


@pytest.fixture
def locked_row(store: Store) -> Iterator[Delivery]:
    """Return a recorded delivery whose row another transaction locks during the test."""
    found = delivery()
    made = record(store, [found])[0]
    with store.engine.connect() as other:
        other.execute(text("SELECT 1 FROM event WHERE id = :id FOR UPDATE"), {"id": made.event})
        yield found
        other.rollback()


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_lock_that_lasts_too_long_is_unavailable(
    store: Store, locked_row: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row locked beyond the lock timeout gives LedgerUnavailable, and no part of the batch is recorded."""
    batch = [delivery("a"), locked_row, delivery("z")]
    monkeypatch.setattr("receiver.ledger.store._LOCAL", "SET LOCAL lock_timeout = 300")
    with pytest.raises(LedgerUnavailable):
        record(store, batch)
    assert count(store, EVENT.c.event_id.in_(["a", "z"])) == 0


def test_a_row_changed_by_hand_cannot_break_the_invariant(store: Store) -> None:
    """Check constraints refuse unknown states, and processing without a lease."""
    made = deliver(store)
    for wrong in ({"state": "lost"}, {"state": "processing"}):
        with pytest.raises(exc.IntegrityError):
            change(store, made.event, **wrong)
