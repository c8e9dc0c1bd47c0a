"""The test services: each starts, freezes, thaws, ends, and leaves nothing behind."""

import grp
import pwd
import signal
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.services.checkout import CHECKOUT
from tests.services.databases import Databases, driver_url
from tests.services.deployment import procfile
from tests.services.postgres import Postgres
from tests.services.private_server import QUEUE, Server
from tests.services.processes import Process, clean_environment, lives
from tests.services.rabbitmq import RabbitMQ
from tests.services.valkey import Valkey
from tests.services.waiting import answers, wait_until

FAMILY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"


@pytest.fixture(params=[Postgres, Valkey])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Return one server of each kind, not started."""
    made: Server = request.param()
    yield made
    made.stop()


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Process]:
    """Start a process that waits for its sleeping child."""
    process = Process("family", [sys.executable, "-c", FAMILY], log=tmp_path / "log", env=clean_environment())
    wait_until(lambda: len(process.family()) == 2, "the child to start")
    yield process
    process.kill()


def machine() -> tuple[object, ...]:
    """Return users, groups, and the permissions of the interpreter's folders, which no run may change."""
    places = [Path(sys.prefix), *Path(sys.prefix).parents, Path(tempfile.gettempdir())]
    return (pwd.getpwall(), grp.getgrall(), [stat.S_IMODE(place.stat().st_mode) for place in places])


def test_a_server_freezes_and_thaws(server: Server) -> None:
    """A frozen server keeps its port but does not answer, and answers after the thaw."""
    server.start()
    assert server.answers()
    server.freeze()
    assert answers(server.port), "the kernel accepts for a frozen server"
    assert all(member.status() == psutil.STATUS_STOPPED for member in server.process.family())
    server.thaw()
    wait_until(server.answers, "an answer after the thaw")


def test_a_killed_server_comes_back_on_its_port(server: Server) -> None:
    """Kill -9 ends every process of the server, and a start uses the same port."""
    server.start()
    port, family = server.port, server.process.family()
    server.kill()
    assert not any(map(lives, family))
    assert not answers(port)
    server.start()
    assert server.port == port
    assert server.answers()


def test_a_server_leaves_nothing(server: Server) -> None:
    """After the stop no process, folder, user, group or permission is new."""
    before = machine()
    server.start()
    family = server.process.family()
    server.stop()
    server.stop()
    assert not any(map(lives, family))
    assert not server.folder.exists()
    assert machine() == before


def test_postgres_makes_databases(postgres: Postgres) -> None:
    """A fresh database is empty, a copy has its template's tables, and both can be dropped."""
    first = postgres.create_database()
    with psycopg.connect(first) as connection:
        connection.execute("CREATE TABLE marks AS SELECT 7 AS mark")
        assert postgres.connections() >= 1
    second = postgres.create_database(template=first)
    with psycopg.connect(second) as connection:
        assert connection.execute("SELECT mark FROM marks").fetchone() == (7,)
        postgres.drop_database(second)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    postgres.drop_database(first)


def test_postgres_takes_settings() -> None:
    """Settings can be chosen, and a halt keeps the data."""
    server = Postgres(fsync=True, max_connections=11)
    try:
        url = server.start().create_database()
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept (n int)")
            shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "max_connections")]
        assert shown == [("on",), ("11",)]
        server.halt()
        assert not server.answers()
        server.start()
        with psycopg.connect(url) as connection:
            connection.execute("SELECT n FROM kept")
    finally:
        server.stop()


def test_postgres_never_runs_as_root(postgres: Postgres) -> None:
    """The server has no root rights, even if the tests do."""
    assert all(member.uids().effective != 0 for member in postgres.process.family())


def test_valkey_counts_wipes_and_drops(valkey: Valkey) -> None:
    """Messages can be counted and wiped, and connections dropped."""
    with valkey.client() as client:
        client.lpush(QUEUE, "one", "two")
        assert valkey.queue_length() == 2
        client.hset("unacked", "three", "3")
        assert valkey.messages() == 3
        valkey.wipe()
        assert valkey.messages() == 0
        before = client.client_id()
        valkey.drop_connections()
        assert client.client_id() != before


