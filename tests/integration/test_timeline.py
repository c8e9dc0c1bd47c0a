"""Reports of events: lists with filters and pages, their query plans, and one event's timeline."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import select, text
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.control import rerun
from receiver.ledger.errors import BadCursor, UnknownEvent
from receiver.ledger.filter import EventFilter, conditions
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.reports import find_event, list_events, story
from receiver.ledger.reports.models import EventsView
from receiver.ledger.states import Move, State
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from receiver.ledger.text import rfc3339
from tests.integration.steps import change, deliver, deliver_all, end, later, row, take

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
EVERY_PART = {
    "source": "stripe",
    "state": State.PARKED,
    "type": "invoice.paid",
    "since": NOON,
    "until": NOON + timedelta(hours=1),
    "event_id": "evt_1",
}


def ids(page: EventsView) -> list[str]:
    """Return the provider's event ids of a page."""
    return [event.event_id for event in page.data]


def pages(store: Store, which: EventFilter, limit: int) -> Iterator[EventsView]:
    """Yield all pages."""
    page = list_events(store, which, limit=limit)
    yield page
    while page.next:
        page = list_events(store, which, limit=limit, cursor=page.next)
        yield page


def test_an_event_has_the_agreed_shape(store: Store) -> None:
    """A listed event has twelve fields; ids are strings and times end with Z."""
    event = deliver(store).event
    deliver(store)
    deliver(store, body=b"other")
    end(store, event, Move.RETRY_LATER, reason="Not now.")
    shown = list_events(store, EventFilter()).data[0].as_json()
    assert shown == {
        "id": str(event),
        "source": "stripe",
        "event_id": "evt_1",
        "type": "invoice.paid",
        "state": "waiting",
        "attempts": 1,
        "generation": 0,
        "received_at": rfc3339(row(store, event).received_at),
        "due_at": rfc3339(row(store, event).due_at),
        "reason": "Not now.",
        "duplicates": 2,
        "conflicts": 1,
    }
    assert shown["received_at"].endswith("Z")


def test_each_part_of_a_filter_narrows(store: Store) -> None:
    """Source, state, type and id each narrow the list, and together they intersect."""
    end(store, deliver(store, "evt_1").event)
    deliver(store, "evt_2", type="invoice.failed")
    deliver(store, "evt_1", source="github")
    assert ids(list_events(store, EventFilter())) == ["evt_1", "evt_2", "evt_1"]
    assert ids(list_events(store, EventFilter(source="stripe"))) == ["evt_2", "evt_1"]
    assert ids(list_events(store, EventFilter(state=State.DONE))) == ["evt_1"]
    assert ids(list_events(store, EventFilter(type="invoice.failed"))) == ["evt_2"]
    assert len(list_events(store, EventFilter(event_id="evt_1")).data) == 2
    assert len(list_events(store, EventFilter(event_id="evt_1", source="github", state=State.DONE)).data) == 0


def test_since_is_inclusive_and_until_is_not(store: Store) -> None:
    """Adjacent spans share no event and miss none."""
    for number in range(3):
        deliver(store, f"evt_{number}")
    times = {event.event_id: event.received_at for event in list_events(store, EventFilter()).data}
    middle = times["evt_1"]
    assert "evt_1" in ids(list_events(store, EventFilter(since=middle)))
    assert "evt_1" not in ids(list_events(store, EventFilter(until=middle)))
    both = len(list_events(store, EventFilter(since=middle)).data) + len(
        list_events(store, EventFilter(until=middle)).data
    )
    assert both == 3


def test_a_shifted_clock_still_finds_events_by_time(store: Store) -> None:
    """A filter by time uses the ledger's clock, also where it differs from the host's."""
    later(store, days=3)
    deliver(store)
    span = EventFilter(
        since=datetime.now(UTC) + timedelta(days=2), until=datetime.now(UTC) + timedelta(days=4)
    )
    assert len(list_events(store, span).data) == 1


@pytest.mark.parametrize("moment", [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)])
def test_any_time_can_be_asked_for(store: Store, moment: datetime) -> None:
    """The earliest and the latest datetime are valid bounds."""
    deliver(store)
    assert (
        len(list_events(store, EventFilter(since=moment)).data)
        + len(list_events(store, EventFilter(until=moment)).data)
        == 1
    )


def test_pages_are_complete_and_disjoint_while_events_arrive(store: Store) -> None:
    """Every event of the first page's time is listed once, while others arrive."""
    there = {f"evt_{n}" for n in range(25)}
    deliver_all(store, 25)
    seen: list[str] = []
    for number, page in enumerate(pages(store, EventFilter(source="stripe"), 4)):
        seen += ids(page)
        deliver(store, f"new_{number}")
    assert len(seen) == len(set(seen)), "an event stands on two pages"
    assert set(seen) == there


def test_a_full_last_page_has_no_next(store: Store) -> None:
    """A full last page has no `next`."""
    deliver_all(store, 5)
    assert [len(page.data) for page in pages(store, EventFilter(), 5)] == [5]
    deliver(store, "evt_9")
    assert [len(page.data) for page in pages(store, EventFilter(), 5)] == [5, 1]
    assert list_events(store, EventFilter(source="none")).as_json() == {"data": [], "next": None}


@pytest.mark.parametrize("cursor", ["x", "ü", "=" * 9, "a" * 23, "\x00", "AAAA"])
def test_a_foreign_cursor_is_refused(store: Store, cursor: str) -> None:
    """A cursor that this ledger did not make is a BadCursor."""
    with pytest.raises(BadCursor):
        list_events(store, EventFilter(), cursor=cursor)


