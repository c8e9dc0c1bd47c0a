"""The gateway: an ASGI application that takes requests whole and hands them on, so no sender holds a thread.

Deliveries are prepared on the event loop itself and recorded by group commit: no thread waits for another
there. Those of sources whose verification may wait for the network are prepared on threads of their own.
Pages, `/v1` and metrics are the Flask application's, on a few other threads. An upload has a deadline and all
together have a budget, so a stalled sender costs a socket and nothing else.
"""

import asyncio
import io
import logging
import signal
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Flask, Response
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from receiver.app import Web
from receiver.endpoints import Endpoint
from receiver.ingress import METHODS, base_url, full_url
from receiver.ledger.intake import GroupCommit
from receiver.problems import Answer, Problem, document, http_problem, unavailable
from receiver.signatures import Request
from receiver.telemetry import DELIVERIES, REQUEST_ID, UNKNOWN, RequestFacts

log = logging.getLogger(__name__)

# As ASGI's specification has them.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[str, str]]

# Seconds in which a delivery is answered, if with a 503: providers give up after ten, some after five.
PATIENCE = 4.5

# Seconds between two looks at deadlines; also the longest that measures wait before other processes see them.
TICK = 0.25

# Bytes of all bodies that are in memory at once, unfinished uploads and requests that wait for the ledger.
# Past it, the oldest unfinished upload is refused, or the newest request where none is unfinished.
BUDGET = 64 * 1024 * 1024

# Bytes of a request's body for a page or `/v1`, which all take far less; the application says so itself.
PAGE_BODY = 1024 * 1024

# Headers that mean nothing when they stand twice (RFC 9110, section 5.3); others are lists, and are joined.
SINGLE = ("host", "content-type", "content-length", "content-encoding", "authorization", "x-request-id")

DELIVERY_PATH = "/webhooks/"

_REQUEST_ID = REQUEST_ID.lower().encode()


class BrokenOff(Exception):
    """The sender went away before its body was whole: there is nobody to answer."""


