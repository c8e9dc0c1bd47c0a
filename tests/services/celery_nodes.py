"""Local processes with the interface of pytest-celery's containers: `celery_setup` works without Docker."""

import signal
from collections.abc import Callable
from typing import Any

from tests.services.processes import Process
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

PATIENCE = 60
"""Seconds for a node to get ready, long enough for a slow and busy machine."""


class BrokerContainer:
    """A Valkey server as pytest-celery's broker container."""

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self.id = self.name = valkey.folder.name

    @property
    def celeryconfig(self) -> dict[str, str]:
        """The URLs for a worker and for the test, which are equal."""
        return {"url": self.valkey.url, "host_url": self.valkey.url}

    @property
    def status(self) -> str:
        """The state in Docker's words."""
        return "running" if self.valkey.running else "exited"

    def logs(self) -> str:
        """Return all of its output."""
        return self.valkey.process.logs()

    def ready(self) -> bool:
        """Wait until it answers."""
        return wait_until(self.valkey.answers, "the broker to answer", timeout=PATIENCE)

    def reload(self) -> None:
        """Do nothing: there is no cached state."""

    def kill(self, signal: str | int = "SIGKILL") -> None:  # noqa: ARG002
        """Kill it; with any signal its messages are lost."""
        self.valkey.kill()

    def restart(self, timeout: float = PATIENCE) -> None:  # noqa: ARG002
        """Kill it and start it again on the same port."""
        self.valkey.restart()

    def teardown(self) -> None:
        """Stop it."""
        self.valkey.stop()


class WorkerContainer:
    """A worker process as pytest-celery's worker container; `start` starts one, and again after a kill."""

    def __init__(self, start: Callable[[], Process], ready_prompt: str) -> None:
        self._start = start
        self.ready_prompt = ready_prompt
        self.process = start()

    @property
    def id(self) -> str:
        """A name for this run of the worker."""
        return f"{self.process.name}-{self.process.pid}"

    @property
    def name(self) -> str:
        """The same as `id`."""
        return self.id

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Empty: the worker reads its own environment."""
        return {}

    @property
    def status(self) -> str:
        """The state in Docker's words."""
        return "running" if self.process.running else "exited"

    def logs(self) -> str:
        """Return all output of this run."""
        return self.process.logs()

    def ready(self) -> bool:
        """Wait for `ready_prompt` in the output."""
        return wait_until(lambda: self.ready_prompt in self.logs(), self.logs, timeout=PATIENCE)

    def reload(self) -> None:
        """Do nothing: there is no cached state."""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal, by name or number, to all its processes, and wait until they end."""
        self.process.signal(_number(signal))
        self.process.wait_exit(PATIENCE)

    def restart(self, timeout: float = PATIENCE) -> None:
        """Stop it as a platform does, start it again, and wait until it is ready."""
        if self.process.running:
            self.process.terminate()
            self.process.wait_exit(timeout)
        self.process = self._start()
        self.ready()

    def teardown(self) -> None:
        """Kill it."""
        self.process.kill()


def _number(name: str | int) -> int:
    return name if isinstance(name, int) else int(signal.Signals[name])
