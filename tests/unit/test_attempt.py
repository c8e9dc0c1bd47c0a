"""One attempt: what the handler returns or raises, and the outcome for its event."""

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
    """An exception whose `str()` raises."""

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
    """Provide no calls."""


def run(function: Callable[[Any, Any], object], held: Claim | None = None, **options: Any) -> Outcome:
    """Run one attempt of a handler, with three attempts allowed."""
    handlers = Registry([Handler("stripe", "invoice.paid", function, **options)])
    return attempt(held or claim(), handlers, AttemptPolicy(3, timedelta(hours=1), Random(1)), no_calls)


def raising(error: BaseException) -> Callable[[Any, Any], object]:
    """Return a handler that raises."""

    def handle(_event: Any, _calls: Any) -> None:
        raise error

    return handle


def test_a_handler_that_returns_is_done() -> None:
    """The returned value is ignored."""
    assert run(lambda _event, _calls: "ignored") == Outcome(Move.FINISH)


def test_a_handler_sees_the_event() -> None:
    """It has the exact body, the parsed payload, the kept headers and the counters."""
    seen = []
    run(lambda event, _calls: seen.append(event), claim(attempt=2, generation=1))
    (event,) = seen
    assert (event.source, event.event_id, event.type) == ("stripe", "evt_1", "invoice.paid")
    assert (event.attempt, event.generation) == (2, 1)
    assert (event.raw, event.data) == (b'{"amount": 5}', {"amount": 5})
    assert event.headers == {"X-Kept": "yes", "Content-Type": "application/json"}
    assert (event.created_at, event.received_at) == (NOW, NOW)


def test_the_repr_of_an_event_shows_no_payload() -> None:
    """Neither body nor headers."""
    shown = repr(event_of(claim(body=b"canary-body", headers='{"X": "canary-header"}')))
    assert "canary" not in shown
    assert "evt_1" in shown


def test_an_unreadable_payload_raises_only_when_read() -> None:
    """`event.raw` works for any body; `event.data` raises, which fails the attempt."""
    held = claim(body=b"\xff\xfe")
    assert run(lambda event, _calls: event.raw, held).move is Move.FINISH
    assert run(lambda event, _calls: event.data, held).move is Move.RETRY_LATER


def test_a_failure_waits_and_keeps_its_traceback() -> None:
    """An exception is retried after a back-off; reason and traceback are kept."""
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
    """Even SystemExit, or an exception that cannot be printed, fails the attempt and not the worker."""
    end = run(raising(error))
    assert end.move is Move.RETRY_LATER
    assert end.reason
    assert type(error).__name__ in end.reason


def test_the_last_attempt_gives_up() -> None:
    """Its traceback is kept."""
    end = run(raising(RuntimeError("still no contact")), claim(attempt=3))
    assert end.move is Move.GIVE_UP
    assert end.reason == "All 3 attempts failed; the last: RuntimeError: still no contact"
    assert end.error


def test_a_handlers_attempts_override_the_default() -> None:
    """A lower number and a higher one."""
    assert run(raising(RuntimeError()), attempts=1).move is Move.GIVE_UP
    assert run(raising(RuntimeError()), claim(attempt=3), attempts=4).move is Move.RETRY_LATER


def test_a_handlers_backoff_overrides_the_default() -> None:
    """It is the ceiling of the first wait."""
    waits = [run(raising(RuntimeError()), backoff=timedelta(minutes=10)).delay for _ in range(3)]
    assert max(waits) > timedelta(seconds=2)


def test_a_vanished_last_attempt_is_not_run_again() -> None:
    """If the worker of the last attempt vanished, the handler does not run once more."""
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
    """`Retry(after=...)` waits that many seconds, from none to a day."""
    end = run(raising(Retry(after=after)))
    assert (end.move, end.delay, end.error) == (Move.RETRY_LATER, timedelta(seconds=delay), None)


def test_retry_without_a_time_backs_off() -> None:
    """`Retry()` waits like a failure, and its reason is kept."""
    end = run(raising(Retry(reason="rate limited")))
    assert end.move is Move.RETRY_LATER
    assert timedelta(0) < end.delay <= timedelta(seconds=2)
    assert end.reason == "rate limited"


def test_retry_uses_attempts_up() -> None:
    """`Retry` in the last attempt gives up."""
    assert run(raising(Retry(after=1)), claim(attempt=3)).move is Move.GIVE_UP


