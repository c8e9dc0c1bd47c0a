"""The stored columns, read without the models, as an operator's SQL reads them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text

from receiver.ledger.control import discard
from receiver.ledger.states import Move, State
from receiver.ledger.store import Store
from tests.integration.steps import deliver, end, take

AT = datetime(2026, 5, 6, 7, 8, 9, 10, tzinfo=timezone(timedelta(hours=-7)))


def raw(store: Store, query: str) -> list[Any]:
    """Return the first column of a plain query."""
    with store.read() as connection:
        return list(connection.execute(text(query)).scalars())


def utc(store: Store, value: Any) -> datetime:
    """Parse a raw time: text without a zone on SQLite, an instant on PostgreSQL."""
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if store.sqlite else value


def test_states_are_stored_by_their_lower_case_values(store: Store) -> None:
    """States are stored by value, and not by the enum member's name."""
    moves = {"b": Move.FINISH, "c": Move.RETRY_LATER, "d": Move.PARK, "e": Move.GIVE_UP, "f": Move.IGNORE}
    deliver(store, "a")
    for name, move in moves.items():
        end(store, deliver(store, name).event, move)
    take(store, deliver(store, "g").event)
    report = raw(store, "SELECT state FROM event ORDER BY event_id")
    assert report == ["received", "done", "waiting", "parked", "dead", "ignored", "processing"]
    assert set(report) == {state.value for state in State}


def test_moves_are_stored_by_their_words(store: Store) -> None:
    """Attempts store the move's value; actions store it with the state before."""
    end(store, deliver(store, "a").event, Move.RETRY_LATER)
    discard(store, deliver(store, "b").event, "ada")
    assert raw(store, "SELECT outcome FROM attempt") == ["retry later"]
    assert raw(store, "SELECT what FROM action") == ["discard"]
    assert raw(store, "SELECT was FROM action") == ["received"]


def test_times_are_utc(store: Store) -> None:
    """The ledger's own times and a provider's time from another zone are stored in UTC."""
    made = deliver(store, created_at=AT).event
    end(store, made)
    deliver(store)
    assert utc(store, raw(store, "SELECT created_at FROM event")[0]) == AT
    now = datetime.now(UTC)
    for column in ("received_at", "due_at", "finished_at", "first_duplicate_at", "last_duplicate_at"):
        report = utc(store, raw(store, f"SELECT {column} FROM event")[0])
        assert abs(report - now) < timedelta(minutes=5), column
    for column in ("started_at", "ended_at"):
        assert abs(utc(store, raw(store, f"SELECT {column} FROM attempt")[0]) - now) < timedelta(minutes=5)


@pytest.mark.parametrize("body", [b"", b"\x00", bytes(range(256)) * 40, "ü😀".encode(), b"\xff\xfe{"])
def test_bytes_are_exact(store: Store, body: bytes) -> None:
    """A body is stored byte for byte, with its SHA-256 in hex."""
    deliver(store, body=body)
    deliver(store, body=b"other" + body)
    assert raw(store, "SELECT body FROM event") == [body]
    assert raw(store, "SELECT body FROM conflict") == [b"other" + body]
    assert [len(item) for item in raw(store, "SELECT body_hash FROM event")] == [64]


def test_text_is_text(store: Store) -> None:
    """Non-ASCII ids, types and headers match plain equality."""
    deliver(store, "ид-ü-😀", type="größer", headers={"X": "é"})
    assert raw(store, "SELECT event_id FROM event WHERE type = 'größer'") == ["ид-ü-😀"]
    assert raw(store, "SELECT headers FROM event") == ['{"X": "\\u00e9"}']


def test_flags_are_booleans(store: Store) -> None:
    """`WHERE discarded` works on both databases."""
    discard(store, deliver(store, "a").event, "ada")
    deliver(store, "b")
    assert raw(store, "SELECT event_id FROM event WHERE discarded") == ["a"]
    assert raw(store, "SELECT event_id FROM event WHERE NOT suspected_replay ORDER BY 1") == ["a", "b"]
