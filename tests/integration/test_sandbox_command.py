"""`firstseen sandbox`: refusals, restarts and kill -9."""

import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from config.settings import Settings
from firstseen import dev
from firstseen.__main__ import cli
from receiver.ledger.schema import migrate
from receiver.ledger.store import Store
from receiver.sandbox.server import is_loopback
from tests.services.deployment import CHECKOUT
from tests.services.processes import Process, clean_environment
from tests.services.sandbox import KEY, SALESLY, STANNP
from tests.services.waiting import wait_until

Start = Callable[[], tuple[Process, httpx.Client]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the command on any port and one database, repeatedly; all of them end with the test."""
    argv = [sys.executable, "-m", "firstseen", "sandbox", "--port=0", f"--database={tmp_path}/own/box.db"]
    env = clean_environment(PYTHONPATH=str(CHECKOUT), PYTHONUNBUFFERED="1")
    started: list[tuple[Process, httpx.Client]] = []

    def run() -> tuple[Process, httpx.Client]:
        process = Process("sandbox", argv, log=tmp_path / f"log-{len(started)}", env=env, cwd=tmp_path)
        found = wait_until(lambda: re.search(r"is at (http://\S+);", process.logs()), process.logs)
        started.append((process, httpx.Client(base_url=found[1], timeout=20, trust_env=False)))
        return started[-1]

    yield run
    for process, client in started:
        process.kill()
        client.close()


def refused(*arguments: str) -> tuple[int, str]:
    """Run a command that is refused; return its exit code and its last line."""
    result = CliRunner().invoke(cli, ["sandbox", *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, result.output.strip().splitlines()[-1]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "", "127.0.0.1.example.com"])
def test_it_refuses_other_hosts_than_loopback(host: str) -> None:
    """The sandbox accepts any credential, so it listens on loopback only, unless allowed."""
    code, output = refused("--host", host)
    assert (code, "add --allow-remote" in output) == (2, True), output


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_has_several_names(host: str) -> None:
    """Every spelling of a loopback address is accepted."""
    assert is_loopback(host)


def test_allow_remote_opens_it(tmp_path: Path) -> None:
    """With --allow-remote it tries to listen; an address of another machine gives one sentence."""
    database = str(tmp_path / "box.db")
    code, output = refused("--host", "192.0.2.1", "--allow-remote", "--database", database)
    assert (code, output.startswith("Error: The sandbox cannot start: ")) == (1, True), output


def test_a_taken_port_is_one_sentence(tmp_path: Path) -> None:
    """A taken port gives one sentence and exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, output = refused("--port", port, "--database", str(tmp_path / "box.db"))
    assert (code, output.startswith("Error: The sandbox cannot start: Address already in use")) == (1, True)
    assert port in output, output


def test_it_does_not_touch_a_ledger(tmp_path: Path) -> None:
    """A ledger's database is refused, because a reset would empty it."""
    store = Store(f"sqlite:///{tmp_path}/firstseen.db")
    migrate(store)
    store.close()
    code, output = refused("--database", str(tmp_path / "firstseen.db"))
    assert (code, "is a ledger" in output) == (1, True), output


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    """A file that is not a database is refused and not changed."""
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database " * 100)
    code, output = refused("--database", str(notes))
    assert (code, output.startswith(f"Error: {notes} cannot be used: ")) == (1, True), output
    assert notes.read_text().startswith("not a database")


def test_it_needs_no_settings_and_ends_when_told(start: Start) -> None:
    """It starts without settings, keeps its data over a restart, and exits 0 at SIGTERM."""
    process, client = start()
    address = client.base_url
    sent = {"X-Idempotency-Key": KEY, "Content-Type": "application/x-www-form-urlencoded"}
    for status in (200, 409):
        answer = client.post(
            "/stannp/api/v1/letters/create", content=STANNP.body(), headers=sent | STANNP.credential("one")
        )
        assert answer.status_code == status
    process.terminate()
    assert process.wait_exit() == 0, process.logs()
    assert f"The sandbox is at {address}".rstrip("/") in process.logs()
    assert "sandbox: POST /stannp/api/v1/letters/create 409" in process.logs()
    _, client = start()
    assert len(client.get("/_effects").json()["effects"]) == 1


def test_a_killed_sandbox_has_one_effect(start: Start) -> None:
    """A request killed while it held its key had no effect, and runs again after the lease."""
    process, client = start()
    headers = {"Idempotency-Key": KEY, **SALESLY.credential("one")}
    path = f"/salesly{SALESLY.path}"
    client.post("/_faults", json={"prefix": "/salesly", "kind": "hold", "seconds": 60})

    def doomed() -> None:
        with suppress(httpx.TransportError):
            client.post(path, content=SALESLY.body(), headers=headers)

    thread = threading.Thread(target=doomed)
    thread.start()
    wait_until(lambda: not client.get("/_faults").json()["faults"], "the request to hold its key")
    process.kill()
    thread.join()
    _, client = start()
    assert client.get("/_effects").json() == {"effects": []}
    assert [request["status"] for request in client.get("/_requests").json()["requests"]] == [None]
    client.post("/_clock", json={"advance": 31})
    answers = [client.post(path, content=SALESLY.body(), headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert len(client.get("/_effects").json()["effects"]) == 1


def test_make_run_takes_another_port_when_the_usual_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make run` starts the sandbox on another port if its own is taken or is web's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(dev, "SANDBOX_PORT", port)
        other = dev.sandbox_port(Settings(PORT=1, FIRSTSEEN_DEV=True))
        assert other not in (0, port)
    assert dev.sandbox_port(Settings(PORT=1, FIRSTSEEN_DEV=True)) == port
    assert dev.sandbox_port(Settings(PORT=port, FIRSTSEEN_DEV=True)) not in (0, port)
