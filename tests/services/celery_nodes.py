"""Local processes in the shape of pytest-celery's containers: its `celery_setup` works without Docker."""

import signal
from collections.abc import Callable
from typing import Any

from tests.services.processes import Process
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

PATIENCE = 60
"""Seconds for a node to be ready on a slow and busy machine."""


class BrokerContainer:
    """A Valkey server as pytest-celery sees a broker."""

    def __init__(self, valkey: Valkey) -> None:
        self.valkey = valkey
        self.id = self.name = valkey.folder.name

    @property
    def celeryconfig(self) -> dict[str, str]:
        """The addresses, from a worker's side and from the test's: the same one."""
        return {"url": self.valkey.url, "host_url": self.valkey.url}

    @property
    def status(self) -> str:
        """As Docker words it."""
        return "running" if self.valkey.running else "exited"

    def logs(self) -> str:
        """Return everything it printed."""
        return self.valkey.process.logs()

    def ready(self) -> bool:
        """Wait until it answers."""
        return wait_until(self.valkey.answers, "the broker to answer", timeout=PATIENCE)

    def reload(self) -> None:
        """Nothing is cached, so nothing needs to be read again."""

    def kill(self, signal: str | int = "SIGKILL") -> None:  # noqa: ARG002
        """Kill it; its messages are gone with any signal."""
        self.valkey.kill()

    def restart(self, timeout: float = PATIENCE) -> None:  # noqa: ARG002
        """Kill and start again on the same port."""
        self.valkey.restart()

    def teardown(self) -> None:
        """End it."""
        self.valkey.stop()


class WorkerContainer:
    """A worker process as pytest-celery sees a worker; `start` begins one, and again after a kill."""

    def __init__(self, start: Callable[[], Process], ready_prompt: str) -> None:
        self._start = start
        self.ready_prompt = ready_prompt
        self.process = start()

    @property
    def id(self) -> str:
        """A name for this run of it."""
        return f"{self.process.name}-{self.process.pid}"

    @property
    def name(self) -> str:
        """The same."""
        return self.id

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Nothing: the worker reads its own environment."""
        return {}

    @property
    def status(self) -> str:
        """As Docker words it."""
        return "running" if self.process.running else "exited"

    def logs(self) -> str:
        """Return everything that the present run printed."""
        return self.process.logs()

    def ready(self) -> bool:
        """Wait for the line that says so."""
        return wait_until(lambda: self.ready_prompt in self.logs(), self.logs, timeout=PATIENCE)

    def reload(self) -> None:
        """Nothing is cached, so nothing needs to be read again."""

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal, by name or number, to the whole family, and wait for the end."""
        self.process.signal(_number(signal))
        self.process.wait_exit(PATIENCE)

    def restart(self, timeout: float = PATIENCE) -> None:
        """Stop as a platform does, then start again and wait until it is ready."""
        if self.process.running:
            self.process.terminate()
            self.process.wait_exit(timeout)
        self.process = self._start()
        self.ready()

    def teardown(self) -> None:
        """End it."""
        self.process.kill()


def _number(name: str | int) -> int:
    return name if isinstance(name, int) else int(signal.Signals[name])
