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

All but the transport is what a worker runs: apis.toml with its dialects, the building and refusing of
requests, the reading of answers, and the journal, on a ledger in memory whose clock jumps to the next
attempt.
"""

import itertools
import json
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

import httpx
from sqlalchemy import Row, func, select

from config.apis import APIS, Api, load_apis
from config.dialects import METHODS, load_dialects
from config.settings import environment
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due, settle
from receiver.ledger.schema import migrate
from receiver.ledger.states import UNFINISHED, Move, Protection, State
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT
from worker.attempt import AttemptPolicy, Event, attempt
from worker.calls.client import Calls
from worker.calls.outbound import OutboundRequest
from worker.calls.perform import CallContext
from worker.calls.transport import BeforeSend, NoReply, Outgoing, Reply
from worker.registry import Function, Handler, Registry

__all__ = ["Made", "Unscripted", "answer", "calls", "ends", "event"]

log = logging.getLogger(__name__)

# Longer than any test: only the clock that jumps may end it, and it jumps between attempts.
LEASE = timedelta(hours=1)

ATTEMPTS, BACKOFF_MAX = 15, timedelta(hours=1)

# A deployment's defaults.
MAX_RUNTIME, GIVE_UP_AFTER = timedelta(minutes=10), timedelta(days=3)

SECRET = b"worker.testing"

# Stands in for every credential; the colon is for those of type basic.
CREDENTIAL = "test:"

# Failures before the first byte: nothing can have happened. Any other one may have lost an answer.
UNWRITTEN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Unscripted(AssertionError):
    """The handler makes a call that the test wrote no answer for."""


@dataclass(frozen=True)
class Made:
    """One request that went out. `path` has neither `base_url` nor query; a GET has no `step`."""

    step: str | None
    api: str
    method: str
    path: str
    url: httpx.URL
    headers: httpx.Headers = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.content)

    @property
    def form(self) -> dict[str, str]:
        """Return the fields of a body that is a form; of equal ones the last."""
        return dict(parse_qsl(self.content.decode(), keep_blank_values=True))


@dataclass(frozen=True)
class Scripted:
    """One answer that an API is to give."""

    status: int = HTTPStatus.OK
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def event(source: str, event_type: str, *, data: Any = None, **fields: Any) -> Event:
    """Build an event. `data` is the whole payload, sent as JSON; `fields` are others of `worker.Event`.

    For a body that is not JSON give `raw` and `headers`, with its Content-Type.
    """
    now = datetime.now(UTC)
    usual: dict[str, Any] = {
        "id": uuid4(),
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
    path = apis or Path(environment().get("FIRSTSEEN_APIS") or APIS)
    loaded = {
        name: replace(api, credential=CREDENTIAL, problem=None)
        for name, api in load_apis(path, load_dialects(), {}).items()
    }
    return ScriptedCalls(_Bench(answers or {}, loaded))


def ends(handler: Function, given: Event, outside: "ScriptedCalls") -> State:
    """Run one attempt as a worker does and return the event's state after it: done, waiting, parked or dead.

    Another attempt with the same `outside` comes after the wait that this one ended with.
    """
    return outside.bench.attempt(handler, given)


class ScriptedCalls(Calls):
    """The calls of one attempt, with a test's answers. `made` lists what went out, over all attempts."""

    def __init__(self, bench: "_Bench") -> None:
        super().__init__(bench.context, bench.held)
        self.bench, self.made = bench, bench.script.made

    def again(self) -> "ScriptedCalls":
        """Return the calls of the next attempt, as if this one had failed here."""
        self.bench.end(Outcome(Move.RETRY_LATER))
        return ScriptedCalls(self.bench)

    def make(
        self, api: Api, request: OutboundRequest, protected_by: Protection, step: str, once: str | None
    ) -> httpx.Response:
        """Make the next call of this attempt, and note its step with what goes out."""
        self.bench.step = step
        try:
            return super().make(api, request, protected_by, step, once)
        finally:
            self.bench.step = None


