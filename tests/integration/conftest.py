"""What integration tests stand on: a migrated ledger, emptied in between, and the product's parts on it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy.event import listen

import receiver.app
from config.settings import Settings
from receiver.ledger.schema import migrate
from receiver.ledger.store import Store
from tests.integration.call_harness import CallHarness
from tests.integration.steps import deliver
from tests.services.api import Api
from tests.services.databases import NO_BROKER, Databases, driver_url
from tests.services.ledger import Ledger, empty
from tests.services.sandbox import Lingering
from tests.services.stage import Stage, set_up

Serve = Callable[..., Flask]
TWO_SOURCES = """
[stripe]
provider = "stripe"
secrets_env = "STRIPE_WEBHOOK_SECRET"

[github]
provider = "github"
secrets_env = "NOT_SET"
"""


@pytest.fixture(scope="session")
def ledgers(databases: Databases) -> Iterator[Callable[[str], Store]]:
    """Give the store of the whole run, by kind: sqlite or postgres."""
    made: dict[str, Store] = {}

    def make(kind: str) -> Store:
        if kind not in made:
            made[kind] = Store(driver_url(databases.fresh(kind)))
            migrate(made[kind])
        return made[kind]

    yield make
    for item in made.values():
        item.close()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, ledgers: Callable[[str], Store]) -> Iterator[Store]:
    """Give the test an empty ledger, on SQLite and on PostgreSQL."""
    found = ledgers(request.param)
    yield found
    found.shift = timedelta(0)
    empty(found)


@pytest.fixture
def ledger(migrated_url: str) -> Ledger:
    """Look at the database of `migrated_url` from outside."""
    return Ledger(migrated_url)


@pytest.fixture
def event(store: Store) -> UUID:
    """Give the test one event that is due."""
    return deliver(store).event


@pytest.fixture
def harness(store: Store) -> CallHarness:
    """Give the test an API that locks and marks its replays, as Stripe does."""
    return CallHarness(store)


@pytest.fixture
def api(store: Store) -> Api:
    """Give the test `/v1` on its ledger."""
    return Api(store)


@pytest.fixture
def stage(store: Store) -> Stage:
    """Fill the ledger with one event of every kind."""
    return set_up(store)


@pytest.fixture
def environ(store: Store, tmp_path: Path) -> dict[str, str]:
    """Give what the command line needs to reach the test's ledger; nothing listens at its broker."""
    (tmp_path / "sources.toml").write_text(TWO_SOURCES)
    return {
        "DATABASE_URL": store.url.render_as_string(hide_password=False),
        "BROKER_URL": NO_BROKER,
        "FIRSTSEEN_SECRET_KEY": "k" * 32,
        "FIRSTSEEN_SOURCES": str(tmp_path / "sources.toml"),
        "STRIPE_WEBHOOK_SECRET": "whsec_tests",
    }


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Make web applications in this process: `serve(database_url, sources, **env)`.

    Nothing listens at their broker unless `env` has another one. Their connections are closed with the test.
    """
    stores: list[Store] = []

    def open_store(url: str, *, pool: int) -> Store:
        stores.append(Store(url, pool=pool))
        return stores[-1]

    monkeypatch.setattr(receiver.app, "Store", open_store)

    def make(database_url: str, sources: str, **env: str) -> Flask:
        (tmp_path / "sources.toml").write_text(sources)
        given = {
            "FIRSTSEEN_SOURCES": str(tmp_path / "sources.toml"),
            "FIRSTSEEN_SECRET_KEY": "0" * 32,
            "DATABASE_URL": database_url,
            "BROKER_URL": NO_BROKER,
        }
        for name, value in (given | env).items():
            monkeypatch.setenv(name, value)
        return receiver.app.create_app(Settings(_env_file=None))

    yield make
    for store in stores:
        _close_for_good(store)


def _close_for_good(store: Store) -> None:
    """Close a store whose application goes on: its threads count for a second after the last answer.

    What they ask for later fails at once, or the connection that they open for it would never be closed.
    """

    def refuse(*_: object) -> None:
        raise store.engine.dialect.loaded_dbapi.OperationalError("this test has ended")

    with ExitStack() as turns:
        # Once all turns are taken here, no thread has a connection.
        for _ in range(store.engine.pool.size()):
            turns.enter_context(store._pool.turn(30))
        listen(store.engine, "do_connect", refuse)
        store.close()


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lingering]:
    """Let the sandbox's faults linger until the test lets them go on."""
    made = Lingering()
    monkeypatch.setattr("receiver.sandbox.factory.time", made)
    yield made
    made.over.set()
