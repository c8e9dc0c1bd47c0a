"""One call from its plan to its end: plan, mark, send, record, and what the answer means for the handler."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Never
from uuid import UUID

import httpx

from config.apis import Api
from config.dialects import Dialect
from config.settings import Settings
from receiver.ledger.calls import (
    CallNotPending,
    CallRequest,
    CallUpdate,
    Classification,
    LeaseLost,
    PlannedCall,
    SendBegun,
    SendContext,
    SendDecision,
    SendPolicy,
    SendResult,
    SendTooEarly,
    StoredResponse,
    begin_send,
    plan,
    record_response,
    status_for_handler,
)
from receiver.ledger.errors import LedgerError
from receiver.ledger.lease import Claim
from receiver.ledger.states import CallState, Protection, SendOutcome
from receiver.ledger.store import Store
from worker.attempt import backoff
from worker.calls.classify import Answer, Failure, classify
from worker.calls.errors import (
    CallChanged,
    CallLater,
    CallLocked,
    CallMismatch,
    CallParked,
    CallRejected,
    CallUnknown,
    ClaimLost,
)
from worker.calls.outbound import OutboundRequest, complete, credential_marks, make_key, respond
from worker.calls.transport import HttpWire, NoReply, Outgoing, Reply, Wire
from worker.instrumentation import came_back, traced, watched_send

# What every attempt of a worker process calls out with.


@dataclass(frozen=True)
class Outbound:
    """The ledger, the APIs with their wires, and the limits. `secrets` are the secret keys, current first."""

    store: Store
    apis: Mapping[str, Api]
    wires: Mapping[str, Wire]
    secrets: tuple[bytes, ...] = field(repr=False)
    lease: timedelta
    max_runtime: timedelta
    give_up_after: timedelta
    backoff_max: timedelta
    rng: Random = field(default_factory=Random)


DEV_SECRET = b"firstseen make run"
"""Keys what `make run` calls out with when it has no secret key; elsewhere one is required."""


def outbound_of(settings: Settings, store: Store, apis: Mapping[str, Api]) -> Outbound:
    """Wire up every API."""
    secrets = tuple(key.get_secret_value().encode() for key in settings.secret_keys)
    return Outbound(
        store=store,
        apis=apis,
        wires={name: HttpWire(api) for name, api in apis.items()},
        secrets=secrets or (DEV_SECRET,),
        lease=settings.lease,
        max_runtime=settings.max_runtime,
        give_up_after=settings.give_up_after,
        backoff_max=settings.backoff_max,
    )


LOCKED_PAUSE, LOCKED_PAUSE_MAX = 0.1, 0.5
"""Seconds between two sends of a call that still runs there, growing: what Telness's document advises."""

LOCKED_SHARE = 6
"""The part of a lease that an attempt waits for a locked call: one sixth, 10 s by default."""

RECORD_PAUSE = 0.5
"""Seconds between tries to record an answer while the ledger does not answer."""

TRIED_SHARE, PATIENCE_MAX = 4, timedelta(minutes=5)
"""What no send of ours can change is looked at again after a quarter of the time it has lasted, or this."""

AWAY = timedelta(seconds=5)
"""The wait before a call whose ledger did not answer."""


@dataclass(frozen=True)
class Step:
    """One call as the handler makes it: the n-th of its attempt, counted from 0."""

    api: Api
    request: OutboundRequest
    protection: Protection
    name: str
    position: int
    once: str | None = None


class Halt(Exception):
    """The ledger does not let this send go out: `why` says what stands in the way."""

    def __init__(self, why: SendDecision) -> None:
        super().__init__()
        self.why = why


