"""Fixtures of integration tests: a migrated ledger, emptied between tests, and the product on top of it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from flask import Flask
from sqlalchemy import text
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
    """Return one store per database kind (sqlite, postgres) for the whole session."""
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
def ledger(migrated_url: str) -> Iterator[Ledger]:
    """Read the database of `migrated_url` with plain SQL.

    A connection stays open meanwhile: whenever SQLite's last connection closes it locks the file for a
    checkpoint, which on a busy disk takes so many seconds that the product's own write gives up.
    """
    found = Ledger(migrated_url)
    with found.engine.connect() as connection:
        connection.execute(text("SELECT 1 FROM event"))
        connection.rollback()
        yield found


@pytest.fixture
def event(store: Store) -> UUID:
    """Record one event that is due."""
    return deliver(store).event


@pytest.fixture
def harness(store: Store) -> CallHarness:
    """Run attempts against a scripted API that reports locked keys and marks replays, as Stripe does."""
    return CallHarness(store)


@pytest.fixture
def api(store: Store) -> Api:
    """Serve `/v1` on the test's ledger."""
    return Api(store)


@pytest.fixture
def stage(store: Store) -> Stage:
    """Fill the ledger with one event of every kind."""
    return set_up(store)


@pytest.fixture
def environ(store: Store, tmp_path: Path) -> dict[str, str]:
    """Return the environment with which the command line reaches the test's ledger; it has no broker."""
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

    They have no broker unless `env` names one. Their connections are closed after the test.
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
    """Close a store whose application's threads still run, for up to a second after the last response.

    Their later queries fail at once; otherwise each would open a connection that is never closed.
    """

    def refuse(*_: object) -> None:
        raise store.engine.dialect.loaded_dbapi.OperationalError("this test has ended")

    with ExitStack() as turns:
        # While this holds every turn, no thread has a connection.
        for _ in range(store.engine.pool.size()):
            turns.enter_context(store._pool.turn(30))
        listen(store.engine, "do_connect", refuse, insert=True)
        store.close()


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lingering]:
    """Let delays in the sandbox last until the test ends them."""
    made = Lingering()
    monkeypatch.setattr("receiver.sandbox.factory.time", made)
    yield made
    made.over.set()
