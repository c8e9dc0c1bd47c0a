"""A migrated ledger for each test: one database of each kind for the whole run, emptied in between."""

from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from sqlalchemy import delete, text

from receiver.ledger.schema import migrate
from receiver.ledger.store import Store
from receiver.ledger.tables import metadata
from tests.services.databases import Databases, driver_url
from tests.services.sandbox import Lingering


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
    for one in made.values():
        one.close()


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, ledgers: Callable[[str], Store]) -> Iterator[Store]:
    """Give the test an empty ledger, on SQLite and on PostgreSQL."""
    found = ledgers(request.param)
    yield found
    found.shift = timedelta(0)
    _empty(found)


@pytest.fixture
def lingering(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lingering]:
    """Let the sandbox's faults linger until the test lets them go on."""
    made = Lingering()
    monkeypatch.setattr("receiver.sandbox.factory.time", made)
    yield made
    made.over.set()


def _empty(store: Store) -> None:
    tables = list(reversed(metadata.sorted_tables))
    with store.write() as connection:
        if not store.sqlite:
            connection.execute(text("TRUNCATE {}".format(", ".join(table.name for table in tables))))
            return
        for table in tables:
            connection.execute(delete(table))