class Uploads:
    """The requests whose bodies are not whole yet, oldest first, and the bytes of all bodies in memory."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._loop = deadline, asyncio.get_running_loop()
        self._unfinished: OrderedDict[asyncio.Task[None], float] = OrderedDict()
        self.bytes = 0
        self.stopping = False

    async def whole(self, receive: Receive, length: int | None, limit: int) -> bytes | None:
        """Return a request's body, whose bytes the caller gives back; None where it is longer than `limit`.

        Raises TimeoutError for one that stalls, BrokenOff when its sender is gone.
        """
        if length is not None and length > limit:
            return None
        task: Any = asyncio.current_task()
        self._unfinished[task] = self._loop.time() + self._deadline
        pieces, size, more = [], 0, True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise BrokenOff
                more = message.get("more_body", False)
                if piece := message.get("body"):
                    pieces.append(piece)
                    size += len(piece)
                    self.bytes += len(piece)
                    if size > limit:
                        self.bytes -= size
                        return None
                    if self.bytes > BUDGET and more:
                        self._refuse_oldest()
        except BaseException as error:
            self.bytes -= size
            if isinstance(error, asyncio.CancelledError) and task not in self._unfinished:
                task.uncancel()
                raise TimeoutError from None
            raise
        finally:
            self._unfinished.pop(task, None)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _refuse_oldest(self) -> None:
        task, _ = self._unfinished.popitem(last=False)
        task.cancel()

    def expire(self) -> None:
        """Refuse the uploads past their deadline."""
        now = self._loop.time()
        while self._unfinished and next(iter(self._unfinished.values())) < now:
            self._refuse_oldest()

    def stop(self) -> None:
        """Refuse every unfinished upload: the server stops."""
        self.stopping = True
        while self._unfinished:
            self._refuse_oldest()


class Gateway:
    """The ASGI application around the Flask one."""

    def __init__(self, web: Web) -> None:
        self._app, self._ingress, self._recorder = web.app, web.ingress, web.recorder
        self._observer, self._instruments, self._settings = web.observer, web.instruments, web.settings
        self._dispatcher = web.dispatcher
        threads, hops = web.settings.web_threads, web.settings.proxy_hops
        self._pages = ThreadPoolExecutor(threads, "page")
        self._verifying = ThreadPoolExecutor(threads, "verify")
        # One is enough: of checks that meet, the others share what it found.
        self._health = ThreadPoolExecutor(1, "health")
        self._forwarded = _forwarding(hops) if hops else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or begin and end with the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        source = scope["path"].removeprefix(DELIVERY_PATH)
        delivers = source != scope["path"] and "/" not in source and scope["method"] in METHODS
        try:
            if delivers:
                await self._delivery(source, scope, headers, receive, send)
            else:
                await self._page(scope, headers, receive, send)
        except BrokenOff:
            # Nobody waits for an answer; what was sent has been forgotten.
            pass

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._loop = asyncio.get_running_loop()
        self._uploads = Uploads(self._settings.upload_timeout.total_seconds())
        self._commits = GroupCommit(self._recorder, PATIENCE)
        # Granian stops at SIGTERM and at SIGINT alike: this takes the first, and passes on the second.
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        ticking = self._loop.create_task(self._tick())
        self._dispatcher.load()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        ticking.cancel()
        self._instruments.flush()
        await send({"type": "lifespan.shutdown.complete"})

    async def _tick(self) -> None:
        while True:
            self._uploads.expire()
            self._commits.expire()
            self._instruments.flush()
            await asyncio.sleep(TICK)

    def _stop(self) -> None:
        self._uploads.stop()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)

    async def _delivery(
        self, source: str, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        found = dict(headers)
        facts = self._observer.begin(
            DELIVERIES, scope["method"], found.get("x-request-id"), found.get("traceparent")
        )
        held = 0
        try:
            _check_repeated(headers)
            endpoint = self._ingress.endpoint(source)
            url, address = self._origin(scope, headers)
            try:
                body = await self._uploads.whole(receive, _length(found), endpoint.source.max_body)
            except TimeoutError:
                raise self._stalled(endpoint, address, facts) from None
            if body is None:
                raise self._ingress.too_large(endpoint, address, facts)
            held = len(body)
            request = Request(scope["method"], url, tuple(headers), body)
            answer = await self._answer(endpoint, request, address, facts)
        except Problem as problem:
            answer = document(problem)
        except HTTPException as error:
            answer = document(http_problem(error.code or 400))
        except BrokenOff:
            self._observer.end(facts)
            raise
        except Exception:
            log.exception("A delivery failed.")
            answer = document(http_problem(500))
        finally:
            self._uploads.bytes -= held
        self._observer.answered(facts, answer.status)
        await _send(send, answer, facts.request_id)
        self._observer.end(facts)

    def _stalled(self, endpoint: Endpoint, address: str, facts: RequestFacts) -> Problem:
        if self._uploads.stopping:
            return unavailable("This server stops; nothing was recorded. Send it again.", close=True)
        self._ingress.refuse(endpoint, "stalled", address, facts)
        seconds = f"{self._settings.upload_timeout.total_seconds():g}"
        return Problem(
            408, "stalled", f"The request was not whole after {seconds} s.", {"Connection": "close"}
        )

    async def _answer(
        self, endpoint: Endpoint, request: Request, address: str, facts: RequestFacts
    ) -> Answer:
        if endpoint.may_wait:
            prepare = partial(self._ingress.prepare, endpoint, request, address, facts)
            prepared = await self._loop.run_in_executor(self._verifying, copy_context().run, prepare)
        else:
            prepared = self._ingress.prepare(endpoint, request, address, facts)
        if isinstance(prepared, Answer):
            return prepared
        if self._uploads.bytes > BUDGET:
            raise unavailable("Too many deliveries wait for the ledger; nothing was recorded. Send it again.")
        try:
            verdicts = await self._commits.record(prepared.deliveries)
        except Exception as error:
            raise self._ingress.failure(prepared, error) from error
        return self._ingress.answer(prepared, verdicts, facts)

    def _origin(self, scope: Scope, headers: Headers) -> tuple[str, str]:
        """Return a request's URL, as its sender wrote it, and its sender's address."""
        address, scheme = (scope["client"] or ("", 0))[0], scope["scheme"]
        host = next((value for name, value in headers if name == "host"), None)
        if self._forwarded:
            scheme, host, address = self._forwarded(headers, scheme, host, address)
        server = scope["server"]
        base = self._ingress.public_url or base_url(scheme, host, (server[0], int(server[1])))
        return full_url(base, scope["path"], scope["query_string"].decode("latin-1")), address

    async def _page(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        """Answer with the Flask application, which observes its requests itself."""
        path, held = scope["path"], 0
        try:
            _check_repeated(headers)
            body = await self._uploads.whole(receive, _length(dict(headers)), PAGE_BODY)
            if body is None:
                raise Problem(413, "too-large", f"The body is longer than {PAGE_BODY} bytes.")
            held = len(body)
            environ = _environ(scope, headers, body)
            if path == "/healthz":
                status, sent, text = _run_wsgi(self._app, environ)
            else:
                threads = self._health if path == "/readyz" else self._pages
                run = self._loop.run_in_executor(threads, _run_wsgi, self._app, environ)
                status, sent, text = await run
        except (Problem, TimeoutError) as error:
            problem = error if isinstance(error, Problem) else http_problem(408, {"Connection": "close"})
            facts = self._observer.begin(UNKNOWN, scope["method"], None, None)
            self._observer.answered(facts, problem.status)
            await _send(send, document(problem), facts.request_id)
            self._observer.end(facts)
            return
        finally:
            self._uploads.bytes -= held
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": text})


async def _send(send: Send, answer: Answer, request_id: str) -> None:
    headers = [(b"content-type", answer.content_type.encode()), (_REQUEST_ID, request_id.encode())]
    for name, value in answer.headers.items():
        headers.append((name.lower().encode(), value.encode("latin-1")))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _length(headers: Mapping[str, str]) -> int | None:
    """Return the announced length of a body; None where it comes in pieces until it ends."""
    text = headers.get("content-length")
    if text is not None:
        return int(text)
    return None if "transfer-encoding" in headers else 0


def _check_repeated(headers: Headers) -> None:
    """Raise Problem 400 where a header stands twice that has one value: which of them counts is a guess."""
    names = [name for name, _ in headers]
    if len(names) != len(set(names)):
        for name in SINGLE:
            if names.count(name) > 1:
                raise Problem(400, "repeated-header", f"The header {name} stands more than once.")


def _environ(scope: Scope, headers: Headers, body: bytes) -> dict[str, Any]:
    """Return the WSGI environ of a whole request (PEP 3333)."""
    host, port = scope["server"]
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(scope["raw_path"]).decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": host,
        "SERVER_PORT": str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "REMOTE_ADDR": (scope["client"] or ("", 0))[0],
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope["scheme"],
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for name, value in headers:
        # WSGI would take an underscore for a hyphen: such a header does not pass for the other.
        if "_" in name or name in ("content-length", "transfer-encoding"):
            continue
        key = "CONTENT_TYPE" if name == "content-type" else f"HTTP_{name.upper().replace('-', '_')}"
        joint = "; " if name == "cookie" else ", "
        environ[key] = f"{environ[key]}{joint}{value}" if key in environ else value
    return environ


def _run_wsgi(app: Flask, environ: dict[str, Any]) -> tuple[int, Headers, bytes]:
    """Run the Flask application; return status, headers and the whole body."""
    response = Response.from_app(app, environ, buffered=True)
    with closing(response):
        return response.status_code, list(response.headers), response.get_data()


def _forwarding(hops: int) -> Callable[[Headers, str, str | None, str], tuple[str, str | None, str]]:
    """Return what reads scheme, host and address of a request that came through so many proxies."""

    def forwarded(
        headers: Headers, scheme: str, host: str | None, address: str
    ) -> tuple[str, str | None, str]:
        environ = {"REMOTE_ADDR": address, "wsgi.url_scheme": scheme, "HTTP_HOST": host or ""}
        for kind in ("for", "proto", "host"):
            values = [value for name, value in headers if name == f"x-forwarded-{kind}"]
            if values:
                environ[f"HTTP_X_FORWARDED_{kind.upper()}"] = ", ".join(values)
        # The same middleware stands before the Flask application, so both see one client.
        ProxyFix(lambda _seen, _start: (), x_for=hops, x_proto=hops, x_host=hops)(environ, _ignore)
        return environ["wsgi.url_scheme"], environ["HTTP_HOST"] or None, environ["REMOTE_ADDR"]

    return forwarded


def _ignore(_status: str, _headers: Any, _error: Any = None) -> Callable[[bytes], object]:
    return lambda _part: None
