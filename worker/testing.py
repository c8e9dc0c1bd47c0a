"""What a handler's own unit tests need, without a server, database, broker or network.

    from worker.testing import answer, calls, ends, event

    def test_the_customer_is_thanked_once():
        paid = event("stripe", "invoice.paid", data={"data": {"object": {"customer_name": "Jenny"}}})
        outside = calls({
            "salesly POST /contacts": answer(201, json={"data": {"id": "cont_1"}}),
            "stannp POST /letters/create": (503, {"success": True}),  # first this, then that
        })
        assert ends(invoice_paid, paid, outside) == "waiting"
        assert ends(invoice_paid, paid, outside) == "done"
        assert [call.step for call in outside.made] == ["salesly POST /contacts", "thanks", "thanks"]

All but the wire is what a worker runs: apis.toml with its dialects, the building and refusing of requests,
the reading of answers, and the journal, on a ledger in memory whose clock jumps to the next attempt.
"""

import json
import logging
import weakref
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Row, func, select

from config.apis import APIS, Api, load_apis
from config.dialects import load_dialects
from config.settings import environment
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim, settle
from receiver.ledger.schema import migrate
from receiver.ledger.states import UNFINISHED, Move, Protection, State
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT
from receiver.ledger.text import uuid7
from worker.calls.client import Calls
from worker.calls.outbound import Outbound
from worker.calls.requests import OutboundRequest
from worker.calls.scripted import Made, Script, Scripted, ScriptedWire, Unscripted
from worker.events import Event
from worker.registry import Function, Handler, Registry
from worker.tasks import AttemptPolicy, attempt

__all__ = ["Made", "Unscripted", "answer", "calls", "ends", "event"]

log = logging.getLogger(__name__)

LEASE = timedelta(hours=1)
"""Longer than any test: only the clock that jumps may end it, and it jumps between attempts."""

ATTEMPTS, BACKOFF_MAX = 15, timedelta(hours=1)
MAX_RUNTIME, GIVE_UP_AFTER = timedelta(minutes=10), timedelta(days=3)
"""A deployment's defaults."""

SECRET = b"worker.testing"
CREDENTIAL = "test:"
"""Stands in for every credential; the colon is for those of type basic."""


def event(source: str, event_type: str, *, data: Any = None, **fields: Any) -> Event:
    """Build an event. `data` is the whole payload, sent as JSON; `fields` are others of `worker.Event`.

    For a body that is not JSON give `raw` and `headers`, with its Content-Type.
    """
    now = datetime.now(UTC)
    usual: dict[str, Any] = {
        "id": uuid7(),
        "event_id": "evt_test",
        "created_at": now,
        "received_at": now,
        "raw": json.dumps({} if data is None else data).encode(),
        "headers": {"Content-Type": "application/json"},
        "attempt": 1,
        "generation": 0,
    }
    return Event(source=source, type=event_type, **(usual | fields))


def answer(
    status: int = 200,
    *,
    json: Any = None,
    content: bytes = b"",
    headers: Mapping[str, str] | None = None,
) -> Scripted:
    """Build an answer of an API, where a status or its JSON alone does not say enough."""
    body = {"content": content} if json is None else {"json": json}
    response = httpx.Response(status, **body)
    return Scripted(status, response.content, dict(response.headers) | dict(headers or {}))


def calls(answers: Mapping[str, Any] | None = None, *, apis: Path | None = None) -> "ScriptedCalls":
    """Build what a handler calls out with; each request gets the answer at `"<api> <METHOD> <path>"`.

    An answer is a status, JSON as a dict or list, `answer(...)`, or an exception; a tuple is one after the
    other. `httpx.ReadTimeout("")` and its like fail the connection: the answer is lost. Any other exception
    is raised as it is. `apis` is another apis.toml than the deployment's; no credential need be set.
    """
    return ScriptedCalls(_Bench(answers or {}, _apis(apis)))


def ends(handler: Function, given: Event, outside: "ScriptedCalls") -> State:
    """Run one attempt as a worker does and return the event's state after it: done, waiting, parked or dead.

    Another attempt with the same `outside` comes after the wait that this one ended with.
    """
    return outside.bench.attempt(handler, given)