def test_rabbitmq_runs_beside_any_other(rabbitmq: RabbitMQ) -> None:
    """A private node has virtual hosts, counts and wipes queues, and answers after a freeze."""
    url, other = rabbitmq.take_vhost(), rabbitmq.take_vhost()
    with rabbitmq.connection(url.rpartition("/")[2]) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, auto_delete=False)
        channel.basic_publish(rabbit_message("hello"), routing_key=QUEUE)
        wait_until(lambda: rabbitmq.queue_length(url) == 1, "the message to be queued")
        assert rabbitmq.queue_length(other) == 0
        rabbitmq.wipe(url)
        assert rabbitmq.queue_length(url) == 0
    rabbitmq.freeze()
    rabbitmq.thaw()
    wait_until(rabbitmq.answers, "an answer after the thaw")


def rabbit_message(text: str) -> object:
    """Return a message of the amqp package."""
    import amqp  # noqa: PLC0415

    return amqp.Message(text)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_databases_are_fresh(databases: Databases, kind: str) -> None:
    """Each test gets its own database."""
    one, two = databases.fresh(kind), databases.fresh(kind)
    assert one != two
    assert driver_url(one).startswith(("sqlite:///", "postgresql+psycopg://"))
    databases.drop(one)
    databases.drop(two)


def test_signals_reach_the_family_or_one(family: Process) -> None:
    """Signals reach every descendant, or with `alone=True` the first process only."""
    first, child = family.family()
    family.freeze(alone=True)
    assert (first.status(), child.status() == psutil.STATUS_STOPPED) == (psutil.STATUS_STOPPED, False)
    family.freeze()
    assert child.status() == psutil.STATUS_STOPPED
    family.thaw()
    wait_until(lambda: child.status() != psutil.STATUS_STOPPED, "the child to go on")
    family.kill(alone=True)
    assert lives(child), "it outlives its parent"
    family.kill()
    assert not lives(child)


def test_an_exit_code_is_reported(tmp_path: Path) -> None:
    """The exit code of a signal is its negative number; output is kept."""
    settings = {"log": tmp_path / "log", "env": clean_environment()}
    assert Process("three", ["/bin/sh", "-c", "echo hello; exit 3"], **settings).wait_exit() == 3
    sleeper = Process("sleeper", ["/bin/sh", "-c", "exec sleep 600"], **settings)
    sleeper.terminate()
    assert sleeper.wait_exit() == -signal.SIGTERM
    assert sleeper.logs() == "hello\n"


def test_a_run_that_is_told_to_stop_cleans_up(tmp_path: Path) -> None:
    """A test run that gets SIGTERM stops its servers."""
    (tmp_path / "test_waits.py").write_text(
        "import time\n\n\ndef test_waits(valkey):\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-s",
        "-p",
        "tests.conftest",
        "-c",
        str(CHECKOUT / "pyproject.toml"),
    ]
    argv += ["-p", "no:cacheprovider", str(tmp_path)]
    log, env = tmp_path / "log", clean_environment(PYTHONPATH=str(CHECKOUT))
    run = Process("pytest", argv, log=log, env=env, cwd=CHECKOUT)
    try:
        wait_until(lambda: "up" in run.logs().split() or not run.running, run.logs)
        family = run.family()
        assert len(family) == 2, run.logs()
        run.terminate()
        assert run.wait_exit() == 143
        assert not any(map(lives, family))
    finally:
        run.kill()


def test_the_environment_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process inherits only the locations of programs and files."""
    monkeypatch.setenv("DATABASE_URL", "sqlite:///elsewhere.db")
    assert set(clean_environment(PORT="1")) <= {"PATH", "HOME", "LANG", "TMPDIR", "PORT"}


def test_the_procfile_has_three_lines() -> None:
    """The lines are release, web and worker, each a module of the checkout."""
    assert set(procfile()) == {"release", "web", "worker"}
    assert all(line.startswith("python -m ") for line in procfile().values())


@pytest.mark.parametrize("predicate", [lambda: False, lambda: None])
def test_waiting_ends(predicate: Callable[[], bool | None]) -> None:
    """A condition that never holds fails with its name."""
    with pytest.raises(AssertionError, match=r"waited 0\.1 s for the moon"):
        wait_until(predicate, "the moon", timeout=0.1)
