"""One attempt: what the handler does, and what becomes of the event."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

import httpx
import pytest

from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.states import Move
from worker import Dead, Retry
from worker.attempt import AttemptPolicy, attempt, event_of
from worker.calls.errors import (
    CallChanged,
    CallError,
    CallLater,
    CallLocked,
    CallMismatch,
    CallParked,
    CallRefused,
    CallRejected,
    CallUnknown,
    ClaimLost,
)
from worker.registry import Handler, Registry

NOW = datetime(2026, 11, 21, tzinfo=UTC)
POLICY = AttemptPolicy(3, timedelta(hours=1))
CALL = UUID(int=9)


class Broken(Exception):
    """An exception that cannot even be printed."""

    def __str__(self) -> str:
        raise ValueError


def claim(**changes: Any) -> Claim:
    """Return a claim of a first attempt."""
    given = {
        "event": UUID(int=7),
        "token": 1,
        "source": "stripe",
        "event_id": "evt_1",
        "type": "invoice.paid",
        "generation": 0,
        "attempt": 1,
        "created_at": NOW,
        "received_at": NOW,
        "body": b'{"amount": 5}',
        "headers": '{"X-Kept": "yes"}',
        "content_type": "application/json",
    }
    return Claim(**given | changes)


def no_calls(_held: Claim) -> None:
    """Give a handler nothing to call out with."""


def run(function: Callable[[Any, Any], object], held: Claim | None = None, **options: Any) -> Outcome:
    """Run one attempt with a handler and at most three attempts."""
    handlers = Registry([Handler("stripe", "invoice.paid", function, **options)])
    return attempt(held or claim(), handlers, AttemptPolicy(3, timedelta(hours=1), Random(1)), no_calls)


def raising(error: BaseException) -> Callable[[Any, Any], object]:
    """Return a handler that raises."""

    def handle(_event: Any, _calls: Any) -> None:
        raise error

    return handle


def test_a_handler_that_returns_is_done() -> None:
    """Whatever a handler returns, it finishes the event."""
    assert run(lambda _event, _calls: "ignored") == Outcome(Move.FINISH)


def test_a_handler_sees_the_event() -> None:
    """The event carries the exact body, the parsed payload, the kept headers and the counters."""
    seen = []
    run(lambda event, _calls: seen.append(event), claim(attempt=2, generation=1))
    (event,) = seen
    assert (event.source, event.event_id, event.type) == ("stripe", "evt_1", "invoice.paid")
    assert (event.attempt, event.generation) == (2, 1)
    assert (event.raw, event.data) == (b'{"amount": 5}', {"amount": 5})
    assert event.headers == {"X-Kept": "yes", "Content-Type": "application/json"}
    assert (event.created_at, event.received_at) == (NOW, NOW)


def test_an_event_prints_no_payload() -> None:
    """A logged event shows neither its body nor its headers."""
    shown = repr(event_of(claim(body=b"canary-body", headers='{"X": "canary-header"}')))
    assert "canary" not in shown
    assert "evt_1" in shown


def test_an_unreadable_payload_is_the_handlers_business() -> None:
    """`raw` is there whatever the body is; only `data` raises, and then the attempt fails."""
    held = claim(body=b"\xff\xfe")
    assert run(lambda event, _calls: event.raw, held).move is Move.FINISH
    assert run(lambda event, _calls: event.data, held).move is Move.RETRY_LATER


def test_a_failure_waits_and_keeps_its_traceback() -> None:
    """An exception is tried again after a backoff; reason and traceback are kept."""
    end = run(raising(RuntimeError("no such contact")))
    assert end.move is Move.RETRY_LATER
    assert timedelta(0) <= end.delay <= timedelta(seconds=2)
    assert end.reason == "Attempt 1 failed: RuntimeError: no such contact"
    assert end.error
    assert "in handle" in end.error


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Broken(), MemoryError()]
)
def test_nothing_that_a_handler_raises_escapes(error: BaseException) -> None:
    """A handler that exits, or whose exception is itself broken, ends its attempt and not the worker."""
    end = run(raising(error))
    assert end.move is Move.RETRY_LATER
    assert end.reason
    assert type(error).__name__ in end.reason


def test_attempts_are_used_up() -> None:
    """The last allowed attempt that fails ends the event dead, with its traceback."""
    end = run(raising(RuntimeError("still no contact")), claim(attempt=3))
    assert end.move is Move.GIVE_UP
    assert end.reason == "All 3 attempts failed; the last: RuntimeError: still no contact"
    assert end.error


def test_a_handlers_own_attempts_count() -> None:
    """`attempts=` of the decorator goes before the deployment's, either way."""
    assert run(raising(RuntimeError()), attempts=1).move is Move.GIVE_UP
    assert run(raising(RuntimeError()), claim(attempt=3), attempts=4).move is Move.RETRY_LATER


def test_a_handlers_own_backoff_counts() -> None:
    """`backoff=` of the decorator is the ceiling of the first wait."""
    waits = [run(raising(RuntimeError()), backoff=timedelta(minutes=10)).delay for _ in range(3)]
    assert max(waits) > timedelta(seconds=2)


def test_a_vanished_last_attempt_is_not_run_again() -> None:
    """After the last attempt's worker vanished, the handler does not run once more."""
    end = run(raising(AssertionError("it ran")), claim(attempt=4))
    assert end.move is Move.GIVE_UP
    assert end.reason
    assert "vanished" in end.reason


