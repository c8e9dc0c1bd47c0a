"""Base of the private servers: a folder, a port, a process with its descendants, and complete clean-up."""

import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from tests.services.processes import Process, clean_environment
from tests.services.waiting import free_port, wait_until

QUEUE = "firstseen"
"""The queue of the product's nudges."""
STARTS = 5
"""Attempts to start: another program may take the free port before the server binds it."""
PATIENCE = 60
"""Seconds for a server to answer after its start, long enough for a slow and busy machine."""


def make_folder(name: str) -> Path:
    """Make a temporary folder for a server's files."""
    # For root in /tmp, because another user must reach it; short, because a socket's path is limited to about
    # 100 bytes.
    place = "/tmp" if os.geteuid() == 0 else None
    return Path(tempfile.mkdtemp(prefix=f"fs-{name}-", dir=place))


def as_nobody() -> dict[str, Any]:
    """Return the Popen arguments that keep root's server from running as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Server:
    """A program that listens on a loopback port and keeps everything in one temporary folder."""

    name = "server"

    def __init__(self) -> None:
        self.folder = make_folder(self.name)
        self.log = self.folder / "log"
        self.port = 0
        self._process: Process | None = None

    def argv(self) -> list[str]:
        """Return the command that runs it in the foreground."""
        raise NotImplementedError

    def env(self) -> dict[str, str]:
        """Return its environment: HOME is its own folder."""
        return clean_environment(HOME=str(self.folder), LC_ALL="C")

    def popen(self) -> dict[str, Any]:
        """Return further arguments for Popen."""
        return {}

    def answers(self) -> bool:
        """Return whether it does its work, not only listens."""
        raise NotImplementedError

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process, f"{self.name} was not started"
        return self._process

    @property
    def running(self) -> bool:
        """Whether its process exists, frozen or not."""
        return self._process is not None and self._process.running

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it, on its earlier port if it had one, and wait until it answers."""
        tries = 1 if self.port else STARTS
        for _ in range(tries):
            self.port = self.port if tries == 1 else free_port()
            self._process = Process(self.name, self.argv(), log=self.log, env=self.env(), **self.popen())
            wait_until(lambda: not self.running or self.answers(), f"{self.name} to answer", timeout=PATIENCE)
            if self.running:
                return self
        raise AssertionError(f"{self.name} does not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def freeze(self) -> None:
        """Send SIGSTOP, which keeps connections open; to the first process first, lest it start others."""
        self.process.freeze(alone=True)
        self.process.freeze()

    def thaw(self) -> None:
        """Continue it with SIGCONT."""
        self.process.thaw()

    def kill(self) -> None:
        """Send SIGKILL to all its processes. `start()` brings it back on the same port."""
        self.process.kill()

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self.start()

    def stop(self) -> None:
        """End it and remove its folder; safe to call twice and in any state."""
        if self._process:
            self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
