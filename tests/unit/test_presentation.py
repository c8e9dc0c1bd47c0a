"""An event's timeline as its page shows it."""

from datetime import UTC, datetime

from receiver.dashboard.presentation import timeline
from receiver.ledger.reports.models import (
    Action,
    Attempt,
    Duplicate,
    Duplicates,
    EventInFull,
    Nudges,
    Story,
)


def second(number: int) -> datetime:
    """Return a time this many seconds after midnight."""
    return datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC)


def test_the_timeline_is_in_order() -> None:
    """Oldest first; duplicates before the last 20 are one entry."""
    event = EventInFull.model_construct(received_at=second(0), address=None, suspected_replay=True)
    attempt = Attempt(
        number=1,
        generation=0,
        claim=1,
        started_at=second(2),
        ended_at=second(3),
        outcome="retry later",
        reason="No.",
        error="Trace",
        worker="one:1",
    )
    latest = [Duplicate(at=second(9), address="192.0.2.1")]
    story = Story.model_construct(
        event=event,
        duplicates=Duplicates(count=25, first=second(1), last=second(9), latest=latest),
        conflicts=[],
        attempts=[attempt],
        calls=[],
        actions=[Action(at=second(5), who="ada", what="retry", was="dead", generation=0, call=None)],
        nudges=Nudges(count=2, last=second(4)),
    )
    assert [moment.title for moment in timeline(story)] == [
        "First seen",
        "Came again 24 times",
        "Attempt 0.1 started",
        "Attempt 0.1 failed, runs again later",
        "Workers were woken 2 times for it",
        "ada retried it",
        "Came again, answered as a duplicate",
    ]
