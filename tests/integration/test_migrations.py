"""Migrations: up and down on both databases, equal to the models, safe to run concurrently."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from receiver.ledger.errors import SchemaBehind
from receiver.ledger.schema import MIGRATIONS, check_schema, found, head, migrate
from receiver.ledger.store import Store
from receiver.ledger.tables import metadata
from tests.integration.steps import count, deliver
from tests.services.databases import driver_url


@pytest.fixture
def empty(database_url: str) -> Iterator[Store]:
    """Return the store of a database without any table."""
    store = Store(driver_url(database_url))
    yield store
    store.close()


def tables(store: Store) -> set[str]:
    """Return the names of the existing tables."""
    return set(inspect(store.engine).get_table_names())


def test_up_makes_what_the_models_say(empty: Store) -> None:
    """After `migrate` Alembic finds no difference between database and models, indexes included."""
    assert migrate(empty) == head()
    with empty.read() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    wanted = {index.name for table in metadata.tables.values() for index in table.indexes}
    there = {index["name"] for name in metadata.tables for index in inspect(empty.engine).get_indexes(name)}
    assert wanted <= there
    checks = {check["name"] for check in inspect(empty.engine).get_check_constraints("event")}
    assert {"event_state", "event_lease"} <= checks


def test_partial_indexes_have_their_conditions(empty: Store) -> None:
    """The conditions of indexes, which Alembic does not compare, are equal in models and database."""
    migrate(empty)
    if empty.sqlite:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    else:
        query = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
    with empty.read() as connection:
        made = {name: definition.lower() for name, definition in connection.execute(text(query))}
    for table in metadata.tables.values():
        for index in table.indexes:
            wanted = index.dialect_options["sqlite"]["where"]
            assert (wanted is None) == (" where " not in made[str(index.name)]), index.name
            if wanted is not None and empty.sqlite:
                assert made[str(index.name)].endswith(f"where {wanted.text}"), index.name


def test_down_leaves_nothing(empty: Store) -> None:
    """Down to the base and up again, twice, leaves no table of ours."""
    for _ in range(2):
        migrate(empty)
        assert set(metadata.tables) <= tables(empty)
        assert migrate(empty, "base") == "base"
        assert tables(empty) <= {"alembic_version"}
        assert found(empty) is None


def test_every_step_goes_down_and_up(empty: Store) -> None:
    """Each revision can be entered and left."""
    revisions = [item.revision for item in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]
    for revision in reversed(revisions):
        assert migrate(empty, revision) == revision
    for revision in revisions[1:]:
        assert migrate(empty, revision) == revision


def test_migrating_again_changes_nothing(empty: Store) -> None:
    """A repeated migration keeps all events."""
    migrate(empty)
    deliver(empty)
    assert migrate(empty) == head()
    assert count(empty) == 1


def test_two_releases_at_once_take_turns(empty: Store, database_url: str) -> None:
    """Four concurrent migrations of an empty database all succeed."""
    stores = [Store(driver_url(database_url)) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(migrate, stores)) == [head()] * 4
    finally:
        for store in stores:
            store.close()
    check_schema(empty)


def test_a_failed_migration_leaves_the_old_schema(empty: Store) -> None:
    """A migration is one transaction: if it fails, no part of it remains."""
    with empty.write() as connection:
        connection.execute(text("CREATE TABLE replay_step (n int)"))
    with pytest.raises(Exception, match=r"replay_step|does not answer"):
        migrate(empty)
    assert tables(empty) == {"replay_step"}
    assert found(empty) is None


def test_an_older_schema_is_refused(empty: Store) -> None:
    """The error has the found and the needed revision, and the command to run."""
    with pytest.raises(SchemaBehind, match=f"is none, this release needs {head()}: run `firstseen migrate`"):
        check_schema(empty)
    migrate(empty)
    check_schema(empty)
    migrate(empty, "base")
    with pytest.raises(SchemaBehind, match="is none"):
        check_schema(empty)


def test_one_revision_behind_is_refused(empty: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known revision that is not the newest is an older schema."""
    migrate(empty)
    monkeypatch.setattr("receiver.ledger.schema.head", lambda: "9999")
    with pytest.raises(SchemaBehind, match=r"needs 9999: run `firstseen migrate`"):
        check_schema(empty)


def test_a_newer_schema_is_accepted(empty: Store) -> None:
    """An unknown, newer revision is accepted: the previous release works on during a deploy."""
    migrate(empty)
    with empty.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
        connection.execute(text("ALTER TABLE event ADD COLUMN novelty int"))
    check_schema(empty)
    assert deliver(empty).first_seen
