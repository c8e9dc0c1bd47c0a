"""One attempt, start to end: claim, run the handler, settle. A closed set of outcomes, one match."""

import json
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from random import Random
from typing import Any
from uuid import UUID

from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.states import Move
from receiver.payload import parse_payload
from worker.calls.errors import CallError, CallLater, CallParked, CallRejected, CallUnknown
from worker.registry import Handler, Registry

# What a handler sees of an event.


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


# What a handler may raise to say how its attempt ended.


AFTER_MAX = timedelta(hours=24)
"""A longer wait is cut to this: whoever asked for more is asked again."""


class Retry(Exception):
    """Run this event again after a while. `after` is in seconds; left out, the handler's back-off decides."""

    def __init__(
        self, after: float | None = None, reason: str = "The handler asked for another run."
    ) -> None:
        super().__init__(reason)
        self.after = (
            None if after is None else timedelta(seconds=min(max(0.0, after), AFTER_MAX.total_seconds()))
        )


class Dead(Exception):
    """This event can never succeed: keep it, dead, with this reason."""

    def __init__(self, reason: str = "The handler gave this event up.") -> None:
        super().__init__(reason)


# How long a failed event waits: exponential with full jitter, so that failures do not return in step.


BASE = timedelta(seconds=2)
"""The first wait is at most this long; it doubles from there, up to FIRSTSEEN_BACKOFF_MAX."""

DOUBLINGS_MAX = 60


def backoff(attempt: int, *, cap: timedelta, rng: Random, base: timedelta = BASE) -> timedelta:
    """Return a wait between 0 and `base * 2**(attempt - 1)`, at most `cap`; attempts count from 1."""
    ceiling = min(cap.total_seconds(), base.total_seconds() * 2.0 ** min(attempt - 1, DOUBLINGS_MAX))
    return timedelta(seconds=rng.uniform(0, ceiling))


log = logging.getLogger(__name__)

REASON_MAX, STORY_MAX = 500, 20_000
"""Characters kept of a reason and of a traceback: enough to see why, too few to fill a disk with."""

UNAUTHORISED = (401, 403)
"""Statuses that a mended credential turns into another answer: the event waits for that."""


@dataclass(frozen=True)
class AttemptPolicy:
    """What decides about failures where a handler does not say."""

    attempts: int
    backoff_max: timedelta
    rng: Random = field(default_factory=Random)


MakeCalls = Callable[[Claim], Any]
"""Gives an attempt what its handler calls out with."""


def attempt(held: Claim, registry: Registry, policy: AttemptPolicy, make_calls: MakeCalls) -> Outcome:
    """Run the handler of a claimed event and say how it ended; never raises."""
    handler = registry.find(held.source, held.type)
    if handler is None:
        return _unhandled(held)
    if held.body is None:
        return Outcome(
            Move.PARK, reason="Its payload was erased after payload_retention, so no handler can run."
        )
    limit = handler.attempts or policy.attempts
    if held.attempt > limit:
        return Outcome(Move.GIVE_UP, reason=f"All {limit} attempts are used up; the last worker vanished.")
    try:
        calls = make_calls(held)
        handler.run(event_of(held), calls)
    except BaseException as error:  # noqa: BLE001 - whatever a handler raises must end in the ledger
        return _failed(held, handler, error, policy)
    unjournaled = getattr(calls, "unjournaled_error", None)
    return _failed(held, handler, unjournaled, policy) if unjournaled else Outcome(Move.FINISH)


def _unhandled(held: Claim) -> Outcome:
    if not held.tried:
        return Outcome(Move.IGNORE, reason=f"No handler for {held.type!r} from {held.source!r}.")
    return Outcome(Move.PARK, reason=f"There is no handler for {held.type!r} from {held.source!r} any more.")


def _failed(held: Claim, handler: Handler, error: BaseException, policy: AttemptPolicy) -> Outcome:
    if not isinstance(error, Dead | Retry | CallError):
        log.warning("Handler %s failed.", handler.name, exc_info=error)
    limit = handler.attempts or policy.attempts
    story = "".join(traceback.format_exception(error))[-STORY_MAX:]
    brief = _brief(error)
    wait = backoff(held.attempt, cap=policy.backoff_max, rng=policy.rng, base=handler.backoff or BASE)
    match error:
        case Dead():
            return Outcome(Move.GIVE_UP, reason=brief)
        case CallError() if (end := _decided(error, brief)) is not None:
            return end
        case _ if held.attempt >= limit:
            reason = f"All {limit} attempts failed; the last: {brief}"
            return Outcome(Move.GIVE_UP, reason=reason, error=story)
        case CallError():
            # After a 401 the next attempt sends a successor, with the credential that it finds then.
            rejected = error.call if isinstance(error, CallRejected) else None
            return Outcome(Move.RETRY_LATER, max(wait, _asked(error)), reason=brief, call=rejected)
        case Retry():
            return Outcome(Move.RETRY_LATER, wait if error.after is None else error.after, reason=brief)
        case _:
            reason = f"Attempt {held.attempt} failed: {brief}"
            return Outcome(Move.RETRY_LATER, wait, reason=reason, error=story)


def _decided(error: CallError, brief: str) -> Outcome | None:
    """Return the end that a call has decided, whatever the number of attempts; None where that counts."""
    match error:
        case CallParked():
            return Outcome(Move.PARK, reason=brief, call=error.call)
        case CallRejected() if error.response.status_code not in UNAUTHORISED:
            return Outcome(Move.GIVE_UP, reason=f"A call was rejected. {brief}")
        # Without a call it is in no journal that loses patience, as after a GET: that counts.
        case CallLater() if error.call and not isinstance(error, CallUnknown):
            return Outcome(Move.CALL_LATER, error.delay, reason=brief)
        case _:
            return None


def _asked(error: CallError) -> timedelta:
    return error.delay if isinstance(error, CallLater) else timedelta(0)


def _brief(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - it is the handler's class, and may be broken too
        text = "(its text cannot be had)"
    named = text if isinstance(error, Dead | Retry | CallError) else f"{type(error).__name__}: {text}"
    return named[:REASON_MAX]
