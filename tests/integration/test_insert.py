"""The fast path into the ledger: one statement that inserts, counts and commits."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from receiver.ledger.counters import CounterKind, totals
from receiver.ledger.intake import Recorder
from receiver.ledger.intake.group_commit import SHORT
from receiver.ledger.intake.insert import TooStrict
from receiver.ledger.intake.recording import record_first_seen
from receiver.ledger.store import Store
from tests.integration.steps import ONLY_POSTGRES, count, delivery, row, statements

LAZY, TRIES = 4, 100
"""Commits seen unflushed, and tries to see them: the server flushes in the background as well."""


@pytest.fixture
def other(request: pytest.FixtureRequest, store: Store) -> Iterator[Store]:
    """Open the ledger as a role with a setting of its own."""
    name = f"role_{uuid4().hex}"
    with store.engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'x'"))
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"))
        connection.execute(text(f"ALTER ROLE {name} SET {request.param}"))
    opened = Store(store.url.set(username=name, password="x").render_as_string(hide_password=False))
    yield opened
    opened.close()


def asked(store: Store, query: str) -> Any:
    """Return the single value of a query."""
    with store.read() as connection:
        return connection.execute(text(query)).scalar_one()


@pytest.mark.parametrize(**ONLY_POSTGRES)
@pytest.mark.parametrize("other", ["synchronous_commit = off"], indirect=True)
def test_it_is_on_disk_whatever_the_role_says(store: Store, other: Store) -> None:
    """Under a role with synchronous_commit off, the WAL is flushed when the response is sent."""
    lazily = text("INSERT INTO counter VALUES ('x', 'epoch', 'x', :what, 0, 1)")
    lazy = 0
    for number in range(TRIES):
        with other.engine.begin() as connection:
            connection.execute(lazily, {"what": uuid4().hex})
        written = asked(store, "SELECT pg_current_wal_insert_lsn()")
        lazy += asked(store, f"SELECT pg_current_wal_flush_lsn() < '{written}'")
        assert record_first_seen(other, [delivery(f"evt_{number}")])[0]
        assert asked(store, f"SELECT pg_current_wal_flush_lsn() >= '{written}'"), "the WAL was not flushed"
        if lazy == LAZY:
            break
    assert lazy == LAZY, "the role's own commits are not lazy"
    assert asked(other, "SELECT current_setting('synchronous_commit')") == "off"
    assert asked(other, "SELECT current_setting('lock_timeout')") == "0"


@pytest.mark.parametrize(**ONLY_POSTGRES)
@pytest.mark.parametrize("other", ["default_transaction_isolation = serializable"], indirect=True)
def test_a_stricter_database_records_in_a_transaction(other: Store) -> None:
    """Under serializable isolation the fast path is not tried; the recorder uses a transaction."""
    with pytest.raises(TooStrict):
        record_first_seen(other, [delivery()])
    assert Recorder(other).record([delivery()])[0].first_seen


def test_a_connection_that_broke_costs_no_delivery(store: Store) -> None:
    """A delivery is recorded over a new connection if the pooled one died while idle."""
    recorder = Recorder(store)
    assert recorder.record([delivery("evt_1")])[0].first_seen
    if not store.sqlite:
        outside = Store(store.url.render_as_string(hide_password=False))
        theirs = "datname = current_database() AND pid <> pg_backend_pid()"
        with outside.read() as connection:
            connection.execute(text(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {theirs}"))
        outside.close()
    assert recorder.record([delivery("evt_2")])[0].first_seen
    assert count(store) == 2
    # The other connections of the pool, which the next test shares, were terminated too.
    store.close()


def test_it_writes_what_a_transaction_writes(store: Store) -> None:
    """Both paths write equal rows, except for ids and times, and equal totals."""
    created = datetime(2026, 5, 1, 12, 30, 15, 123456, tzinfo=UTC)
    facts = {"created_at": created, "address": "192.0.2.1", "headers": {"X-A": "caf\u00e9 'q' %s"}}
    one = replace(delivery("evt_1"), **facts, type="a\x00b\ud800", traceparent="00-1-2-01")
    short = record_first_seen(store, [one])[0]
    assert short is not None
    general = Recorder(store).record([replace(one, event_id="evt_2"), replace(one, event_id="evt_3")])
    rows = [row(store, found.event)._asdict() for found in (short, general[0])]
    for found in rows:
        del found["id"], found["event_id"], found["received_at"], found["due_at"]
    assert rows[0] == rows[1]
    with store.read() as connection:
        assert [total.count for total in totals(connection, CounterKind.DELIVERY)] == [3]


def test_large_bodies_are_recorded_in_a_transaction(store: Store) -> None:
    """Large bodies skip the fast path, which would have to send them twice if it declined."""
    recorder = Recorder(store)
    with statements(store) as ways:
        assert recorder.record([delivery("evt_1")])[0].first_seen
        assert not ways
        assert recorder.record([replace(delivery("evt_2"), body=b"x" * (SHORT + 1))])[0].first_seen
        assert ways
