"""The contestants: each is served by the same server with the same number of threads, on loopback."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.services.checkout import CHECKOUT
from tests.services.databases import Databases, driver_url
from tests.services.deployment import Deployment
from tests.services.handlers import Handlers
from tests.services.processes import Process, clean_environment
from tests.services.signing import STRIPE_SECRET
from tests.services.valkey import Valkey
from tests.services.waiting import free_port, wait_until

THREADS = 16
"""Threads of each web process and of each worker's pool: Firstseen's default."""

ENDPOINT = "/webhooks/stripe"
EMPTY = '''"""Do nothing, as fast as that can be done."""

from worker import handles


@handles("stripe", "*")
def nothing(event, calls):
    """Return."""
'''
ONE_CALL = '''"""Make one call that takes 20 ms there."""

from worker import handles


@handles("stripe", "*")
def one_call(event, calls):
    """Make it."""
    calls.slow.post("/work", json={"id": event.event_id})
'''


@dataclass
class Contestant:
    """A running contestant: the URL that takes its deliveries, and how to stop it."""

    name: str
    url: str
    processes: list[Process] = field(default_factory=list)
    stop: Callable[[], None] = lambda: None

    def memory(self) -> float:
        """Return the resident megabytes of its largest process."""
        return max(rss(process) for process in self.processes)


def rss(process: Process) -> float:
    """Return the resident megabytes of the largest process of a family."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    return max(member.memory_info().rss for member in family) / 2**20


def serve_app(folder: Path, name: str, server: str = "granian", **env: str) -> Contestant:
    """Serve one of `tests/bench/apps`."""
    port = free_port()
    target = f"tests.bench.apps.{name}:application"
    lines = {
        "granian": [
            *("-m", "granian", "--interface", "wsgi", "--factory", "--workers", "1", "--no-ws"),
            *("--blocking-threads", str(THREADS), "--port", str(port), target),
        ],
        "gunicorn": [
            *("-m", "gunicorn", "--workers", "1", "--threads", str(THREADS), "--bind", f"127.0.0.1:{port}"),
            f"{target}()",
        ],
    }
    environ = clean_environment(PYTHONPATH=str(CHECKOUT), PYTHONUNBUFFERED="1", **env)
    log = folder / f"{name}-{server}.log"
    process = Process(name, [sys.executable, *lines[server]], log=log, env=environ, cwd=folder)
    made = Contestant(name, f"http://127.0.0.1:{port}{ENDPOINT}", [process], process.kill)
    wait_until(lambda: _listens(port), lambda: f"{name} to listen:\n{log.read_text()}")
    return made


def _listens(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
    except httpx.TransportError:
        return False
    return True


def serve_naive(folder: Path, databases: Databases, broker: Valkey) -> Contestant:
    """Serve the receiver written in an afternoon."""
    url = driver_url(databases.fresh("postgres"))
    env = {"BENCH_DATABASE": url, "BENCH_BROKER": broker.url, "BENCH_SECRET": STRIPE_SECRET}
    return serve_app(folder, "naive", **env)


def serve_dbos(folder: Path, databases: Databases) -> Contestant:
    """Serve Flask with DBOS."""
    url = databases.fresh("postgres").replace("postgres://", "postgresql://")
    return serve_app(folder, "durable", BENCH_DATABASE=url, BENCH_SECRET=STRIPE_SECRET)


def deploy(
    folder: Path, databases: Databases, broker: Valkey, kind: str, code: str = EMPTY, **env: str
) -> Deployment:
    """Deploy Firstseen with its defaults on a database of its own, without starting it."""
    folder.mkdir(parents=True, exist_ok=True)
    handlers = Handlers(folder / "handlers", code=code)
    return Deployment(folder, databases.migrated(kind), broker.url, handlers=handlers, env=env)


def serve_firstseen(deployment: Deployment, name: str) -> Contestant:
    """Start one web process of a deployment."""
    process = deployment.start_web()[0]
    return Contestant(name, f"{process.url}{ENDPOINT}", [process], deployment.stop)


def version_of(argv: list[str]) -> str:
    """Return the first line of a program's version output."""
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, env=os.environ)
    return next(iter((ended.stdout + ended.stderr).splitlines()), "unknown")
