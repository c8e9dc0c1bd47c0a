"""Several processes in one terminal: their lines side by side, an orderly end, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType
from typing import IO

POLL = 0.1
GRACE = 28.0
"""Seconds that processes get to stop: web and worker promise 25."""
HURRY_AFTER = 1.0
"""Seconds after the first Ctrl-C; an earlier second signal is the same key press, passed on by make."""
COLOURS = (36, 32, 35, 33)


class Screen:
    """Everybody's lines, each behind its author's name, in colour where the terminal has any."""

    def __init__(self) -> None:
        self._coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self._names: list[str] = []
        self._lock = threading.Lock()

    def say(self, name: str, text: str) -> None:
        """Print one line."""
        with self._lock, suppress(OSError):  # the terminal may be gone
            if name not in self._names:
                self._names.append(name)
            head = f"{name:<7} |"
            if self._coloured:
                head = f"\033[{COLOURS[self._names.index(name) % len(COLOURS)]}m{head}\033[0m"
            sys.stdout.write(f"{head} {text}\n")
            sys.stdout.flush()

    def relay(self, name: str, output: IO[bytes]) -> None:
        """Print what a process prints, until its end."""
        for line in output:
            self.say(name, line.decode(errors="replace").rstrip())


class Child:
    """One process in a session of its own: Ctrl-C does not reach it, so that it ends when its turn comes."""

    def __init__(
        self, name: str, argv: list[str], screen: Screen, env: Mapping[str, str], *, last: bool
    ) -> None:
        self.name = name
        self.last = last
        self._popen = subprocess.Popen(  # noqa: S603 - our own commands
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
            start_new_session=True,
        )
        self._relay = threading.Thread(target=screen.relay, args=(name, self._popen.stdout), daemon=True)
        self._relay.start()

    @property
    def status(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._popen.poll()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.status is None:
            self._popen.terminate()

    def kill(self) -> None:
        """End it and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()
        self._relay.join(1)


class Foreground:
    """The processes of one terminal, from start to end. Make it first: from then on signals only ask."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self.children: list[Child] = []
        self._asked_at: float | None = None
        self._hurry = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif number == signal.SIGINT and now - self._asked_at > HURRY_AFTER:
            self._hurry = True

    @property
    def over(self) -> bool:
        """Whether somebody asked for the end, or a process ended by itself."""
        return self._asked_at is not None or any(child.status is not None for child in self.children)

    def start(
        self, name: str, argv: list[str], env: Mapping[str, str] | None = None, *, last: bool = False
    ) -> None:
        """Start one more process, unless it is over already; `env` goes on top of our environment.

        One that the others lean on says `last`: it ends after them.
        """
        if not self.over:
            self.children.append(Child(name, argv, self.screen, env or {}, last=last))

    def wait(self, ready: Callable[[], bool]) -> bool:
        """Wait until `ready()`, or until it is over; say whether it became ready."""
        while not self.over:
            if ready():
                return True
            time.sleep(POLL)
        return False

    def stop(self) -> int:
        """End the processes; return 0 if somebody asked for it, 1 if it came otherwise."""
        ended = [child for child in self.children if child.status is not None]
        for child in ended if self._asked_at is None else ():
            self.screen.say(
                "run", f"{child.name} ended by itself with exit code {child.status}: stopping all."
            )
        self._end([child for child in self.children if not child.last])
        self._end([child for child in self.children if child.last])
        return 1 if self._asked_at is None else 0

    def _end(self, children: list[Child]) -> None:
        deadline = time.monotonic() + GRACE
        for child in children:
            child.terminate()
        while any(child.status is None for child in children) and not self._hurry:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL)
        for child in children:
            child.kill()
