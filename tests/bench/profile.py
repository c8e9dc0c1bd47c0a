"""*Profile*: processor time of each stage of a delivery, in the gateway's thread, beside the bare view's.

Deliveries go through the gateway as granian hands them over, many in one turn of the loop, to a recorder that
records nothing. The ledger's part is measured separately, on sixteen deliveries in one batch, as under load.
"""

import asyncio
import io
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from flask import Flask

from config.settings import load_settings
from receiver.app import build_web
from receiver.endpoints import Endpoint
from receiver.gateway import Gateway
from receiver.ingress import Ingress
from receiver.ledger.intake import Delivery, GroupCommit, Verdict
from receiver.ledger.intake.recording import record_first_seen
from receiver.ledger.store import Store
from receiver.telemetry import Observer
from tests.bench.accept import new_ids
from tests.bench.apps import bare
from tests.bench.contestants import ENDPOINT
from tests.bench.load import read_deliveries, write_deliveries
from tests.services.databases import driver_url
from tests.services.deployment import Deployment

COUNT, CHUNK = 2_000, 100
STAGES: Mapping[str, tuple[tuple[Any, str], ...]] = {
    "request id, histogram, log": ((Observer, "begin"), (Observer, "answered"), (Observer, "end")),
    "verifying the signature": ((Endpoint, "verify"),),
    "finding id, type and time": ((Endpoint, "extract"),),
    "answer": ((Ingress, "answer"),),
}
REST, LEDGER = "gateway: headers, body, URL and the loop", "its share of a commit for sixteen"
TOGETHER = 16

Deliveries = Iterable[tuple[bytes, Mapping[str, str]]]


def profile(deployment: Deployment, folder: Path) -> dict[str, float]:
    """Return microseconds of processor time by stage; `bare` is the whole time of the bare view."""
    deliveries = read_deliveries(write_deliveries(folder / "profile.txt", new_ids(COUNT)))
    spent: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as patches, Path(os.devnull).open("w") as nowhere:
        patches.enter_context(patch.dict(os.environ, deployment.env))
        # Logging takes its stream when the application is built.
        patches.enter_context(patch.object(sys, "stderr", nowhere))
        patches.enter_context(patch.object(GroupCommit, "record", _recorded))
        gateway = Gateway(build_web(load_settings()))
        whole = asyncio.run(_through(gateway, deliveries))
        for stage, places in STAGES.items():
            for owner, name in places:
                clocked = _clocked(getattr(owner, name), spent[stage])
                patches.enter_context(patch.object(owner, name, clocked))
        asyncio.run(_through(gateway, deliveries))
    found = {stage: sum(times) / COUNT for stage, times in spent.items()}
    found |= {REST: whole - sum(found.values()), LEDGER: _ledger(deployment)}
    return found | {"bare": _run(bare.application(), deliveries)}


async def _recorded(_commits: GroupCommit, deliveries: Sequence[Delivery], _until: float) -> list[Verdict]:
    return [Verdict(uuid4(), delivery.event_id, first_seen=True) for delivery in deliveries]


async def _through(gateway: Gateway, deliveries: Deliveries) -> float:
    """Send deliveries through a gateway; return the median microseconds of one, over chunks."""
    begin, end = asyncio.Event(), asyncio.Event()
    begin.set()

    async def life() -> Mapping[str, str]:
        await (end if not begin.is_set() else begin).wait()
        begin.clear()
        return {"type": "lifespan"}

    async def ignore(_message: Any) -> None:
        pass

    living = asyncio.create_task(gateway({"type": "lifespan"}, life, ignore))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    scopes = [(_scope(body, headers), _receive(body)) for body, headers in deliveries]
    chunks = []
    for start in range(0, len(scopes), CHUNK):
        begun = time.thread_time()
        calls = [gateway(scope, receive, ignore) for scope, receive in scopes[start : start + CHUNK]]
        await asyncio.gather(*calls)
        chunks.append((time.thread_time() - begun) / CHUNK * 1e6)
    end.set()
    await living
    return statistics.median(chunks)


def _receive(body: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


def _scope(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    sent = {"host": "127.0.0.1:8000", **headers, "content-length": str(len(body))}
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": ENDPOINT,
        "raw_path": ENDPOINT.encode(),
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
        "server": ("127.0.0.1", "8000"),
        "client": ("127.0.0.1", "50000"),
    }


def _ledger(deployment: Deployment) -> float:
    """Return microseconds per delivery when sixteen share a commit."""
    store, times = Store(driver_url(deployment.database_url)), []
    for _ in range(TOGETHER):
        ids = new_ids(TOGETHER)
        batch = [
            Delivery("stripe", event_id, "invoice.paid", b"x" * 1024, address="127.0.0.1") for event_id in ids
        ]
        begun = time.thread_time()
        record_first_seen(store, batch)
        times.append((time.thread_time() - begun) / TOGETHER * 1e6)
    store.close()
    return statistics.median(times)


def _clocked(function: Callable[..., Any], times: list[float]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        begun = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            times.append((time.thread_time() - begun) * 1e6)

    return run


def _run(app: Flask, deliveries: Deliveries) -> float:
    """Call a WSGI application as a server does; return the median microseconds of one, over chunks."""
    environs = [_environ(body, headers) for body, headers in deliveries]
    chunks = []
    for start in range(0, len(environs), CHUNK):
        begun = time.thread_time()
        for environ in environs[start : start + CHUNK]:
            b"".join(app(environ, lambda _status, _headers, _error=None: None))
        chunks.append((time.thread_time() - begun) / CHUNK * 1e6)
    return statistics.median(chunks)


def _environ(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": ENDPOINT,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "CONTENT_TYPE": headers["Content-Type"],
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "127.0.0.1:8000",
        "HTTP_STRIPE_SIGNATURE": headers["Stripe-Signature"],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
