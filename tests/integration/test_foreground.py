"""`Foreground`: how several processes in one terminal end, with real signals."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firstseen.dev import GRACE, HURRY_AFTER
from tests.services.checkout import CHECKOUT
from tests.services.processes import Process, clean_environment, lives
from tests.services.waiting import wait_until

PROGRAM = """
import sys
from firstseen.dev import Foreground

run = Foreground()
run.start("server", ["/bin/sh", "-c", {server!r}], last=True)
run.start("client", ["/bin/sh", "-c", {client!r}], {{"GREETING": "hello"}})
run.wait(lambda: False)
sys.exit(run.stop())
"""
STUBBORN = "trap '' TERM; echo up; sleep 600 & wait"
POLITE = "trap 'echo bye; exit 0' TERM; echo up $GREETING; sleep 600 & wait"

Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Run a server that ends last and a client, each a shell command; return once both are up."""
    made: list[Process] = []

    def run(*, server: str = POLITE, client: str = POLITE) -> Process:
        code = PROGRAM.format(server=server, client=client)
        env = clean_environment(PYTHONPATH=str(CHECKOUT))
        made.append(Process("foreground", [sys.executable, "-c", code], log=tmp_path / "log", env=env))
        wait_until(lambda: made[0].logs().count("| up") >= 2, made[0].logs)
        return made[0]

    yield run
    for process in made:
        process.kill()


def test_the_server_ends_last(start: Start) -> None:
    """The server is stopped after the client has ended; each output line names its process."""
    running = start()
    family = running.family()
    running.interrupt()
    assert running.wait_exit() == 0
    lines = running.logs().splitlines()
    assert "client  | up hello" in lines
    assert lines.index("client  | bye") < lines.index("server  | bye")
    assert not any(map(lives, family))


def test_a_second_interrupt_stops_waiting(start: Start) -> None:
    """A second Ctrl-C kills a process that does not stop."""
    running = start(client=STUBBORN)
    begun = time.monotonic()
    running.interrupt()
    time.sleep(HURRY_AFTER + 0.2)  # a shorter pause counts as the same key press
    assert running.running
    running.interrupt()
    assert running.wait_exit() == 0
    assert time.monotonic() - begun < GRACE


def test_one_key_press_may_arrive_twice(start: Start) -> None:
    """Signals in quick succession count as one request to stop."""
    running = start(client="trap 'sleep 1.5; echo bye; exit 0' TERM; echo up; sleep 600 & wait")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
        running.signal(number, alone=True)
    assert running.wait_exit() == 0
    assert "client  | bye" in running.logs()


@pytest.mark.parametrize(("line", "code"), [("echo up; sleep 0.5; exit 3", 3), ("echo up; sleep 0.5", 0)])
def test_an_end_by_itself_ends_all(start: Start, line: str, code: int) -> None:
    """A process that ends by itself is named with its exit code, and the others are stopped."""
    running = start(client=line)
    assert running.wait_exit() == 1
    assert f"run     | client ended by itself with exit code {code}: stopping all." in running.logs()
    assert "server  | bye" in running.logs()


def test_children_of_a_dead_process_end_too(start: Start) -> None:
    """The children of a killed process are stopped as well."""
    running = start(client="sleep 600 & echo up; wait")
    family = running.family()
    client = next(process for process in family if process.cmdline()[-1].startswith("sleep 600 &"))
    sleeper = client.children()[0]
    client.kill()
    assert running.wait_exit() == 1
    wait_until(lambda: not lives(sleeper), "the sleeper to be gone")
    wait_until(lambda: not any(map(lives, family)), "everything to be gone")
