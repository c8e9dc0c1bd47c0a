"""One attempt, start to end: find the handler, run it, and say how its event goes on.

`attempt` returns one of a closed set of outcomes: one `match` decides what an error of the handler or of its
calls comes to. `Event` is what a handler sees; `Retry` and `Dead` are what it may raise to say how it ends.
"""

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from http import HTTPStatus
from random import Random
from typing import Any
from uuid import UUID

from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.states import Move
from receiver.payload import parse_payload
from worker.calls.errors import CallError, CallLater, CallParked, CallRejected, CallUnknown
from worker.registry import Handler, Registry

log = logging.getLogger(__name__)

# The first wait is at most this long; it doubles from there, up to FIRSTSEEN_BACKOFF_MAX.
BASE = timedelta(seconds=2)

# Far past any cap; a power of thousands would overflow.
DOUBLINGS_MAX = 60

# A longer wait is cut to this: the handler that asked for more can ask again.
AFTER_MAX = timedelta(hours=24)

# Characters kept of a reason and of a traceback: enough to see why, too few to fill a disk with.
REASON_MAX, TRACEBACK_MAX = 500, 20_000

# Statuses that a mended credential turns into another response: the event waits for that.
UNAUTHORISED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


@dataclass(frozen=True)
class Event:
    """One first-seen event. `raw` is the exact body; `attempt` counts from 1, `generation` from 0."""

    source: str
    id: UUID
    event_id: str
    type: str
    created_at: datetime | None
    received_at: datetime
    raw: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    attempt: int
    generation: int

    @cached_property
    def data(self) -> Any:
        """Return the whole parsed payload, JSON or form; raises ValueError where it is neither."""
        return parse_payload(self.raw, self.headers.get("Content-Type"))


class Retry(Exception):
    """Run this event again after a while. `after` is in seconds; left out, the handler's back-off decides."""

    def __init__(
        self, after: float | None = None, reason: str = "The handler asked for another run."
    ) -> None:
        super().__init__(reason)
        # Bounded before it becomes a timedelta, which infinity would overflow.
        self.after = (
            None if after is None else timedelta(seconds=min(max(0.0, after), AFTER_MAX.total_seconds()))
        )


class Dead(Exception):
    """This event can never succeed: keep it, dead, with this reason."""

    def __init__(self, reason: str = "The handler gave this event up.") -> None:
        super().__init__(reason)


@dataclass(frozen=True)
class AttemptPolicy:
    """What decides about failures where a handler does not say."""

    attempts: int
    backoff_max: timedelta
    rng: Random = field(default_factory=Random)


# Makes what the handler of an attempt calls out with.
MakeCalls = Callable[[Claim], Any]


def attempt(held: Claim, registry: Registry, policy: AttemptPolicy, make_calls: MakeCalls) -> Outcome:
    """Run the handler of a claimed event and return how it ended; never raises."""
    handler = registry.find(held.source, held.type)
    if handler is None and not held.tried:
        return Outcome(Move.IGNORE, reason=f"No handler for {held.type!r} from {held.source!r}.")
    if handler is None:
        # An earlier attempt may have left calls open.
        reason = f"There is no handler for {held.type!r} from {held.source!r} any more."
        return Outcome(Move.PARK, reason=reason)
    if held.body is None:
        reason = "Its payload was erased after payload_retention, so no handler can run."
        return Outcome(Move.PARK, reason=reason)
    limit = handler.attempts or policy.attempts
    if held.attempt > limit:
        return Outcome(Move.GIVE_UP, reason=f"All {limit} attempts are used up; the last worker vanished.")
    try:
        calls = make_calls(held)
        handler.run(event_of(held), calls)
        # A handler may have caught what one of its calls raised.
        error = getattr(calls, "unjournaled_error", None)
    except BaseException as raised:  # noqa: BLE001 - whatever a handler raises must end in the ledger
        error = raised
    return Outcome(Move.FINISH) if error is None else _failed(held, handler, error, policy)


def _failed(held: Claim, handler: Handler, error: BaseException, policy: AttemptPolicy) -> Outcome:
    """Return what an attempt that raised this comes to."""
    ours = isinstance(error, Dead | Retry | CallError)
    if not ours:
        log.warning("Handler %s failed.", handler.name, exc_info=error)
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - it is the handler's class, and may be broken too
        text = "(its text cannot be had)"
    brief = (text if ours else f"{type(error).__name__}: {text}")[:REASON_MAX]
    story = "".join(traceback.format_exception(error))[-TRACEBACK_MAX:]
    limit = handler.attempts or policy.attempts
    wait = backoff(held.attempt, cap=policy.backoff_max, rng=policy.rng, base=handler.backoff or BASE)
    match error:
        case Dead():
            outcome = Outcome(Move.GIVE_UP, reason=brief)
        case CallParked():
            outcome = Outcome(Move.PARK, reason=brief, call=error.call)
        case CallRejected() if error.response.status_code not in UNAUTHORISED:
            outcome = Outcome(Move.GIVE_UP, reason=f"A call was rejected. {brief}")
        case CallLater() if error.call and not isinstance(error, CallUnknown):
            # The journal limits how long this may last; without a call, as after a GET, the attempts do.
            outcome = Outcome(Move.CALL_LATER, error.delay, reason=brief)
        case _ if held.attempt >= limit:
            reason = f"All {limit} attempts failed; the last: {brief}"
            outcome = Outcome(Move.GIVE_UP, reason=reason, error=story)
        case CallRejected():
            # The next attempt sends a successor, with the credential that it finds then.
            outcome = Outcome(Move.RETRY_LATER, wait, reason=brief, call=error.call)
        case CallLater():
            outcome = Outcome(Move.RETRY_LATER, max(wait, error.delay), reason=brief)
        case CallError():
            outcome = Outcome(Move.RETRY_LATER, wait, reason=brief)
        case Retry():
            outcome = Outcome(Move.RETRY_LATER, wait if error.after is None else error.after, reason=brief)
        case _:
            reason = f"Attempt {held.attempt} failed: {brief}"
            outcome = Outcome(Move.RETRY_LATER, wait, reason=reason, error=story)
    return outcome


def event_of(held: Claim) -> Event:
    """Build the handler's view of a claimed event."""
    headers = json.loads(held.headers)
    if held.content_type:
        headers["Content-Type"] = held.content_type
    return Event(
        source=held.source,
        id=held.event,
        event_id=held.event_id,
        type=held.type,
        created_at=held.created_at,
        received_at=held.received_at,
        raw=held.body or b"",
        headers=headers,
        attempt=held.attempt,
        generation=held.generation,
    )


def backoff(attempt: int, *, cap: timedelta, rng: Random, base: timedelta = BASE) -> timedelta:
    """Return a wait between 0 and `base * 2**(attempt - 1)`, at most `cap`; attempts count from 1.

    Full jitter, so that what failed together does not return together. It paces handlers and calls alike.
    """
    ceiling = min(cap.total_seconds(), base.total_seconds() * 2.0 ** min(attempt - 1, DOUBLINGS_MAX))
    return timedelta(seconds=rng.uniform(0, ceiling))