class _Bench:
    """One event on a ledger in memory, from attempt to attempt."""

    def __init__(self, answers: Mapping[str, Any], apis: Mapping[str, Api]) -> None:
        self.script = _Script(answers, apis)
        self.step: str | None = None
        self.store = Store("sqlite://", pool=1)
        migrate(self.store)
        self._event = record(self.store, [Delivery("test", "evt_test", "test", b"{}")])[0].event
        self.context = CallContext(
            store=self.store,
            apis=apis,
            transports={
                api.name: ScriptedTransport(api, self.script, lambda: self.step) for api in apis.values()
            },
            secrets=(SECRET,),
            # No lease to wait in: a locked call is at once a later one.
            lease=timedelta(0),
            max_runtime=MAX_RUNTIME,
            give_up_after=GIVE_UP_AFTER,
            backoff_max=BACKOFF_MAX,
        )
        self._held: Claim | None = None
        # A test closes nothing, and warnings of open connections may be errors there.
        weakref.finalize(self, self.store.close)

    @property
    def held(self) -> Claim:
        """Return the claim of the attempt under way; begin the next one, when it is due, if none is."""
        if self._held is None:
            row = self._row()
            if row.state not in UNFINISHED:
                reason = f"The event is {row.state}, so no attempt follows. {row.reason or ''}"
                raise AssertionError(reason.rstrip())
            due = max(row.due_at, row.calls_due or row.due_at)
            self.store.shift += max(due - row.now, timedelta(0))
            # The clock was just moved to where the only event is due.
            (self._held,) = claim_due(self.store, limit=1, lease=LEASE, worker="test")
        return self._held

    def end(self, outcome: Outcome) -> State:
        """End the attempt under way; return the event's state."""
        settle(self.store, [(self.held, outcome)])
        self._held = None
        return State(self._row().state)

    def attempt(self, function: Function, given: Event) -> State:
        """Run one attempt of a handler and end it as a worker does."""
        held = replace(
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
        outcome = attempt(held, registry, policy, lambda _: ScriptedCalls(self))
        # The handler may have caught it, and would hide it from the test.
        if self.script.missing:
            raise self.script.missing
        if outcome.error:
            log.warning("The handler failed:\n%s", outcome.error)
        return self.end(outcome)

    def _row(self) -> Row[Any]:
        calls_due = select(func.max(CALL.c.due_at)).where(CALL.c.event == EVENT.c.id).scalar_subquery()
        columns = (EVENT.c.state, EVENT.c.reason, EVENT.c.due_at, calls_due.label("calls_due"))
        with self.store.read() as connection:
            found = select(*columns, self.store.now().label("now")).where(EVENT.c.id == self._event)
            return connection.execute(found).one()


class _Script:
    """The answers of a test, by `"<api> <METHOD> <path>"`, and the requests that got them, in order."""

    def __init__(self, answers: Mapping[str, Any], apis: Mapping[str, Api]) -> None:
        self.made: list[Made] = []
        self.missing: Unscripted | None = None
        """Kept, since a handler may catch it."""
        self._answers: dict[str, Iterator[Scripted | Exception]] = {}
        for name, given in answers.items():
            api, _, rest = name.partition(" ")
            method, _, path = rest.partition(" ")
            known = api in apis and method in (*METHODS, "GET")
            if not known or not path.startswith("/") or "?" in path:
                names = ", ".join(sorted(apis))
                raise ValueError(
                    f"{name!r} names no call: write an API ({names}), a method and a path without its query,"
                    " such as 'salesly POST /contacts'."
                )
            if isinstance(given, tuple):
                self._answers[name] = iter([_answer(name, item) for item in given])
            else:
                self._answers[name] = itertools.repeat(_answer(name, given))

    def next(self, api: str, method: str, path: str) -> Scripted | Exception:
        """Return the answer to a request; raise Unscripted where there is none, or none any more."""
        name = f"{api} {method} {path}"
        answers = self._answers.get(name)
        found = next(answers, None) if answers else None
        if found is None:
            left = "left " if answers else ""
            has = ", ".join(map(repr, self._answers)) or "none at all"
            self.missing = Unscripted(f"The test has no answer {left}for {name!r}; calls(...) has {has}.")
            raise self.missing
        return found


def _answer(name: str, given: Any) -> Scripted | Exception:
    match given:
        case Scripted() | Exception():
            return given
        case bool():
            pass
        case int():
            return Scripted(given)
        case dict() | list():
            return Scripted(HTTPStatus.OK, json.dumps(given).encode(), {"Content-Type": "application/json"})
    raise ValueError(
        f"The answer to {name!r} is {given!r:.80}: write a status, JSON as a dict or list, answer(...), an"
        " exception, or a tuple of such, one for each time."
    )


class ScriptedTransport:
    """Carries the requests of one API to a script; `step` says which call is under way."""

    def __init__(self, api: Api, script: _Script, step: Callable[[], str | None]) -> None:
        self._api, self._script, self._step = api, script, step

    def send(self, request: Outgoing, before_send: BeforeSend) -> Reply | NoReply:
        """Give the next answer. A failure of the transport is one here too; any other error is raised."""
        path = request.url.removeprefix(self._api.base_url).partition("?")[0]
        found = self._script.next(self._api.name, request.method, path)
        if isinstance(found, UNWRITTEN):
            return NoReply(f"the connection failed ({type(found).__name__})", written=False)
        if isinstance(found, Exception) and not isinstance(found, httpx.TransportError):
            raise found
        before_send()
        place = (self._step(), self._api.name, request.method, path, httpx.URL(request.url))
        self._script.made.append(Made(*place, httpx.Headers(list(request.headers)), request.body))
        if isinstance(found, Scripted):
            return Reply(found.status, tuple(found.headers.items()), found.body)
        return NoReply(f"the answer was lost ({type(found).__name__})", written=True)