class _Bench:
    """One event on a ledger in memory, from attempt to attempt."""

    def __init__(self, answers: Mapping[str, Any], apis: Mapping[str, Api]) -> None:
        self.script = Script(answers, apis)
        self.step: str | None = None
        self.store = Store("sqlite://", pool=1)
        migrate(self.store)
        self._event = record(self.store, [Delivery("test", "evt_test", "test", b"{}")])[0].event
        wires = {api.name: ScriptedWire(api, self.script, lambda: self.step) for api in apis.values()}
        # No lease to wait in: a locked call is at once a later one.
        limits = (timedelta(0), MAX_RUNTIME, GIVE_UP_AFTER, BACKOFF_MAX)
        self.outbound = Outbound(self.store, apis, wires, (SECRET,), *limits)
        self._held: Claim | None = None
        weakref.finalize(self, self.store.close)

    @property
    def held(self) -> Claim:
        """Return the claim of the attempt under way; begin one, when it is due, if none is."""
        if self._held is None:
            self._wait()
            self._held = claim(self.store, self._event, lease=LEASE, worker="test")
            assert self._held, "the event is due"  # noqa: S101 - the clock was just moved there
        return self._held

    def end(self, how: Outcome) -> State:
        """End the attempt under way; return the event's state."""
        settle(self.store, self.held, how)
        self._held = None
        return State(self._row().state)

    def attempt(self, function: Function, given: Event) -> State:
        """Run one attempt of a handler and end it as a worker does."""
        seen = replace(
            self.held,
            source=given.source,
            event_id=given.event_id,
            type=given.type,
            generation=given.generation,
            created_at=given.created_at,
            received_at=given.received_at,
            body=given.raw,
            headers=json.dumps(dict(given.headers)),
            content_type=given.headers.get("Content-Type"),
        )
        registry = Registry([Handler(given.source, given.type, function)])
        policy = AttemptPolicy(ATTEMPTS, BACKOFF_MAX)
        how = attempt(seen, registry, policy, lambda _: ScriptedCalls(self))
        if self.script.missing:
            raise self.script.missing
        if how.error:
            log.warning("The handler failed:\n%s", how.error)
        return self.end(how)

    def _row(self) -> Row[Any]:
        calls_due = select(func.max(CALL.c.due_at)).where(CALL.c.event == EVENT.c.id).scalar_subquery()
        columns = (EVENT.c.state, EVENT.c.reason, EVENT.c.due_at, calls_due.label("calls_due"))
        with self.store.read() as connection:
            found = select(*columns, self.store.now().label("now")).where(EVENT.c.id == self._event)
            return connection.execute(found).one()

    def _wait(self) -> None:
        """Move the clock to when the next attempt is due."""
        row = self._row()
        if row.state not in UNFINISHED:
            raise AssertionError(
                f"The event is {row.state}, so no attempt follows. {row.reason or ''}".rstrip()
            )
        due = max(row.due_at, row.calls_due or row.due_at)
        self.store.shift += max(due - row.now, timedelta(0))


class ScriptedCalls(Calls):
    """The calls of one attempt, with a test's answers. `made` lists what went out, over all attempts."""

    def __init__(self, bench: _Bench) -> None:
        super().__init__(bench.outbound, bench.held)
        self.bench, self.made = bench, bench.script.made

    def again(self) -> "ScriptedCalls":
        """Return the calls of the next attempt, as if this one had failed here."""
        self.bench.end(Outcome(Move.RETRY_LATER))
        return ScriptedCalls(self.bench)

    def make(
        self, api: Api, request: OutboundRequest, how: Protection, step: str, once: str | None
    ) -> httpx.Response:
        """Make the next call of this attempt, and note its step with what goes out."""
        self.bench.step = step
        try:
            return super().make(api, request, how, step, once)
        finally:
            self.bench.step = None


def _apis(path: Path | None) -> dict[str, Api]:
    """Load the APIs that handlers call here, each with a credential that stands in for its own."""
    found = load_apis(path or Path(environment().get("FIRSTSEEN_APIS") or APIS), load_dialects(), {})
    return {name: replace(api, credential=CREDENTIAL, problem=None) for name, api in found.items()}
