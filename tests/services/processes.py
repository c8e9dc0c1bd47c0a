"""A real process with all its descendants: output in a file, signals to one or all, nothing left behind."""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.services.waiting import wait_until

INHERITED = ("PATH", "HOME", "LANG", "TMPDIR")
PRIVATE = re.compile(
    "DATABASE_URL|BROKER_URL|REDIS_URL|PORT|WEB_CONCURRENCY|WORKER_CONCURRENCY|FIRSTSEEN_.*|.*_SECRETS?"
    "|PYTHONPATH|VIRTUAL_ENV|PYTEST_.*|MAKE.*|MFLAGS|VENV|ARGS"
)


def clean_environment(**extra: str) -> dict[str, str]:
    """Return an environment with only PATH, HOME, LANG and TMPDIR of this process."""
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | extra


def users_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment without the product's variables or an outer make's."""
    return {name: value for name, value in os.environ.items() if not PRIVATE.fullmatch(name)} | extra


class Process:
    """A program in a session and process group of its own.

    Signals go to the whole family (every descendant, whatever its group), or to the first process alone with
    `alone=True`.
    """

    def __init__(
        self, name: str, argv: Sequence[str], *, log: Path, env: Mapping[str, str], **popen: Any
    ) -> None:
        self.name = name
        self.log = log
        self.url = ""
        self._known: dict[int, psutil.Process] = {}
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(env),
                start_new_session=True,
                **popen,
            )
        self.family()

    @property
    def pid(self) -> int:
        """The first process's id, which is its group's id too."""
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether the first process lives."""
        return self.popen.poll() is None

    def family(self) -> list[psutil.Process]:
        """Return the living descendants with the first process in front, and those that outlived it."""
        with suppress(psutil.NoSuchProcess):
            if self.running:
                first = self._known.setdefault(self.pid, psutil.Process(self.pid))
                self._known |= {child.pid: child for child in first.children(recursive=True)}
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if process.pid not in self._known and os.getpgid(process.pid) == self.pid:
                    self._known[process.pid] = process
        return [process for process in self._known.values() if lives(process)]

    def signal(self, number: int, *, alone: bool = False) -> None:
        """Send a signal to the family, or to the first process alone; ended processes are skipped."""
        for process in [self.popen] if alone else self.family():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def terminate(self, *, alone: bool = True) -> None:
        """Send SIGTERM as a platform does: to the first process, with `alone=False` to all."""
        self.signal(signal.SIGTERM, alone=alone)

    def interrupt(self) -> None:
        """Press Ctrl-C: SIGINT to the process group, as a terminal does."""
        os.killpg(self.pid, signal.SIGINT)

    def kill(self, *, alone: bool = False) -> None:
        """Send SIGKILL to the family, with `alone=True` to the first process, and wait until it has ended."""
        if alone:
            self.signal(signal.SIGKILL, alone=True)
            self.popen.wait(60)
            return
        family = self.family()
        self.signal(signal.SIGKILL)
        self.popen.wait(60)
        wait_until(lambda: not any(map(lives, family)), f"{self.name} to be gone after SIGKILL")

    def freeze(self, *, alone: bool = False) -> None:
        """Send SIGSTOP and wait until the processes are stopped."""
        self.signal(signal.SIGSTOP, alone=alone)
        held = self.family()[:1] if alone else self.family()
        wait_until(lambda: all(map(_stopped, held)), f"{self.name} to freeze")

    def thaw(self, *, alone: bool = False) -> None:
        """Send SIGCONT."""
        self.signal(signal.SIGCONT, alone=alone)

    def wait_exit(self, timeout: float = 60) -> int:
        """Return the exit code (negative: the signal that ended it); fail with the output at `timeout`."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"{self.name} still runs after {timeout:g} s:\n{self.logs()[-3000:]}"
            ) from None

    def logs(self) -> str:
        """Return all of its output."""
        return self.log.read_text(errors="replace")


def lives(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return True
