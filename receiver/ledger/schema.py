"""The schema's migrations, run from here so that a checkout and a wheel behave alike."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from receiver.ledger.errors import SchemaBehind
from receiver.ledger.store import WAIT, Store

MIGRATIONS = Path(__file__).with_name("migrations")

# An advisory lock's number: two releases that migrate at once take turns.
LOCK = 0x46697273747365656E & (1 << 63) - 1


def migrate(store: Store, revision: str = "head") -> str:
    """Bring the schema to a revision (the newest by default) and return where it stands."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    # As long as it takes: it builds indexes over whole tables.
    with store.write(limit=None) as connection:
        config.attributes["connection"] = connection
        if not store.sqlite:
            # Migrations wait for each other, and for tables, as long as it takes.
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        if revision == "base" or revision < (_found(connection) or ""):
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)
        return _found(connection) or "base"


def head() -> str:
    """Return the newest revision that this release knows."""
    return ScriptDirectory(str(MIGRATIONS)).get_current_head() or "base"


def found(store: Store) -> str | None:
    """Return the revision that the database has; None before the first migration."""
    with store.read(limit=WAIT) as connection:
        return _found(connection)


def check_schema(store: Store) -> None:
    """Raise SchemaBehind when the database is older than this release; a newer one is fine (expand-only)."""
    has, wants = found(store) or "none", head()
    known = {script.revision for script in ScriptDirectory(str(MIGRATIONS)).walk_revisions()}
    if has == "none" or (has in known and has != wants):
        raise SchemaBehind(
            f"The database's schema is {has}, this release needs {wants}: run `firstseen migrate`."
        )


def _found(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
