"""Fresh databases, empty or migrated. The release line runs once per kind; later ones are copies."""

import itertools
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from tests.services.deployment import Deployment
from tests.services.postgres import Postgres

NO_BROKER = "redis://127.0.0.1:1/0"
"""Migrating needs no broker: nothing listens there."""


def driver_url(url: str) -> str:
    """Return this URL with SQLAlchemy's psycopg driver."""
    return url.replace("postgres://", "postgresql+psycopg://", 1)


class Databases:
    """Makes SQLite files in `folder`, and databases in a PostgreSQL that `start` starts when it is needed."""

    def __init__(self, folder: Path, start: Callable[[], Postgres]) -> None:
        self.folder, self._start = folder, start
        self._numbers = itertools.count()
        self._templates: dict[str, str] = {}

    @cached_property
    def postgres(self) -> Postgres:
        """The running server."""
        return self._start()

    def fresh(self, kind: str) -> str:
        """Return the URL of an empty database; `kind` is sqlite or postgres."""
        if kind == "postgres":
            return self.postgres.create_database()
        return f"sqlite:///{self.folder}/{next(self._numbers)}.db"

    def migrated(self, kind: str) -> str:
        """Return the URL of a new database with the product's schema, made by the Procfile's release line."""
        template = self._templates.get(kind) or self._migrate(kind)
        if kind == "postgres":
            return self.postgres.create_database(template)
        url = self.fresh(kind)
        shutil.copy(template.removeprefix("sqlite:///"), url.removeprefix("sqlite:///"))
        return url

    def drop(self, url: str) -> None:
        """Drop the database, even if clients are connected."""
        if url.startswith("sqlite:///"):
            for file in self.folder.glob(f"{Path(url).name}*"):
                file.unlink()
        else:
            self.postgres.drop_database(url)

    def _migrate(self, kind: str) -> str:
        url = self.fresh(kind)
        release = Deployment(self.folder / f"release-{kind}", url, NO_BROKER)
        try:
            release.migrate()
        finally:
            release.stop()
        return self._templates.setdefault(kind, url)
