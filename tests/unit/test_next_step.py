"""An event's next step: one sentence for each state."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from receiver.ledger.reports.next_step import outlook
from receiver.ledger.states import State

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def event_row(**change: Any) -> Any:
    """Return an event's row with these changes."""
    row = {
        "state": State.RECEIVED,
        "type": "invoice.paid",
        "generation": 2,
        "attempts": 3,
        "nudges": 0,
        "discarded": False,
        "reason": None,
        "lease_until": None,
        "due_at": NOW - HOUR,
        "finished_at": None,
        "revived_at": None,
        "body": b"{}",
    }
    return SimpleNamespace(**(row | change))


@pytest.mark.parametrize("state", State)
def test_every_state_has_a_sentence(state: State) -> None:
    sentence = outlook(event_row(state=state), NOW)
    assert sentence.endswith("."), sentence
    assert sentence[0].isupper(), sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nudges": 3}, "waits since 2026-11-21T11:00:00Z and was nudged 3 times"),
        ({"state": "processing", "lease_until": NOW + HOUR}, "its lease ends at 2026-11-21T13:00:00Z"),
        ({"state": "processing", "lease_until": NOW - HOUR}, "Another worker takes it over"),
        ({"state": "waiting", "due_at": NOW + 2 * HOUR, "reason": "Boom."}, "in 2 h. Boom."),
        ({"state": "waiting", "due_at": NOW + HOUR / 40}, "Attempt 4 runs at 2026-11-21T12:01:30Z, in 90 s"),
        ({"state": "waiting"}, "it is due since 2026-11-21T11:00:00Z"),
        ({"state": "done"}, "A rerun would start generation 3."),
        ({"state": "done", "body": None}, "Its payload is erased"),
        ({"state": "parked", "reason": "No id."}, "retries, reruns or discards it. No id."),
        ({"state": "dead"}, "A retry, a rerun or a new delivery runs it again"),
        ({"state": "dead", "revived_at": NOW}, "a delivery after 2026-11-21T13:00:00Z"),
        ({"state": "dead", "discarded": True, "reason": "By ann."}, "not even at a new delivery. By ann."),
        ({"state": "ignored", "finished_at": NOW}, "before 2026-11-22T12:00:00Z with a handler"),
        ({"state": "ignored", "finished_at": NOW - 25 * HOUR}, "Once one does, retry it."),
    ],
)  # fmt: skip
def test_the_sentence_says_when_and_why(change: dict[str, Any], words: str) -> None:
    """Times, numbers and reasons are the row's own."""
    assert words in outlook(event_row(**change), NOW)
