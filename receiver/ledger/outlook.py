"""What happens next to an event, when and why: one sentence for each state, from its row and its calls."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from receiver.ledger.calls.outlook import Deciding, choices, prospect
from receiver.ledger.duplicates import REVIVAL_PAUSE
from receiver.ledger.states import State
from receiver.ledger.sweep import REOPEN_WINDOW


class Seen(Protocol):
    """The part of an event's row that tells what happens next."""

    state: Any
    type: str
    generation: int
    attempts: int
    nudges: int
    discarded: bool
    reason: str | None
    lease_until: datetime | None
    due_at: datetime
    finished_at: datetime | None
    revived_at: datetime | None
    body: bytes | None


def outlook(event: Seen, now: datetime, call: Deciding | None = None) -> str:
    """Say what happens next, when and why, at the ledger's time `now`; `call` is the one that decides it."""
    if call is None or (event.state == State.DEAD and (event.discarded or event.body is None)):
        return _TELL[State(event.state)](event, now)
    if event.state == State.PARKED:
        return f"Nothing until a person resolves its call.{_because(event)} {choices(call, now)}"
    return f"{_TELL[State(event.state)](event, now)} {prospect(event.state, call, now)}"


def _received(event: Seen, _now: datetime) -> str:
    return f"Runs as soon as a worker is free; it waits since {_time(event.due_at)}{_nudged(event)}."


def _done(event: Seen, _now: datetime) -> str:
    hope = f"A rerun would start generation {event.generation + 1}."
    return f"Nothing: it is done.{_again(event, hope)}"


def _parked(event: Seen, _now: datetime) -> str:
    return f"Nothing until a person retries, reruns or discards it.{_because(event)}"


def _processing(event: Seen, now: datetime) -> str:
    lease = event.lease_until or now
    if lease <= now:
        return f"Another worker takes it over: the lease of attempt {event.attempts} ended at {_time(lease)}."
    return (
        f"A worker runs attempt {event.attempts} now; if it vanishes, another one takes over"
        f" when its lease ends at {_time(lease)}."
    )


def _waiting(event: Seen, now: datetime) -> str:
    number = event.attempts + 1
    if event.due_at <= now:
        since = f"{_time(event.due_at)}{_nudged(event)}"
        return f"Attempt {number} runs as soon as a worker is free; it is due since {since}."
    return f"Attempt {number} runs at {_time(event.due_at)}, in {_span(event.due_at - now)}.{_because(event)}"


def _dead(event: Seen, now: datetime) -> str:
    if event.discarded:
        return f"Nothing, not even at a new delivery.{_because(event)}"
    revival = (event.revived_at + REVIVAL_PAUSE) if event.revived_at else now
    when = "a new delivery" if revival <= now else f"a delivery after {_time(revival)}"
    return f"Nothing by itself.{_because(event)}{_again(event, f'A retry, a rerun or {when} runs it again.')}"


def _ignored(event: Seen, now: datetime) -> str:
    until = (event.finished_at or now) + REOPEN_WINDOW
    if until <= now:
        return f"Nothing: no handler takes {event.type}.{_again(event, 'Once one does, retry it.')}"
    when = f"before {_time(until)}"
    return f"A worker that starts {when} with a handler for {event.type} runs it; later, retry it."


def _again(event: Seen, hope: str) -> str:
    if event.body is None:
        return " Its payload is erased, so it cannot run again; the id stays, to tell duplicates."
    return f" {hope}"


def _because(event: Seen) -> str:
    if not event.reason:
        return ""
    return f" {event.reason}" if event.reason.endswith((".", "!", "?")) else f" {event.reason}."


def _nudged(event: Seen) -> str:
    return f" and was nudged {event.nudges} times" if event.nudges > 1 else ""


def _time(at: datetime) -> str:
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size * 2:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


_TELL: Final[Mapping[State, Callable[[Seen, datetime], str]]] = {
    State.RECEIVED: _received,
    State.PROCESSING: _processing,
    State.WAITING: _waiting,
    State.DONE: _done,
    State.PARKED: _parked,
    State.DEAD: _dead,
    State.IGNORED: _ignored,
}