class Performance:
    """One call of one attempt."""

    def __init__(self, outbound: Outbound, held: Claim, step: Step) -> None:
        self._outbound, self._held, self._step = outbound, held, step
        self._store, self._api = outbound.store, step.api
        marks = credential_marks(outbound.secrets, step.api.name, step.api.credential)
        self._policy = SendPolicy(
            deadline=step.api.deadline,
            key_life=step.api.key_life,
            key_margin=step.api.key_margin,
            settle_delay=step.api.quiet,
            credentials=marks,
            one_at_a_time=step.api.dialect.in_flight == "unstated",
        )

    def run(self) -> httpx.Response:
        """Return the call's response, live or stored; raises CallError."""
        patience = time.monotonic() + self._outbound.lease.total_seconds() / LOCKED_SHARE
        pause = LOCKED_PAUSE
        while True:
            planned = self._plan()
            if planned.state == CallState.SUCCEEDED and not planned.handler_changed:
                return self._stored(planned)
            self._refuse(planned)
            recorded, got = self._send(planned)
            if recorded.applied and recorded.state == CallState.SUCCEEDED:
                return self._live(recorded, got)
            if recorded.state != CallState.PENDING:
                # What the ledger says now is what every later attempt will see.
                continue
            wait = max(pause, recorded.delay.total_seconds() if recorded.classification.retry_after else 0.0)
            if recorded.classification.outcome != SendOutcome.LOCKED or time.monotonic() + wait > patience:
                self._postpone(planned.id, recorded)
            time.sleep(wait)
            pause = min(pause + LOCKED_PAUSE, LOCKED_PAUSE_MAX)

    def _plan(self) -> PlannedCall:
        step, request = self._step, self._step.request
        call = CallRequest(
            position=step.position,
            step=step.name,
            api=self._api.name,
            method=request.method,
            url=request.url,
            headers=request.headers,
            body=request.body,
            fingerprint=request.fingerprint,
            protection=step.protection,
            give_up_after=self._outbound.give_up_after,
            once=step.once,
        )
        try:
            planned = plan(self._store, self._held, call, self._make_key)
        except LedgerError as error:
            raise CallLater(f"The call cannot be written down: {error}", AWAY) from error
        if planned is None:
            raise ClaimLost("Another worker has taken this event over.")
        return planned

    def _make_key(self, successor: int) -> str | None:
        if self._step.protection != Protection.KEYED:
            return None
        held = self._held
        names = (held.source, held.event_id, held.generation, self._step.name, successor)
        return make_key(self._outbound.secrets[0], names)

    def _live(self, recorded: CallUpdate, got: Reply | NoReply) -> httpx.Response:
        assert isinstance(got, Reply)  # noqa: S101 - nothing else succeeds
        status = status_for_handler(recorded.classification, got.status)
        return respond(self._step.request, status, got.headers, got.body)

    def _stored(self, planned: PlannedCall) -> httpx.Response:
        stored = planned.response
        if stored is None or stored.body is None:
            raise CallParked(
                f"Call {planned.step!r} happened, but its answer is not kept any more.", planned.id
            )
        return respond(self._step.request, stored.status, stored.headers, stored.body)

    def _refuse(self, planned: PlannedCall) -> None:
        """Raise what keeps a call that has not succeeded from going out now."""
        reason = planned.reason or ""
        if planned.handler_changed:
            raise CallChanged(planned.handler_changed, planned.id)
        if planned.state == CallState.REJECTED:
            stored = planned.response or StoredResponse(0, (), None)
            response = respond(self._step.request, stored.status, stored.headers, stored.body or b"")
            raise CallRejected(reason, response, planned.id)
        if planned.state != CallState.PENDING:
            kind = CallMismatch if planned.outcome == SendOutcome.MISMATCH else CallParked
            raise kind(f"Call {planned.step!r} is parked. {reason}".rstrip(), planned.id)
        if planned.body is None:
            raise CallParked(
                f"The request of {planned.step!r} was erased after payload_retention.", planned.id
            )
        if not planned.url.startswith(f"{self._api.base_url}/"):
            reason = f"The stored request of {planned.step!r} is for another address than base_url's."
            raise CallParked(reason, planned.id)
        if self._api.problem or planned.waits_for_other:
            patience = min(planned.tried_for / TRIED_SHARE, PATIENCE_MAX)
            raise CallLater(self._api.problem or reason, patience + self._backoff(planned), planned.id)

    def _send(self, planned: PlannedCall) -> tuple[CallUpdate, Reply | NoReply]:
        """Send once and record what came back; raises what keeps it from going out."""
        stored = OutboundRequest(
            planned.method, planned.url, self._step.request.path, planned.headers, planned.body or b""
        )
        outgoing = complete(self._api, stored, planned.key)
        if planned.delay and planned.outcome != SendOutcome.LOCKED:
            raise CallLater(planned.reason or "It is not due yet.", planned.delay, planned.id)
        with watched_send(self._api.name, planned.method, planned.id) as seen:
            recorded, got = self._exchange(planned, outgoing)
            came_back(seen, self._api.name, recorded.classification.outcome)
        return recorded, got

    def _exchange(self, planned: PlannedCall, outgoing: Outgoing) -> tuple[CallUpdate, Reply | NoReply]:
        marked: list[UUID] = []
        try:
            got = self._outbound.wires[self._api.name].send(
                traced(outgoing), lambda: marked.append(self._mark(planned.id))
            )
        except LedgerError as error:
            raise CallLater(f"The send cannot be written down: {error}", AWAY, planned.id) from error
        except Halt as halt:
            self._halted(planned, halt.why)
        return self._record(planned, marked[0] if marked else None, got), got

    def _mark(self, call: UUID) -> UUID:
        done = begin_send(self._store, self._held, call, self._policy)
        if not isinstance(done, SendBegun):
            raise Halt(done)
        return done.send

    def _halted(self, planned: PlannedCall, why: SendDecision) -> Never:
        match why:
            case SendTooEarly(delay):
                reason = f"An earlier send of {planned.step!r} may still be under way there."
                raise CallLater(reason, delay, planned.id)
            case CallNotPending(CallState.PARKED, reason):
                raise CallParked(f"Call {planned.step!r} is parked. {reason}", planned.id)
            case CallNotPending():
                raise CallLater("The call has ended meanwhile.", timedelta(0), planned.id)
            case LeaseLost() | _:
                raise ClaimLost("Another worker has taken this event over.")

    def _record(self, planned: PlannedCall, send: UUID | None, got: Reply | NoReply) -> CallUpdate:
        response = None
        if isinstance(got, Reply):
            response = StoredResponse(got.status, got.headers, None if got.truncated else got.body)
        classifier = partial(_classify, self._api.dialect, got)
        result = SendResult(send, response, classifier, self._policy, self._backoff(planned))
        ends = time.monotonic() + self._outbound.lease.total_seconds()
        while True:
            try:
                return record_response(self._store, self._held, planned.id, result)
            except LedgerError as error:
                if time.monotonic() > ends:
                    reason = "What came back could not be written down; the call counts as unknown."
                    raise CallUnknown(reason, AWAY, planned.id) from error
                time.sleep(RECORD_PAUSE)

    def _postpone(self, call: UUID, recorded: CallUpdate) -> Never:
        kinds = {SendOutcome.LOCKED: CallLocked, SendOutcome.UNKNOWN: CallUnknown}
        kind = kinds.get(recorded.classification.outcome, CallLater)
        raise kind(f"Call {self._step.name!r}: {recorded.classification.reason}", recorded.delay, call)

    def _backoff(self, planned: PlannedCall) -> timedelta:
        return backoff(planned.sends + 1, cap=self._outbound.backoff_max, rng=self._outbound.rng)


def _classify(dialect: Dialect, got: Reply | NoReply, context: SendContext, now: datetime) -> Classification:
    if isinstance(got, NoReply):
        return classify(dialect, context, Failure(got.error, got.written), now)
    headers = {name.lower(): value for name, value in got.headers}
    return classify(dialect, context, Answer(got.status, headers, got.body, got.truncated), now)
