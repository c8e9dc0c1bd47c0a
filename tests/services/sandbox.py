"""The sandbox over real HTTP, and one client for each of its five APIs."""

import json
import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

import httpx

from receiver.ledger.store import Store
from receiver.sandbox.factory import create_sandbox
from receiver.sandbox.server import build_server, listen
from tests.services.waiting import wait_until

KEY = "e367c03e-3082-4c8e-b647-d6810761dcd4"
T = TypeVar("T")


class Sandbox:
    """A sandbox in a thread of this process, on a free port, with a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(f"sqlite:///{folder}/sandbox.db", pool=32)
        self._listener = listen("127.0.0.1", 0)
        self._server = build_server(create_sandbox(self.store), self._listener)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def stop(self) -> None:
        """Stop serving."""
        self.http.close()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._listener.close()
        self.store.close()

    def control(self, name: str, **asked: Any) -> dict[str, Any]:
        """POST to a control path; it must succeed."""
        answer = self.http.post(f"/_{name}", json=asked)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def fault(self, prefix: str, kind: str, **more: Any) -> None:
        """Arm a fault."""
        self.control("faults", prefix=prefix, kind=kind, **more)

    def advance(self, **span: float) -> None:
        """Move the clock ahead; `hours=25`, `seconds=1`."""
        self.control("clock", advance=span.get("hours", 0) * 3600 + span.get("seconds", 0))

    @property
    def effects(self) -> list[dict[str, Any]]:
        """The effects that happened."""
        return list(self.http.get("/_effects").json()["effects"])

    @property
    def requests(self) -> list[dict[str, Any]]:
        """The requests that arrived."""
        return list(self.http.get("/_requests").json()["requests"])

    @property
    def keys(self) -> int:
        """The number of keys in its database, answered or not."""
        with self.store.read() as connection:
            return int(connection.exec_driver_sql("SELECT count(*) FROM idempotency_key").scalar_one())


class Lingering:
    """The sandbox's clock for a fault that lingers: `sleep` lasts until the test sets `over`."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.over = threading.Event()

    def sleep(self, seconds: float) -> None:
        """Record the seconds, then block."""
        self.asked.append(seconds)
        self.over.wait(60)

    def wait(self) -> None:
        """Wait until a request lingers."""
        wait_until(lambda: self.asked, "a request to linger")


@dataclass(frozen=True)
class Client:
    """A client of one API: its creating operation, and its customers' credentials."""

    name: str
    path: str
    header: str
    credential: Callable[[str], dict[str, str]]
    fields: dict[str, Any]
    changing: str
    """The field that differs between two bodies."""
    form: bool = False

    @property
    def prefix(self) -> str:
        """The API's path in the sandbox."""
        return f"/{self.name}"

    def body(self, n: int = 1) -> bytes:
        """Return the n-th body of the creating operation."""
        fields = {**self.fields, self.changing: f"{self.fields[self.changing]} {n}"}
        return urlencode(fields).encode() if self.form else json.dumps(fields).encode()

    def send(
        self,
        sandbox: Sandbox,
        key: str | bytes | None = None,
        *,
        method: str = "POST",
        path: str = "",
        n: int = 1,
        who: str = "one",
        content: bytes | None = None,
        **headers: str,
    ) -> httpx.Response:
        """Send a request, by default the creating one; `_` in header names stands for `-`."""
        kind = "application/x-www-form-urlencoded" if self.form else "application/json"
        sent: dict[str, str | bytes] = {"Content-Type": kind, **self.credential(who)}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent[self.header] = key
        whole = self.body(n) if content is None else content
        return sandbox.http.request(method, f"{self.prefix}{path or self.path}", content=whole, headers=sent)


def _basic(who: str) -> dict[str, str]:
    return {"Authorization": f"Basic {b64encode(f'{who}:'.encode()).decode()}"}


CELPER = Client(
    "celper",
    "/v1/candidates",
    "Idempotency-Key",
    lambda who: {"X-API-Key": f"celp_{who}_secret"},
    {"jobPositionId": "pos_abc123", "firstName": "Jane", "lastName": "Smith", "email": "jane@example.com"},
    "lastName",
)
CHRONAPILOT = Client(
    "chronapilot",
    "/v1/events",
    "Idempotency-Key",
    lambda who: {"Authorization": f"Bearer {who}"},
    {"title": "Lunch"},
    "title",
)
SALESLY = Client(
    "salesly",
    "/api/v1/developers/contacts",
    "Idempotency-Key",
    lambda who: {"x-api-key": who},
    {"name": "ACME Corp", "type": "client"},
    "name",
)
STANNP = Client(
    "stannp",
    "/api/v1/letters/create",
    "X-Idempotency-Key",
    _basic,
    {"pages": "Hello", "recipient[title]": "Mr", "recipient[lastname]": "Smith"},
    "recipient[lastname]",
    form=True,
)
TELNESS = Client(
    "telness",
    "/api/v2/orders",
    "X-Idempotency-Key",
    lambda who: {"X-API-Key": who},
    {"customerId": "cust_123", "items": []},
    "customerId",
)
CLIENTS = (CELPER, CHRONAPILOT, SALESLY, STANNP, TELNESS)


def together(calls: Sequence[Callable[[], T]]) -> list[T]:
    """Make these calls at once, each in a thread of its own, and return the results in order."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], T]) -> T:
        barrier.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
