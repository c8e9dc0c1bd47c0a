"""One query tells the whole story of an event, and one the figures of all."""

import json
from uuid import uuid4

import pytest

from receiver.ledger.control import discard, rerun
from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.errors import UnknownEvent
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.reports import stats, story
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.steps import deliver, end, later, take


def test_the_whole_story_of_an_event(store: Store) -> None:
    """Duplicates, conflicts, attempts, actions and what is next stand in one JSON-ready answer."""
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
    told = story(store, event).as_json()
    json.dumps(told)
    assert told["event"]["address"] == "192.0.2.1"
    assert told["duplicates"]["count"] == 26
    latest = told["duplicates"]["latest"]
    assert [one["address"] for one in latest][:2] == ["192.0.2.99", "192.0.2.24"]
    assert len(latest) == 20
    assert latest == sorted(latest, key=lambda one: one["at"], reverse=True)
    assert told["duplicates"]["first"] < told["duplicates"]["last"]
    assert [(one["size"], one["promoted_to"]) for one in told["conflicts"]] == [(5, None)]
    outcomes = [(one["number"], one["generation"], one["outcome"]) for one in told["attempts"]]
    assert outcomes == [(1, 0, "retry later"), (2, 0, "finish")]
    assert (told["attempts"][0]["error"], told["attempts"][0]["worker"]) == ("Traceback: boom", "host:1")
    assert [(one["what"], one["who"], one["was"]) for one in told["actions"]] == [("rerun", "ann", "done")]
    assert told["calls"] == []
    assert told["next"].startswith("Attempt 1 runs as soon as a worker is free")


def test_a_running_attempt_is_open(store: Store) -> None:
    """While a worker holds an event its attempt has no end, and the next line says until when it may."""
    event = deliver(store).event
    take(store, event, worker="host:1")
    told = story(store, event).as_json()
    assert (told["attempts"][0]["ended_at"], told["attempts"][0]["outcome"]) == (None, None)
    assert told["next"].startswith("A worker runs attempt 1 now")


def test_an_unknown_event_has_no_story(store: Store) -> None:
    """Asking for nothing says so."""
    with pytest.raises(UnknownEvent):
        story(store, uuid4()).as_json()


def test_stats_count_by_source(store: Store) -> None:
    """States, duplicates, conflicts, the oldest unfinished event and the rejections of each source."""
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
