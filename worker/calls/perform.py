"""One call from its plan to its end: plan, begin, send, record.

`CallPerformer.run` is the flow. The journal decides at each step: `plan` whether the call is still to be
made, `begin_send` whether its request may go out now, `record_response` what came of it. A call that no
earlier attempt can have begun is planned and begun at once. What keeps the call from its response is raised
as a CallError.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random
from uuid import UUID

import httpx

from config.apis import Api
from config.settings import Settings
from receiver.ledger import calls as journal
from receiver.ledger.errors import LedgerError
from receiver.ledger.lease import Claim
from receiver.ledger.states import CallState, Protection, SendOutcome
from receiver.ledger.store import Store
from worker.attempt import backoff
from worker.calls import errors
from worker.calls.classify import classify
from worker.calls.outbound import OutboundRequest, complete, credential_marks, make_key, respond
from worker.calls.transport import HttpTransport, NoReply, Outgoing, Reply, Transport
from worker.spans import log_outcome, send_span, with_traceparent

# The secret key of `make run` where none is set; elsewhere one is required.
DEV_SECRET = b"firstseen make run"

# Seconds between two sends of a call that still runs there, growing: what Telness's document advises.
LOCKED_PAUSE, LOCKED_PAUSE_MAX = 0.1, 0.5

# The part of a lease that an attempt waits for a locked call: one sixth, 10 s by default.
LOCKED_SHARE = 6

# Seconds between tries to record a response while the ledger does not answer.
RECORD_PAUSE = 0.5

# An obstacle that no send removes is checked again after a quarter of the time it has lasted, at most this.
TRIED_SHARE, PATIENCE_MAX = 4, timedelta(minutes=5)

TAKEN_OVER = "Another worker has taken this event over."

# The wait before a call whose ledger did not answer.
LEDGER_AWAY = timedelta(seconds=5)


@dataclass(frozen=True)
class CallContext:
    """What all calls of a worker process share. `secrets` are the secret keys, the current one first."""

    store: Store
    apis: Mapping[str, Api]
    transports: Mapping[str, Transport]
    secrets: tuple[bytes, ...] = field(repr=False)
    lease: timedelta
    max_runtime: timedelta
    give_up_after: timedelta
    backoff_max: timedelta
    rng: Random = field(default_factory=Random)

    @classmethod
    def of(cls, settings: Settings, store: Store, apis: Mapping[str, Api]) -> "CallContext":
        """Wire up every API."""
        secrets = tuple(key.get_secret_value().encode() for key in settings.secret_keys)
        return cls(
            store=store,
            apis=apis,
            transports={name: HttpTransport.for_api(api) for name, api in apis.items()},
            secrets=secrets or (DEV_SECRET,),
            lease=settings.lease,
            max_runtime=settings.max_runtime,
            give_up_after=settings.give_up_after,
            backoff_max=settings.backoff_max,
        )


@dataclass(frozen=True)
class Step:
    """One call as the handler makes it: the n-th of its attempt, counted from 0."""

    api: Api
    request: OutboundRequest
    protection: Protection
    name: str
    position: int
    once: str | None = None


class _Known(Exception):
    """The journal has a call in the place of a new one."""


class CallPerformer:
    """Performs one call of one attempt."""

    def __init__(self, context: CallContext, held: Claim, step: Step) -> None:
        self._context, self._held, self._step = context, held, step
        self._store, self._api = context.store, step.api
        self._policy = journal.SendPolicy(
            deadline=step.api.deadline,
            key_life=step.api.key_life,
            key_margin=step.api.key_margin,
            settle_delay=step.api.quiet,
            credentials=credential_marks(context.secrets, step.api.name, step.api.credential),
            one_at_a_time=step.api.dialect.in_flight == "unstated",
        )
        request = step.request
        self._wanted = journal.CallRequest(
            position=step.position,
            step=step.name,
            api=step.api.name,
            method=request.method,
            url=request.url,
            headers=request.headers,
            body=request.body,
            fingerprint=request.fingerprint,
            protection=step.protection,
            give_up_after=context.give_up_after,
            once=step.once,
        )

    def run(self) -> httpx.Response:
        """Return the call's response, live or stored; raises CallError.

        While the API says that an earlier send still runs, it is sent again under its key, for a part of the
        lease.
        """
        patience = time.monotonic() + self._context.lease.total_seconds() / LOCKED_SHARE
        pause = LOCKED_PAUSE
        new = self._is_new()
        while True:
            if new:
                call, sends, key = self._wanted.id, 0, self._make_key(0)
                outgoing = complete(self._api, self._step.request, key)
                begin = partial(self._begin_new, key)
            else:
                planned = self._plan()
                if planned.state == CallState.SUCCEEDED and not planned.handler_changed:
                    stored = planned.response
                    if stored is None or stored.body is None:
                        reason = f"Call {planned.step!r} happened, but its answer is not kept any more."
                        raise errors.CallParked(reason, planned.id)
                    return respond(self._step.request, stored.status, stored.headers, stored.body)
                call, sends, outgoing = planned.id, planned.sends, self._sendable(planned)
                begin = partial(self._begin, planned)
            with send_span(self._api.name, outgoing.method, call) as span:
                try:
                    send, reply = self._send(outgoing, begin)
                    if new and send is None:
                        # No byte left, and people see that only of a call in the journal.
                        call = self._plan().id
                except _Known:
                    continue
                finally:
                    new = False
                recorded = self._record(call, sends, send, reply)
                log_outcome(span, self._api.name, recorded.classification.outcome)
            if recorded.applied and recorded.state == CallState.SUCCEEDED and isinstance(reply, Reply):
                status = journal.status_for_handler(recorded.classification, reply.status)
                return respond(self._step.request, status, reply.headers, reply.body)
            if recorded.state != CallState.PENDING:
                # Planned once more: what the ledger says now is what every later attempt will see.
                continue
            wait = max(pause, recorded.delay.total_seconds() if recorded.classification.retry_after else 0.0)
            if recorded.classification.outcome != SendOutcome.LOCKED or time.monotonic() + wait > patience:
                kinds = {SendOutcome.LOCKED: errors.CallLocked, SendOutcome.UNKNOWN: errors.CallUnknown}
                kind = kinds.get(recorded.classification.outcome, errors.CallLater)
                reason = f"Call {self._step.name!r}: {recorded.classification.reason}"
                raise kind(reason, recorded.delay, call)
            time.sleep(wait)
            pause = min(pause + LOCKED_PAUSE, LOCKED_PAUSE_MAX)

    def _plan(self) -> journal.PlannedCall:
        """Find the call in the journal, or write it down; raise CallLater or ClaimLost where that fails."""
        try:
            call = journal.plan(self._store, self._held, self._wanted, self._make_key)
        except LedgerError as error:
            raise errors.CallLater(f"The call cannot be written down: {error}", LEDGER_AWAY) from error
        if call is None:
            raise errors.ClaimLost(TAKEN_OVER)
        return call

    def _make_key(self, successor: int) -> str | None:
        if self._step.protection != Protection.KEYED:
            return None
        held = self._held
        names = (held.source, held.event_id, held.generation, self._step.name, successor)
        return make_key(self._context.secrets[0], names)

    def _sendable(self, call: journal.PlannedCall) -> Outgoing:
        """Return the stored request with key and credential; raise what keeps it from going out now."""
        reason = call.reason or ""
        if call.handler_changed:
            raise errors.CallChanged(call.handler_changed, call.id)
        if call.state == CallState.REJECTED:
            kept = call.response or journal.StoredResponse(0, (), None)
            response = respond(self._step.request, kept.status, kept.headers, kept.body or b"")
            raise errors.CallRejected(reason, response, call.id)
        if call.state != CallState.PENDING:
            kind = errors.CallMismatch if call.outcome == SendOutcome.MISMATCH else errors.CallParked
            raise kind(f"Call {call.step!r} is parked. {reason}".rstrip(), call.id)
        if call.body is None:
            raise errors.CallParked(
                f"The request of {call.step!r} was erased after payload_retention.", call.id
            )
        if not call.url.startswith(f"{self._api.base_url}/"):
            # The present credential must not reach another host, nor the key another API.
            reason = f"The stored request of {call.step!r} is for another address than base_url's."
            raise errors.CallParked(reason, call.id)
        # No send of ours changes either of these, so they are looked at later and later.
        if self._api.problem or call.waits_for_other:
            patience = min(call.tried_for / TRIED_SHARE, PATIENCE_MAX)
            raise errors.CallLater(self._api.problem or reason, patience + self._backoff(call.sends), call.id)
        # A resend is the stored request, byte for byte, whatever the handler asks for now.
        stored = OutboundRequest(call.method, call.url, self._step.request.path, call.headers, call.body)
        outgoing = complete(self._api, stored, call.key)
        # The pauses between two sends of a locked call are this attempt's own.
        if call.delay and call.outcome != SendOutcome.LOCKED:
            raise errors.CallLater(reason or "It is not due yet.", call.delay, call.id)
        return outgoing

    def _is_new(self) -> bool:
        """Whether the journal cannot know this call yet: no earlier attempt can have begun it.

        Then it is written down with its send, in one commit right before the first byte.
        """
        return self._held.token == 1 and self._step.once is None and not self._api.problem

    def _send(self, outgoing: Outgoing, begin: Callable[[], UUID]) -> tuple[UUID | None, Reply | NoReply]:
        """Send once; return the send's id, if it began, and what came back.

        The send is committed once a connection stands, right before its first byte: before that nothing is
        known to go out, and after that it may have been executed.
        """
        send: UUID | None = None

        def before_send() -> None:
            nonlocal send
            send = begin()

        reply = self._context.transports[self._api.name].send(with_traceparent(outgoing), before_send)
        return send, reply

    def _begin_new(self, key: str | None) -> UUID:
        try:
            begun = journal.begin_first_send(self._store, self._held, self._wanted, key, self._policy)
        except LedgerError as error:
            raise errors.CallLater(f"The call cannot be written down: {error}", LEDGER_AWAY) from error
        if begun is None:
            raise _Known
        if isinstance(begun, journal.LeaseLost):
            raise errors.ClaimLost(TAKEN_OVER)
        return begun.send

    def _begin(self, call: journal.PlannedCall) -> UUID:
        try:
            result = journal.begin_send(self._store, self._held, call.id, self._policy)
        except LedgerError as error:
            reason = f"The send cannot be written down: {error}"
            raise errors.CallLater(reason, LEDGER_AWAY, call.id) from error
        match result:
            case journal.SendBegun(send):
                return send
            case journal.SendTooEarly(delay):
                reason = f"An earlier send of {call.step!r} may still be under way there."
                raise errors.CallLater(reason, delay, call.id)
            case journal.CallNotPending(CallState.PARKED, reason):
                raise errors.CallParked(f"Call {call.step!r} is parked. {reason}", call.id)
            case journal.CallNotPending():
                raise errors.CallLater("The call has ended meanwhile.", timedelta(0), call.id)
            case journal.LeaseLost():
                raise errors.ClaimLost(TAKEN_OVER)

    def _record(
        self, call: UUID, sends: int, send: UUID | None, reply: Reply | NoReply
    ) -> journal.CallUpdate:
        """Write down what came back; while the ledger does not answer, try again for as long as a lease."""
        response = None
        if isinstance(reply, Reply):
            response = journal.StoredResponse(
                reply.status, reply.headers, None if reply.truncated else reply.body
            )
        result = journal.SendResult(
            send,
            response,
            lambda context, now: classify(self._api.dialect, context, reply, now),
            self._policy,
            self._backoff(sends),
        )
        # Worth waiting for: without this response the call can only be sent again or parked.
        ends = time.monotonic() + self._context.lease.total_seconds()
        while True:
            try:
                return journal.record_response(self._store, self._held, call, result)
            except LedgerError as error:
                if time.monotonic() > ends:
                    reason = "What came back could not be written down; the call counts as unknown."
                    raise errors.CallUnknown(reason, LEDGER_AWAY, call) from error
                time.sleep(RECORD_PAUSE)

    def _backoff(self, sends: int) -> timedelta:
        return backoff(sends + 1, cap=self._context.backoff_max, rng=self._context.rng)
