"""A harness for tests of calls: a ledger, a scripted API, and attempts that the test runs one by one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Row, func, select, update

from config.apis import Api, Auth
from config.dialects import load_dialects
from receiver.ledger.calls import CallUpdate, SendPolicy, SendResult, StoredResponse, record_response
from receiver.ledger.control import retry
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import settle
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, SEND
from tests.integration.steps import change, row, take
from worker.attempt import AttemptPolicy, attempt
from worker.calls.classify import classify
from worker.calls.client import Calls
from worker.calls.outbound import credential_marks
from worker.calls.perform import CallContext
from worker.calls.transport import BeforeSend, NoReply, Outgoing, Reply
from worker.registry import Handler, Registry

SECRET = b"a secret key of thirty-two bytes"
DAY = timedelta(hours=24)
DEADLINE, QUIET = timedelta(seconds=30), timedelta(seconds=15)
SILENCE = NoReply("no answer in time", written=True)
UNSENT = NoReply("the connection failed", written=False)

Handle = Callable[[Any, Any], object]
Step = Reply | NoReply | Callable[[Outgoing], Reply | NoReply]


class Crash(BaseException):
    """The worker's process dies at this point."""


def reply(status: int = 201, body: bytes = b'{"id": 1}', **headers: str) -> Reply:
    """Return a response; the keyword `a_b="c"` becomes the header `a-b: c`."""
    return Reply(status, tuple((name.replace("_", "-"), value) for name, value in headers.items()), body)


def crash(_request: Outgoing) -> Reply:
    """Die after the request was sent."""
    raise Crash


class ScriptedTransport:
    """Returns the replies of its script, then 201 for ever; keeps every request."""

    def __init__(self) -> None:
        self.script: list[Step] = []
        self.sent: list[Outgoing] = []
        self.before_begin: Callable[[], None] = lambda: None

    def send(self, request: Outgoing, before_send: BeforeSend) -> Reply | NoReply:
        """Begin and send, unless the script's step is a failed connection."""
        step = self.script.pop(0) if self.script else reply()
        if isinstance(step, NoReply) and not step.written:
            return step
        self.before_begin()
        before_send()
        self.sent.append(request)
        return step(request) if callable(step) else step

    def keys(self) -> list[str]:
        """Return the key of each request that went out."""
        names = ("idempotency-key", "x-idempotency-key", "paypal-request-id")
        return [value for request in self.sent for name, value in request.headers if name.lower() in names]


