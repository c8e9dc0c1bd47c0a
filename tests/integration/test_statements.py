"""What an event costs the database: the messages of its transactions, as they are sent."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from receiver.ledger.intake import Delivery, record
from receiver.ledger.queue import claim_due, settle
from receiver.ledger.store import Store
from tests.integration.steps import ONLY_POSTGRES, state
from tests.services.attempts import LEASE, Attempts, apis_of
from tests.services.calling import Target
from tests.services.raw_server import RawServer, reply
from tests.services.sandbox import TELNESS
from worker.attempt import AttemptPolicy, attempt
from worker.calls.client import Calls
from worker.registry import Handler, Registry


class Heard:
    """The messages that a store sends, one list for each transaction."""

    def __init__(self, store: Store) -> None:
        self.transactions: list[list[str]] = []
        sa.event.listen(store.engine, "before_cursor_execute", self._note)
        sa.event.listen(store.engine, "commit", lambda _: self.transactions[-1].append("COMMIT"))

    def _note(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            self.transactions.append([])
        self.transactions[-1].append(statement)

    def __str__(self) -> str:
        return "\n\n".join("\n".join(messages) for messages in self.transactions)


def run(store: Store, handler: Callable[[Any, Any], object], attempts: Attempts) -> None:
    """Claim what is due, run its handler and settle it."""
    (held,) = claim_due(store, limit=1, lease=LEASE, worker="w")
    registry = Registry([Handler("stripe", "*", handler)])
    end = attempt(held, registry, AttemptPolicy(3, LEASE), partial(Calls, attempts.context))
    assert settle(store, [(held, end)]) == {held.event}


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_an_event_with_a_call_takes_few_messages(store: Store, tmp_path: Path) -> None:
    """Four transactions: its claim; the call with its send; the response; the settlement."""

    def handler(_event: Any, calls: Any) -> None:
        calls.api.post("/orders", json={"n": 1})

    with RawServer(reply("201 Created", b'{"id": "made"}')) as server:
        attempts = Attempts(store, apis_of(tmp_path, Target("api", TELNESS, server.url)))
        heard = Heard(store)
        run(store, handler, attempts)
    attempts.close()
    messages = [len(transaction) for transaction in heard.transactions]
    assert messages == [3, 3, 7, 3], str(heard)
    assert attempts.state == "done"


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_many_quick_events_take_as_few_messages_as_one(store: Store) -> None:
    """A claim of 32 events and their settlement are two transactions of three messages each."""
    made = record(store, [Delivery("stripe", f"evt_{n}", "invoice.paid", b"{}") for n in range(32)])
    heard = Heard(store)
    claims = claim_due(store, limit=32, lease=LEASE, worker="w")
    registry = Registry([Handler("stripe", "*", lambda _event, _calls: None)])
    ends = [(held, attempt(held, registry, AttemptPolicy(3, LEASE), lambda _: None)) for held in claims]
    assert len(settle(store, ends)) == 32
    assert [len(transaction) for transaction in heard.transactions] == [3, 3], str(heard)
    assert {state(store, verdict.event) for verdict in made} == {"done"}
