"""Schemathesis compares `/v1` with its OpenAPI document: all checks, with a key, on real databases."""

import hashlib
import re
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.core.parameters import ParameterLocation
from sqlalchemy import delete, update

from config.providers import load_providers
from config.sources import SOURCES as SHIPPED
from config.sources import load_sources
from receiver.api.openapi import KEY_FORM, document
from receiver.api.routes import list_operations
from receiver.ledger.control import plan_bulk
from receiver.ledger.filter import EventFilter
from receiver.ledger.idempotency_keys import KEY
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT
from receiver.service import Service
from tests.integration.call_steps import with_parked_call
from tests.integration.steps import deliver
from tests.services.api import OPS, Api

if TYPE_CHECKING:
    from flask import Flask

EXAMPLES = 20
"""Generated requests per operation, in addition to those for each parameter's bounds."""

OTHER = b'{"other": 1}'
OTHER_HASH = hashlib.sha256(OTHER).hexdigest()
HEADERS = {"Authorization": f"Bearer {OPS.secret}"}


class AppUnderTest:
    """The application under test: set when a test runs, while the document is read at collection."""

    def __init__(self) -> None:
        self.app: Flask

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Pass a request on."""
        return self.app(environ, start_response)


APP = AppUnderTest()
SOURCES = load_sources(SHIPPED, load_providers(), {})
NOWHERE = Store("postgresql+psycopg://127.0.0.1:1/none")
schema = schemathesis.openapi.from_dict(document(list_operations(Service(NOWHERE, {}))))
schema.app = APP


class World:
    """A ledger with events, calls and a bulk operation, so that valid requests find what they name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events = cycle([deliver(store, f"evt_{number}").event for number in range(20)])
        for number in range(20):
            deliver(store, f"evt_{number}", OTHER)
        self._calls = cycle([with_parked_call(store, f"evt_with_call_{n}") for n in range(4)])
        self._replay = plan_bulk(store, Move.RETRY, EventFilter(), "nobody").id

    def prepare(self, case: schemathesis.Case) -> None:
        """Put existing ids into a request whose path is valid."""
        owner, call = next(self._calls)
        known = {
            "event": next(self._events), "replay": self._replay, "body_hash": OTHER_HASH, "call": call,
        }  # fmt: skip
        with self._store.write() as connection:
            # Two generated requests under one key would be a mismatch: a 422 to a valid request.
            connection.execute(delete(KEY))
            mine = EVENT.c.id.in_((known["event"], owner))
            connection.execute(update(EVENT).where(mine).values(state="parked", generation=0))
            parked = {"state": "parked", "changed_to": "e" * 64, "quiet_until": None}
            connection.execute(update(CALL).where(CALL.c.id == call).values(**parked))
        if not case.meta.is_negative_at(ParameterLocation.PATH):
            for name in case.path_parameters or ():
                case.path_parameters[name] = str(known[name])


def credentials(case: schemathesis.Case) -> dict[str, str]:
    """Return the API key, except for a request whose defect is the missing key."""
    once = (case.headers or {}).get("Idempotency-Key")
    wrong_key = once is not None and not re.fullmatch(KEY_FORM, once)
    return HEADERS if wrong_key or not case.meta.is_negative_at(ParameterLocation.HEADER) else {}


@pytest.fixture
def world(store: Store) -> World:
    """Fill the ledger, and set the application under test."""
    APP.app = Api(store, sources=SOURCES).app
    return World(store)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_documented(case: schemathesis.Case, world: World) -> None:
    """Every status, header and body is documented, and wrong requests are refused."""
    world.prepare(case)
    case.call_and_validate(headers=credentials(case))