@pytest.mark.parametrize(
    ("after", "delay"),
    [
        (0, 0),
        (7.5, 7.5),
        (-3, 0),
        (86_400, 86_400),
        (90_000, 86_400),
        (1e300, 86_400),
        (float("inf"), 86_400),
    ],
)
def test_retry_after_is_respected_and_capped(after: float, delay: float) -> None:
    """`Retry(after=...)` waits so many seconds, never less than none and never more than a day."""
    end = run(raising(Retry(after=after)))
    assert (end.move, end.delay, end.error) == (Move.RETRY_LATER, timedelta(seconds=delay), None)


def test_retry_without_a_time_backs_off() -> None:
    """`Retry()` waits as a failure does, and its reason is kept."""
    end = run(raising(Retry(reason="rate limited")))
    assert end.move is Move.RETRY_LATER
    assert timedelta(0) < end.delay <= timedelta(seconds=2)
    assert end.reason == "rate limited"


def test_retry_uses_attempts_up() -> None:
    """A handler that asks for another run at its last attempt does not get it."""
    assert run(raising(Retry(after=1)), claim(attempt=3)).move is Move.GIVE_UP


def test_dead_is_final() -> None:
    """`Dead(reason)` ends the event at once, with that reason."""
    end = run(raising(Dead("no such customer")))
    assert (end.move, end.reason) == (Move.GIVE_UP, "no such customer")


def test_stories_are_bounded() -> None:
    """A huge message fills neither the reason nor the traceback's column; the end of it is what counts."""
    end = run(raising(RuntimeError("x" * 1_000_000 + "the end")))
    assert end.reason
    assert len(end.reason) < 1_000
    assert end.error
    assert len(end.error) < 30_000
    assert end.error.rstrip().endswith("the end")


def test_an_event_without_a_handler_is_ignored() -> None:
    """A claim that finds no handler, now or ever before, ignores the event and says for what."""
    end = attempt(claim(type="other", token=3, attempt=2), Registry([]), POLICY, no_calls)
    assert end == Outcome(Move.IGNORE, reason="No handler for 'other' from 'stripe'.")


def test_an_event_whose_handler_is_gone_is_parked() -> None:
    """An event that a handler worked on is not ignored once that handler is gone: calls may be open."""
    end = attempt(claim(tried=True), Registry([]), POLICY, no_calls)
    assert end.move is Move.PARK


def test_an_erased_payload_is_parked() -> None:
    """Without a body no handler runs; a person must look."""
    end = run(raising(AssertionError("it ran")), claim(body=None))
    assert end.move is Move.PARK
    assert end.reason
    assert "erased" in end.reason


def rejected(status: int) -> CallRejected:
    """Return what a call raises that the API said no to."""
    return CallRejected("It said no.", httpx.Response(status), CALL)


@pytest.mark.parametrize("kind", [CallParked, CallMismatch, CallChanged])
@pytest.mark.parametrize("number", [1, 3])
def test_a_parked_call_parks_its_event(kind: type[CallError], number: int) -> None:
    """Whatever needs a person parks at once, whichever attempt it is, and the event names the call."""
    end = run(raising(kind("Look.", CALL)), claim(attempt=number))
    assert end == Outcome(Move.PARK, reason="Look.", call=CALL)


@pytest.mark.parametrize("kind", [CallLater, CallLocked])
@pytest.mark.parametrize("number", [1, 3])
def test_a_call_for_later_costs_no_attempt(kind: type[CallLater], number: int) -> None:
    """Later and locked wait as long as they say, even at the last attempt."""
    end = run(raising(kind("Later.", timedelta(hours=2), CALL)), claim(attempt=number))
    assert end == Outcome(Move.CALL_LATER, timedelta(hours=2), reason="Later.")


def test_an_unknown_call_costs_an_attempt() -> None:
    """An answer that did not come waits for as long as the call says, and uses attempts up."""
    error = CallUnknown("No answer.", timedelta(hours=2), CALL)
    assert run(raising(error)) == Outcome(Move.RETRY_LATER, timedelta(hours=2), reason="No answer.")
    assert run(raising(error), claim(attempt=3)).move is Move.GIVE_UP


@pytest.mark.parametrize("status", [400, 402, 404, 409, 422])
def test_a_rejected_call_ends_its_event(status: int) -> None:
    """A call that the API said no to ends the event dead at its first attempt."""
    end = run(raising(rejected(status)))
    assert end == Outcome(Move.GIVE_UP, reason="A call was rejected. It said no.")


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_waits(status: int) -> None:
    """After a 401 or 403 the event waits, names the call for its successor, and uses attempts up."""
    end = run(raising(rejected(status)))
    assert (end.move, end.call) == (Move.RETRY_LATER, CALL)
    assert run(raising(rejected(status)), claim(attempt=3)).move is Move.GIVE_UP


@pytest.mark.parametrize("error", [CallRefused("No such path."), ClaimLost("Taken over.")])
def test_what_was_never_sent_is_a_failure(error: CallError) -> None:
    """A call that is asked for wrongly, and a claim that is lost, fail the attempt and name no call."""
    end = run(raising(error))
    assert (end.move, end.reason, end.call) == (Move.RETRY_LATER, str(error), None)


def test_reading_for_later_costs_an_attempt() -> None:
    """A GET that gets no answer is in no journal that could lose patience: it uses attempts up."""
    error = CallLater("GET /a: it answered 503.", timedelta(seconds=5))
    assert run(raising(error)).move is Move.RETRY_LATER
    assert run(raising(error), claim(attempt=3)).move is Move.GIVE_UP