def test_dead_is_final() -> None:
    """`Dead(reason)` ends the event at once with that reason."""
    end = run(raising(Dead("no such customer")))
    assert (end.move, end.reason) == (Move.GIVE_UP, "no such customer")


def test_reason_and_traceback_are_bounded() -> None:
    """The end of a huge traceback is kept, because the error is there."""
    end = run(raising(RuntimeError("x" * 1_000_000 + "the end")))
    assert end.reason
    assert len(end.reason) < 1_000
    assert end.error
    assert len(end.error) < 30_000
    assert end.error.rstrip().endswith("the end")


def test_an_event_without_a_handler_is_ignored() -> None:
    """The reason names the type and the source."""
    end = attempt(claim(type="other", token=3, attempt=2), Registry([]), POLICY, no_calls)
    assert end == Outcome(Move.IGNORE, reason="No handler for 'other' from 'stripe'.")


def test_an_event_whose_handler_is_gone_is_parked() -> None:
    """A handler already worked on it, so its calls may be open."""
    end = attempt(claim(tried=True), Registry([]), POLICY, no_calls)
    assert end.move is Move.PARK


def test_an_erased_payload_is_parked() -> None:
    """No handler runs without a body."""
    end = run(raising(AssertionError("it ran")), claim(body=None))
    assert end.move is Move.PARK
    assert end.reason
    assert "erased" in end.reason


def rejected(status: int) -> CallRejected:
    """Return the error that a call with this status raises."""
    return CallRejected("It said no.", httpx.Response(status), CALL)


@pytest.mark.parametrize("kind", [CallParked, CallMismatch, CallChanged])
@pytest.mark.parametrize("number", [1, 3])
def test_a_parked_call_parks_its_event(kind: type[CallError], number: int) -> None:
    """At once, in any attempt, and the event names the call."""
    end = run(raising(kind("Look.", CALL)), claim(attempt=number))
    assert end == Outcome(Move.PARK, reason="Look.", call=CALL)


@pytest.mark.parametrize("kind", [CallLater, CallLocked])
@pytest.mark.parametrize("number", [1, 3])
def test_a_call_for_later_costs_no_attempt(kind: type[CallLater], number: int) -> None:
    """`CallLater` and `CallLocked` wait as long as they say, even in the last attempt."""
    end = run(raising(kind("Later.", timedelta(hours=2), CALL)), claim(attempt=number))
    assert end == Outcome(Move.CALL_LATER, timedelta(hours=2), reason="Later.")


def test_an_unknown_call_costs_an_attempt() -> None:
    """It waits as long as the call says."""
    error = CallUnknown("No answer.", timedelta(hours=2), CALL)
    assert run(raising(error)) == Outcome(Move.RETRY_LATER, timedelta(hours=2), reason="No answer.")
    assert run(raising(error), claim(attempt=3)).move is Move.GIVE_UP


@pytest.mark.parametrize("status", [400, 402, 404, 409, 422])
def test_a_rejected_call_ends_its_event(status: int) -> None:
    """In its first attempt."""
    end = run(raising(rejected(status)))
    assert end == Outcome(Move.GIVE_UP, reason="A call was rejected. It said no.")


@pytest.mark.parametrize("status", [401, 403])
def test_a_call_refused_with_401_or_403_is_retried(status: int) -> None:
    """The event names the call, so that the next attempt makes its successor."""
    end = run(raising(rejected(status)))
    assert (end.move, end.call) == (Move.RETRY_LATER, CALL)
    assert run(raising(rejected(status)), claim(attempt=3)).move is Move.GIVE_UP


@pytest.mark.parametrize("error", [CallRefused("No such path."), ClaimLost("Taken over.")])
def test_a_call_that_was_never_sent_fails_the_attempt(error: CallError) -> None:
    """A wrong request and a lost claim name no call."""
    end = run(raising(error))
    assert (end.move, end.reason, end.call) == (Move.RETRY_LATER, str(error), None)


def test_a_get_for_later_costs_an_attempt() -> None:
    """No journal entry limits how long a GET is retried, so attempts do."""
    error = CallLater("GET /a: it answered 503.", timedelta(seconds=5))
    assert run(raising(error)).move is Move.RETRY_LATER
    assert run(raising(error), claim(attempt=3)).move is Move.GIVE_UP
