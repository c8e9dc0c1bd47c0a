"""The product as a platform runs it: the Procfile's lines as real processes in a clean environment."""

import os
import secrets
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from tests.services.checkout import CHECKOUT
from tests.services.handlers import Handlers
from tests.services.processes import Process, clean_environment
from tests.services.signing import STRIPE_SECRET, stripe_delivery, stripe_event
from tests.services.waiting import free_port, wait_until

BOOT = 60
"""Seconds for a process to get ready, long enough for a slow and busy machine."""

SOURCES = """[stripe]
provider = "stripe"
secrets_env = "STRIPE_WEBHOOK_SECRET"
"""


def procfile(checkout: Path = CHECKOUT) -> dict[str, str]:
    """Return the Procfile's lines by name."""
    rows = (line.partition(":") for line in (checkout / "Procfile").read_text().splitlines() if ":" in line)
    return {name.strip(): line.strip() for name, _, line in rows}


class Deployment:
    """One release of the product on one database and one broker.

    It runs in a folder of its own, so that no `.env` is read, with the checkout on PYTHONPATH. `env` adds to
    the environment or replaces; `sources` is the text of a sources file (default: one Stripe source). With
    `site` it delivers to that deployment's web processes unless it starts its own, and does not end them.
    """

    def __init__(
        self,
        folder: Path,
        database_url: str,
        broker_url: str,
        *,
        sources: str = SOURCES,
        handlers: Handlers | None = None,
        env: dict[str, str] | None = None,
        checkout: Path = CHECKOUT,
        python: Path = Path(sys.executable),
        cwd: Path | None = None,
        site: "Deployment | None" = None,
    ) -> None:
        self.folder, self.checkout, self.python = folder, checkout, python
        self.cwd = cwd or folder / "cwd"
        self.cwd.mkdir(parents=True, exist_ok=True)
        self.database_url, self.broker_url = database_url, broker_url
        self.handlers = handlers or Handlers(folder / "handlers")
        self.lent = site.webs if site else []
        self.webs: list[Process] = []
        self.workers: list[Process] = []
        self.others: list[Process] = []
        (folder / "sources.toml").write_text(sources)
        self.env = self._environment() | (env or {})
        self.client = httpx.Client(timeout=30, limits=httpx.Limits(max_connections=None), trust_env=False)

    def _environment(self) -> dict[str, str]:
        programs = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", os.defpath)])
        return clean_environment(
            DATABASE_URL=self.database_url,
            BROKER_URL=self.broker_url,
            FIRSTSEEN_SECRET_KEY=secrets.token_hex(32),
            FIRSTSEEN_SOURCES=str(self.folder / "sources.toml"),
            STRIPE_WEBHOOK_SECRET=STRIPE_SECRET,
            **self.handlers.env(),
        ) | {
            "PATH": programs,
            "PYTHONPATH": os.pathsep.join([str(self.checkout), str(self.handlers.folder)]),
            "PYTHONUNBUFFERED": "1",
        }

    def spawn(self, name: str, line: str, **env: str) -> Process:
        """Start a shell line of this deployment in the background; it ends with the deployment."""
        log = self.folder / f"{name}-{len(self.others) + len(self.webs) + len(self.workers)}.log"
        argv = ["/bin/sh", "-c", f"exec {line}"]
        process = Process(name, argv, log=log, env=self.env | env, cwd=self.cwd)
        {"web": self.webs, "worker": self.workers}.get(name, self.others).append(process)
        return process

    def run(self, line: str, *, expect: int | None = 0, timeout: float = BOOT, **env: str) -> str:
        """Run a shell line to its end and return its output; it must exit with `expect`, unless None."""
        process = self.spawn("run", line, **env)
        code = process.wait_exit(timeout)
        assert expect is None or code == expect, f"{line!r} exits {code}, not {expect}:\n{process.logs()}"
        return process.logs()

    def firstseen(self, arguments: str, *, expect: int | None = 0) -> str:
        """Run `python -m firstseen ...` and return its output."""
        return self.run(f"python -m firstseen {arguments}", expect=expect)

    def migrate(self) -> None:
        """Run the release line."""
        self.run(procfile(self.checkout)["release"])

    def start_web(self, n: int = 1, **env: str) -> list[Process]:
        """Start `n` more web processes, each on a port of its own, and wait until they are ready."""
        started = [self._web(free_port(), **env) for _ in range(n)]
        self.wait_ready()
        return started

    def _web(self, port: int, **env: str) -> Process:
        web = self.spawn("web", procfile(self.checkout)["web"], PORT=str(port), **env)
        web.url = f"http://127.0.0.1:{port}"
        return web

    def start_worker(self, n: int = 1, **env: str) -> list[Process]:
        """Start `n` more worker processes, without waiting: a worker has no readiness endpoint."""
        return [self.spawn("worker", procfile(self.checkout)["worker"], **env) for _ in range(n)]

    def start(self, web: int = 1, worker: int = 1) -> "Deployment":
        """Start workers, and web processes up to this number, lent ones included; wait until web is ready."""
        self.start_worker(worker)
        self.start_web(max(0, web - len(self.urls)))
        return self

    def wait_ready(self, timeout: float = BOOT) -> None:
        """Wait until every web process answers /readyz with 200; fail with its output if one ends."""
        for web in self.webs:
            wait_until(
                partial(self._ready, web), lambda web=web: f"web to be ready:\n{web.logs()}", timeout=timeout
            )

    def _ready(self, web: Process) -> bool:
        assert web.running, f"web ended with {web.popen.returncode}:\n{web.logs()}"
        try:
            return self.client.get(f"{web.url}/readyz", timeout=5).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def forget(self, process: Process) -> None:
        """Kill a process and no longer count it among the webs and workers."""
        process.kill()
        for group in (self.webs, self.workers):
            if process in group:
                group.remove(process)
                self.others.append(process)

    @property
    def url(self) -> str:
        """The address of the latest web process."""
        return self.urls[-1]

    @property
    def urls(self) -> list[str]:
        """The addresses of the running web processes, in the order started, the lent ones first."""
        return [web.url for web in (*self.lent, *self.webs) if web.running]

    def deliver(
        self, event_id: str | None = None, *, type: str = "invoice.paid", source: str = "stripe",  # noqa: A002
        url: str | None = None, timeout: float = 30, **data: Any,
    ) -> httpx.Response:  # fmt: skip
        """Deliver one signed Stripe event; `data` becomes `data.object`, which `Handlers` reads."""
        body, headers = stripe_delivery(stripe_event(event_id, type, **data))
        return self.post(source, body, headers, url=url, timeout=timeout)

    def post(
        self,
        source: str,
        body: bytes,
        headers: dict[str, str],
        *,
        url: str | None = None,
        timeout: float = 30,
    ) -> httpx.Response:
        """Post exactly these bytes to a source."""
        return self.client.post(
            f"{url or self.url}/webhooks/{source}", content=body, headers=headers, timeout=timeout
        )

    def deliver_many(self, ids: list[str], *, threads: int = 16, **data: Any) -> list[httpx.Response]:
        """Deliver these events concurrently over all web processes; return the responses in order."""
        urls = self.urls

        def deliver_numbered(numbered: tuple[int, str]) -> httpx.Response:
            number, event_id = numbered
            return self.deliver(event_id, url=urls[number % len(urls)], **data)

        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(deliver_numbered, enumerate(ids)))

    def wait_handled(self, ids: list[str], timeout: float = 60) -> None:
        """Wait until a handler finished each of these events at least once."""
        wanted = set(ids)
        wait_until(
            lambda: wanted <= set(self.handlers.lines()),
            lambda: (
                f"{len(wanted - set(self.handlers.lines()))} of {len(wanted)} events to be handled;"
                f" the workers say:\n{self.logs('worker')[-3000:]}\n"
            ),
            timeout=timeout,
        )

    def logs(self, name: str = "") -> str:
        """Return the output of the processes of this name, or of all."""
        processes = [*self.lent, *self.webs, *self.workers, *self.others]
        return "\n".join(process.logs() for process in processes if not name or process.name == name)

    def stop(self) -> None:
        """Kill all that this deployment started and wait until it has ended."""
        self.client.close()
        for process in [*self.webs, *self.workers, *self.others]:
            process.kill()


def timed(deliver: Any, *arguments: Any, **named: Any) -> tuple[httpx.Response, float]:
    """Call `deliver`; return the response and the seconds that it took."""
    begun = time.monotonic()
    return deliver(*arguments, **named), time.monotonic() - begun