def test_texts_that_no_column_holds_match_nothing(store: Store) -> None:
    """NUL and lone surrogates match nothing; an event with such an id is found by its hash."""
    deliver(store, "evt_\x00")
    assert len(list_events(store, EventFilter(source="\x00")).data) == 0
    assert len(list_events(store, EventFilter(type="\ud800")).data) == 0
    assert find_event(store, "stripe", "evt_\x00") == list_events(store, EventFilter()).data[0].id


def test_an_unknown_event_is_named(store: Store) -> None:
    """The error names the id and the source."""
    with pytest.raises(UnknownEvent, match="No event evt_9 of stripe"):
        find_event(store, "stripe", "evt_9")


@pytest.mark.parametrize(
    "parts",
    [("source",), ("state",), ("type",), ("source", "state"), ("since",), ("until",), ("event_id",), ()],
    ids=" ".join,
)
def test_lists_search_an_index_and_stop_early(store: Store, parts: tuple[str, ...]) -> None:
    """No list reads or sorts the whole table: the plan walks an index in the page's order."""
    plan = explained(store, EventFilter(**{part: EVERY_PART[part] for part in parts}))
    assert "sort" not in plan.lower().replace("temp b-tree", "sort") or "event_id" in parts, plan
    assert "Seq Scan" not in plan, plan
    assert "SCAN event\n" not in f"{plan}\n", plan


def explained(store: Store, which: EventFilter) -> str:
    """Return the database's plan for a first page; PostgreSQL's as for a table too large to sort."""
    listed = (
        select(EVENT.c.id, EVENT.c.reason)
        .where(*conditions(store, which))
        .order_by(EVENT.c.id.desc())
        .limit(50)
    )
    dialect: Any = sqlite.dialect() if store.sqlite else postgresql.dialect()
    query = str(listed.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
    with store.read() as connection:
        if store.sqlite:
            rows = connection.execute(text(f"EXPLAIN QUERY PLAN {escaped(query)}")).all()
            return "\n".join(item[3] for item in rows)
        for setting in ("enable_seqscan", "enable_bitmapscan", "enable_sort"):
            connection.execute(text(f"SET LOCAL {setting} = off"))
        return "\n".join(item[0] for item in connection.execute(text(f"EXPLAIN {escaped(query)}")))


def escaped(query: str) -> str:
    """Escape colons, which `text()` would take for parameters."""
    return query.replace(":", "\\:")


def test_a_page_is_bounded(store: Store) -> None:
    """A page has at least one and at most 500 events, whatever the limit."""
    deliver_all(store, 502)
    assert len(list_events(store, EventFilter(), limit=10_000).data) == 500
    assert len(list_events(store, EventFilter(), limit=0).data) == 1


def test_a_filter_by_state_sees_the_present_state(store: Store) -> None:
    """An event is listed under its present state only."""
    event = deliver(store).event
    change(store, event, state=State.PARKED)
    assert ids(list_events(store, EventFilter(state=State.PARKED))) == ["evt_1"]
    assert ids(list_events(store, EventFilter(state=State.RECEIVED))) == []


def test_the_whole_story_of_an_event(store: Store) -> None:
    """Duplicates, conflicts, attempts, actions and the next step are in one JSON document."""
    event = deliver(store, body=b"first", address="192.0.2.1").event
    for number in range(25):
        deliver(store, body=b"first", address=f"192.0.2.{number}")
        later(store, seconds=1)
    deliver(store, body=b"other", address="192.0.2.99")
    failed = Outcome(Move.RETRY_LATER, reason="Attempt 1 failed.", error="Traceback: boom")
    assert settle(store, [(take(store, event, worker="host:1"), failed)])
    later(store, minutes=1)
    end(store, event)
    rerun(store, event, "ann", generation=0)
    report = story(store, event).as_json()
    json.dumps(report)
    assert report["event"]["address"] == "192.0.2.1"
    assert report["duplicates"]["count"] == 26
    latest = report["duplicates"]["latest"]
    assert [one["address"] for one in latest][:2] == ["192.0.2.99", "192.0.2.24"]
    assert len(latest) == 20
    assert latest == sorted(latest, key=lambda one: one["at"], reverse=True)
    assert report["duplicates"]["first"] < report["duplicates"]["last"]
    assert [(one["size"], one["promoted_to"]) for one in report["conflicts"]] == [(5, None)]
    outcomes = [(one["number"], one["generation"], one["outcome"]) for one in report["attempts"]]
    assert outcomes == [(1, 0, "retry later"), (2, 0, "finish")]
    assert (report["attempts"][0]["error"], report["attempts"][0]["worker"]) == ("Traceback: boom", "host:1")
    assert [(one["what"], one["who"], one["was"]) for one in report["actions"]] == [("rerun", "ann", "done")]
    assert report["calls"] == []
    assert report["next"].startswith("Attempt 1 runs as soon as a worker is free")


def test_a_running_attempt_is_open(store: Store) -> None:
    """The attempt of a held event has no end, and the next step says that it runs."""
    event = deliver(store).event
    take(store, event, worker="host:1")
    report = story(store, event).as_json()
    assert (report["attempts"][0]["ended_at"], report["attempts"][0]["outcome"]) == (None, None)
    assert report["next"].startswith("A worker runs attempt 1 now")


def test_an_unknown_event_has_no_story(store: Store) -> None:
    """An unknown event is an UnknownEvent error."""
    with pytest.raises(UnknownEvent):
        story(store, uuid4()).as_json()