class CallHarness:
    """A worker whose handlers call `calls.shop`, an API of one dialect."""

    def __init__(self, store: Store, dialect: str = "stripe", **terms: Any) -> None:
        self.store, self.transport, self.secrets = store, ScriptedTransport(), (SECRET,)
        known = load_dialects()[dialect]
        given = {"key_life": known.life, "key_margin": min(timedelta(minutes=10), known.life / 2)} | terms
        auth = Auth(type="bearer", value_env="SHOP_KEY")
        self.api = Api(
            name="shop",
            base_url="https://shop.example/v1",
            dialect_name=dialect,
            dialect=known,
            auth=auth,
            credential="first-credential",
            **{"deadline": DEADLINE, "quiet": QUIET} | given,
        )
        self.lease = self.max_runtime = timedelta(seconds=60)
        self.policy = AttemptPolicy(3, timedelta(seconds=1), Random(1))

    def rotate(self, credential: str) -> None:
        """Replace the API's credential."""
        self.api = replace(self.api, credential=credential)

    def context(self) -> CallContext:
        """Return the call context of the harness's attempts."""
        return CallContext(
            store=self.store,
            apis={"shop": self.api},
            transports={"shop": self.transport},
            secrets=self.secrets,
            lease=self.lease,
            max_runtime=self.max_runtime,
            give_up_after=timedelta(days=3),
            backoff_max=timedelta(seconds=1),
            rng=Random(1),
        )

    def perform(self, held: Claim, handle: Handle) -> Outcome:
        """Run a handler for a claim without settling the attempt."""
        registry = Registry([Handler(held.source, held.type, handle)])
        return attempt(held, registry, self.policy, partial(_calls, self.context()))

    def take(self, event: UUID) -> Claim:
        """Claim an event, moving the clock to the time when it is due."""
        with self.store.read() as connection:
            now = connection.execute(select(self.store.now())).scalar_one()
        found = row(self.store, event)
        ready = found.lease_until if found.state == "processing" else found.due_at
        if ready > now:
            self.store.shift += ready - now
        return take(self.store, event)

    def run(self, event: UUID, handle: Handle) -> str:
        """Run one attempt from claim to settlement, and return the event's state."""
        held = self.take(event)
        assert settle(self.store, [(held, self.perform(held, handle))]), "the claim was lost"
        return str(row(self.store, event).state)

    def run_after_retry(self, event: UUID, handle: Handle) -> str:
        """Retry the event as a person, then run one attempt."""
        retry(self.store, event, "ada")
        return self.run(event, handle)

    def die(self, event: UUID, handle: Handle) -> Claim:
        """Run one attempt during which the worker dies; return its claim."""
        held = self.take(event)
        try:
            handle(None, Calls(self.context(), held))
        except Crash:
            return held
        raise AssertionError("it survived")

    def calls(self, event: UUID) -> list[Row[Any]]:
        """Return an event's calls, in order."""
        order = (CALL.c.generation, CALL.c.position, CALL.c.successor)
        with self.store.read() as connection:
            return list(connection.execute(select(CALL).where(CALL.c.event == event).order_by(*order)))

    def call(self, event: UUID) -> Row[Any]:
        """Return an event's latest call."""
        return self.calls(event)[-1]

    def sends(self, call: UUID) -> list[Row[Any]]:
        """Return a call's sends, in order."""
        with self.store.read() as connection:
            mine = select(SEND).where(SEND.c.call == call).order_by(SEND.c.number)
            return list(connection.execute(mine))

    def open_sends(self, call: UUID) -> int:
        """Return how many sends of a call are open."""
        return sum(send.open for send in self.sends(call))

    def terms(self) -> SendPolicy:
        """Return the send policy of the API's configuration."""
        marks = credential_marks(self.secrets, self.api.name, self.api.credential)
        apart = self.api.dialect.in_flight == "unstated"
        return SendPolicy(DEADLINE, self.api.key_life, self.api.key_margin, QUIET, marks, apart)

    def late(self, held: Claim, send: Row[Any], got: Reply) -> CallUpdate:
        """Record a response to a send, as the worker that sent it does, at whatever time."""
        kept = StoredResponse(got.status, got.headers, None if got.truncated else got.body)
        receipt = SendResult(
            send.id,
            kept,
            lambda context, now: classify(self.api.dialect, context, got, now),
            self.terms(),
            timedelta(seconds=1),
        )
        return record_response(self.store, held, send.call, receipt)

    def change_call(self, call: UUID, **values: Any) -> None:
        """Set columns of a call directly, where reaching that state would take many steps."""
        with self.store.write() as connection:
            connection.execute(update(CALL).where(CALL.c.id == call).values(**values))


def _calls(context: CallContext, held: Claim) -> Calls:
    return Calls(context, held)


def letter(_event: Any, calls: Any) -> None:
    """Handle an event by one call, step "letter"."""
    calls.shop.post("/letters", json={"to": "ada"}, step="letter")


def posts(*steps: str, caught: bool = False, **given: Any) -> Handle:
    """Return a handler that makes these calls in order; with `caught` it swallows their exceptions."""

    def handle(_event: Any, calls: Any) -> None:
        for step in steps:
            try:
                calls.shop.post(f"/{step}", **{"json": {"for": step}, "step": step} | given)
            except Exception:
                if not caught:
                    raise

    return handle


def used_up(store: Store, event: UUID) -> None:
    """Let the event's next attempt be its last."""
    change(store, event, attempts=2)


def total(store: Store, table: Any) -> int:
    """Count the rows of a table."""
    with store.read() as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())
