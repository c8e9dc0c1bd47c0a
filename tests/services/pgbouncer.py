"""A private PgBouncer in transaction mode in front of a private PostgreSQL, if `pgbouncer` is installed."""

import os
import shutil
from typing import Any

import psycopg

from tests.services.postgres import Postgres
from tests.services.private_server import Server, as_nobody

PLACES = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
"""Folders of packages that are not on everybody's PATH."""
NOT_INSTALLED = "pgbouncer is not installed here (on Debian and Ubuntu: apt-get install pgbouncer)"
POOL = 8
"""Its connections to one database."""


def program() -> str | None:
    """Return PgBouncer's path, or None where it is not installed."""
    return shutil.which("pgbouncer", path=os.pathsep.join([*PLACES, os.environ.get("PATH", "")]))


class PgBouncer(Server):
    """A pooler on a loopback port; `url` turns a database's address into the one that passes it."""

    name = "pgbouncer"

    def __init__(self, behind: Postgres) -> None:
        super().__init__()
        self._behind = behind

    def argv(self) -> list[str]:
        """Write its files, whose port is known now, and return the command."""
        found = program()
        assert found, NOT_INSTALLED
        _, _, login = self._behind.url("postgres").partition("://")
        user, _, password = login.partition("@")[0].partition(":")
        users, settings = self.folder / "users.txt", self.folder / "pgbouncer.ini"
        users.write_text(f'"{user}" "{password}"\n')
        settings.write_text(f"""[databases]
* = host=127.0.0.1 port={self._behind.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = transaction
default_pool_size = {POOL}
""")
        if nobody := as_nobody():
            for path in (self.folder, users, settings):
                os.chown(path, nobody["user"], nobody["group"])
        return [found, str(settings)]

    def popen(self) -> dict[str, Any]:
        """Return the user that it runs as: it refuses to be root's."""
        return {"cwd": self.folder, **as_nobody()}

    def url(self, database_url: str) -> str:
        """Return the address of one of the server's databases through this pooler."""
        return database_url.replace(f":{self._behind.port}/", f":{self.port}/")

    def answers(self) -> bool:
        """Return whether a query gets through."""
        try:
            with psycopg.connect(self.url(self._behind.url("postgres")), connect_timeout=5) as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True
