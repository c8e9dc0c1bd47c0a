"""Attempts of one event in this process: the worker's own steps on a real ledger, against real servers."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import text, update

from config.apis import Api, load_apis
from config.dialects import load_dialects
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import settle
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.services.calling import Target, configure
from tests.services.claiming import claim
from worker.attempt import AttemptPolicy, attempt
from worker.calls.client import Calls
from worker.calls.perform import CallContext
from worker.calls.transport import HttpTransport
from worker.registry import Handler, Registry

SECRET = b"tests only, tests only, tests only"
LEASE = timedelta(seconds=60)
SHORT = timedelta(milliseconds=1)


def apis_of(folder: Path, *targets: Target, who: str = "one") -> dict[str, Api]:
    """Load the APIs of these targets as a worker does."""
    env = configure(folder, targets, who)
    return dict(load_apis(folder / "apis.toml", load_dialects(), env))


class Attempts:
    """One event whose attempts run here one after another, each claimed and settled as by a worker."""

    def __init__(self, store: Store, apis: dict[str, Api], *, event_id: str = "evt_1") -> None:
        self.store = store
        transports = {name: HttpTransport.for_api(api) for name, api in apis.items()}
        self.context = CallContext(
            store,
            apis,
            transports,
            (SECRET,),
            LEASE,
            timedelta(minutes=10),
            timedelta(days=3),
            backoff_max=SHORT,
        )
        self.event = record(store, [Delivery("stripe", event_id, "invoice.paid", b"{}")])[0].event

    def close(self) -> None:
        """Close every pooled connection."""
        for transport in self.context.transports.values():
            transport.close()  # type: ignore[attr-defined]

    def claim(self, lease: timedelta = LEASE) -> Claim:
        """Claim the event, even if it is not due."""
        with self.store.write() as connection:
            connection.execute(update(EVENT).values(due_at=self.store.now()))
        held = claim(self.store, self.event, lease=lease, worker="test")
        assert held, "the event is not to be had"
        return held

    def run(self, handler: Callable[[Any, Any], object], *, settles: bool = True) -> Outcome:
        """Run one attempt and return its outcome; with `settles=False` the worker vanishes before that."""
        held = self.claim()
        registry = Registry([Handler("stripe", "*", handler)])
        end = attempt(held, registry, AttemptPolicy(15, SHORT), partial(Calls, self.context))
        assert settle(self.store, [(held, end)]) if settles else True
        return end

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Return the rows of a SELECT."""
        with self.store.read() as connection:
            return [dict(row) for row in connection.execute(text(query)).mappings()]

    def change(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with self.store.write() as connection:
            for statement in statements:
                connection.execute(text(statement))

    @property
    def state(self) -> str:
        """The event's state."""
        return str(self.rows("SELECT state FROM event")[0]["state"])

    @property
    def sends(self) -> list[dict[str, Any]]:
        """Every send, the first one first."""
        return self.rows("SELECT * FROM send ORDER BY number")

    @property
    def calls(self) -> list[dict[str, Any]]:
        """Every call, in order."""
        return self.rows("SELECT * FROM call ORDER BY position, successor")


def bodies(requests: Iterable[bytes]) -> list[bytes]:
    """Return the bodies of raw requests."""
    return [request.partition(b"\r\n\r\n")[2] for request in requests]
