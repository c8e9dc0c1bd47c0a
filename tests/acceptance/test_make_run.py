"""`make run` in a fresh clone: one command starts everything, Ctrl-C stops it, no process is left."""

import re
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from dotenv import dotenv_values

from tests.services.checkout import copy_checkout
from tests.services.processes import Process, lives, users_environment
from tests.services.signing import stripe_delivery, stripe_event
from tests.services.waiting import answers, free_port, wait_until

pytestmark = pytest.mark.timeout(400)  # the first run installs everything
INSTALL = 300
"""Seconds for the first run, which downloads."""

MakeRun = Callable[[int], Process]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the checkout, without what git ignores, into a folder whose name has a space."""
    return copy_checkout(tmp_path_factory.mktemp("make run") / "clone")


@pytest.fixture
def make_run(clone: Path, tmp_path: Path) -> Iterator[MakeRun]:
    """Start `make run` on a port; kill what is left of it after the test."""
    started: list[Process] = []

    def start(port: int) -> Process:
        env = users_environment(PORT=str(port))
        started.append(Process("make run", ["make", "run"], log=tmp_path / "log", env=env, cwd=clone))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def wait_listening(make: Process) -> list[psutil.Process]:
    """Wait until it listens; return all of its processes, each in a session of its own."""
    wait_until(lambda: "listens at" in make.logs() or not make.running, make.logs, timeout=INSTALL)
    assert make.running, make.logs()
    return make.family()


def check_nothing_left(family: list[psutil.Process], port: int) -> None:
    """Check that every process of that run has ended and that its port is free."""
    wait_until(lambda: not [process for process in family if lives(process)], "all processes to be gone")
    assert not answers(port)


def run_here(clone: Path, command: str) -> str:
    """Run a shell command in the clone, as a second terminal would; return its output."""
    argv, env = ["/bin/sh", "-c", command], users_environment()
    ended = subprocess.run(argv, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def next_command(make: Process) -> str:
    """Return the command that `make run` suggests to try next."""
    found = re.search(r"in this folder: (.*)", make.logs())
    assert found, make.logs()
    return found[1]


def effects(make: Process) -> list[tuple[str, str]]:
    """Return API and method of each effect in the sandbox that `make run` started."""
    found = re.search(r"(http\S+/_effects) says what happened", make.logs())
    assert found, make.logs()
    listed = httpx.get(found[1], trust_env=False).json()["effects"]
    return [(effect["api"], effect["method"]) for effect in listed]


def deliver(clone: Path, port: int) -> httpx.Response:
    """Deliver an event signed with the secret that the first run wrote."""
    secret = dotenv_values(clone / ".env")["STRIPE_WEBHOOK_SECRETS"]
    assert secret
    body, headers = stripe_delivery(stripe_event(type="customer.created"), secret=secret)
    return httpx.post(
        f"http://127.0.0.1:{port}/webhooks/stripe", content=body, headers=headers, trust_env=False
    )


def check_one_effect(make: Process, clone: Path) -> None:
    """Run the suggested command: its five deliveries cause one contact and one letter, which `show` lists."""
    wait_until(lambda: "says what happened" in make.logs(), make.logs)
    sent = run_here(clone, next_command(make))
    assert (sent.count("first seen"), sent.count("duplicate")) == (1, 4)
    show = f"{next_command(make).partition(' send ')[0]} show stripe {sent.split()[4]}"
    wait_until(lambda: "state       done" in run_here(clone, show), make.logs)
    assert effects(make) == [("salesly", "POST"), ("stannp", "POST")]
    assert "thank-you letter" in run_here(clone, show)


def test_make_run_from_nothing(clone: Path, make_run: MakeRun) -> None:
    """The first run installs, writes secrets, migrates and serves; Ctrl-C ends every process."""
    port = free_port()
    make = make_run(port)
    family = wait_listening(make)
    names = " ".join(" ".join(process.cmdline()) for process in family)
    parts = ("valkey-server", "-m receiver", "-m worker", "-m firstseen sandbox")
    assert all(part in names for part in parts), names
    assert deliver(clone, port).status_code == 200
    check_one_effect(make, clone)
    assert stat.S_IMODE((clone / ".env").stat().st_mode) == 0o600
    make.interrupt()
    make.wait_exit(60)
    check_nothing_left(family, port)
    assert f"http://127.0.0.1:{port}/webhooks/" in make.logs()
    assert f"The dashboard is at http://127.0.0.1:{port}/" in make.logs()
    assert "Sign in to the dashboard with name dev, password " in make.logs()


def test_make_run_ends_with_its_terminal(clone: Path, make_run: MakeRun) -> None:
    """A closed terminal ends every process, and the lines of an existing `.env` stay."""
    own = "STANDARD_WEBHOOK_SECRETS='whsec_bXkgb3duIHNlY3JldCwga2VwdA=='\n"
    (clone / ".env").write_text(own)
    port = free_port()
    make = make_run(port)
    family = wait_listening(make)
    assert (clone / ".env").read_text().startswith(own)
    child = next(process for process in family if "firstseen.dev" in process.cmdline())
    child.send_signal(signal.SIGHUP)
    assert make.wait_exit(60) == 0
    check_nothing_left(family, port)


def test_make_run_names_the_process_that_died(make_run: MakeRun) -> None:
    """When one process dies, the log names it, the others end, and make fails."""
    port = free_port()
    make = make_run(port)
    family = wait_listening(make)
    victim = next(process for process in family if process.cmdline()[-2:] == ["-m", "worker"])
    victim.kill()
    assert make.wait_exit(60) != 0
    assert "worker ended by itself with exit code -9: stopping all." in make.logs()
    check_nothing_left(family, port)


def test_make_run_refuses_a_taken_port(make_run: MakeRun) -> None:
    """A taken port gives one sentence, and nothing is started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        make = make_run(port)
        assert make.wait_exit(INSTALL) != 0
        assert f"Port {port} cannot be used (Address already in use): stop what listens there" in make.logs()
        assert "Traceback" not in make.logs()
