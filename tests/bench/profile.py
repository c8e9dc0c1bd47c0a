"""*Profile*: processor time of each stage of one delivery, in one thread, beside the bare view's.

The ledger's part is measured separately, on sixteen deliveries in one batch, as under load: a thread that has
waited for the database finds its caches cold, and then every stage seems slower than it is.
"""

import io
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from flask import Flask

from config.settings import load_settings
from receiver import ingress
from receiver.app import create_app
from receiver.endpoints import Endpoint
from receiver.ledger.intake import Delivery, Recorder, Verdict
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
    "request id, log line, histogram": ((Observer, "_begin"), (Observer, "_answered"), (Observer, "_end")),
    "reading body, headers and URL": ((ingress.Ingress, "_read"),),
    "verifying the signature": ((Endpoint, "verify"),),
    "finding id, type and time": ((Endpoint, "extract"),),
    "answer": ((ingress, "_answer"),),
}
REST, LEDGER = "Flask, routing and the rest", "its share of a commit for sixteen"
TOGETHER = 16


def profile(deployment: Deployment, folder: Path) -> dict[str, float]:
    """Return microseconds of processor time by stage; `bare` is the whole time of the bare view."""
    deliveries = read_deliveries(write_deliveries(folder / "profile.txt", new_ids(COUNT)))
    spent: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as patches, Path(os.devnull).open("w") as nowhere:
        patches.enter_context(patch.dict(os.environ, deployment.env))
        # Logging takes its stream when the application is built.
        patches.enter_context(patch.object(sys, "stderr", nowhere))
        for stage, places in STAGES.items():
            for owner, name in places:
                clocked = _clocked(getattr(owner, name), spent[stage])
                patches.enter_context(patch.object(owner, name, clocked))
        patches.enter_context(patch.object(Recorder, "record", _recorded))
        whole = _run(create_app(load_settings()), deliveries)
    found = {stage: sum(times) / COUNT for stage, times in spent.items()}
    found |= {REST: whole - sum(found.values()), LEDGER: _ledger(deployment)}
    return found | {"bare": _run(bare.application(), deliveries)}


def _recorded(_recorder: Recorder, deliveries: Sequence[Delivery]) -> list[Verdict]:
    return [Verdict(uuid4(), delivery.event_id, first_seen=True) for delivery in deliveries]


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


def _run(app: Flask, deliveries: Iterable[tuple[bytes, Mapping[str, str]]]) -> float:
    """Call an application as a server does; return the median microseconds per call, over chunks."""
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
