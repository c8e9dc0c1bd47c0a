"""The gateway: granian's event loop takes requests whole and hands them on, so no sender can hold a thread.

Deliveries are prepared on the loop itself and recorded by group commit: no thread waits for another there.
Those of sources whose verification may wait for the network are prepared on threads of their own. Pages,
`/v1` and metrics are the Flask application's, on a few other threads. An upload has a deadline and all
together have a budget, so a stalled sender costs a socket and nothing else.
"""

import asyncio
import io
import logging
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

from flask import Flask
from granian.rsgi import HTTPProtocol, ProtocolClosed, Scope
from werkzeug.middleware.proxy_fix import ProxyFix

from receiver.app import Web
from receiver.endpoints import Endpoint
from receiver.ingress import METHODS, base_url, full_url
from receiver.ledger.intake import GroupCommit
from receiver.problems import Answer, Problem, document, http_problem, unavailable
from receiver.signatures import Request
from receiver.telemetry import DELIVERIES, REQUEST_ID, RequestFacts

log = logging.getLogger(__name__)

# Seconds in which a delivery is answered, if with a 503: providers give up after ten, some after five.
PATIENCE = 4.5

# Seconds between two looks at deadlines; also the longest that measures wait before other processes see them.
TICK = 0.25

# Bytes of all bodies that are in memory at once, unfinished uploads and requests that wait for the ledger.
# Past it, the oldest unfinished upload is refused, or the newest request where none is unfinished.
BUDGET = 64 * 1024 * 1024

# Bytes of a body that is awaited in one piece; a longer one, or one of unknown length, is counted as it comes.
ONE_PIECE = 64 * 1024

# Bytes of a request's body for a page or `/v1`, which all take far less; the application says so itself.
PAGE_BODY = 1024 * 1024

# Two empty pieces end a body whose sender broke off, one ends a whole one (or trailers, which nobody sends).
BROKEN_OFF = 2

# Headers that mean nothing when they stand twice (RFC 9110, section 5.3); others are lists, and are joined.
SINGLE = frozenset(
    {"host", "content-type", "content-length", "content-encoding", "authorization", "x-request-id"}
)

DELIVERY_PATH = "/webhooks/"


class Uploads:
    """The requests whose bodies are not whole yet, oldest first, and the bytes of all bodies in memory."""

    def __init__(self, deadline: float) -> None:
        self._deadline, self._loop = deadline, asyncio.get_running_loop()
        self._unfinished: OrderedDict[asyncio.Task[None], float] = OrderedDict()
        self.bytes = 0

    async def whole(self, protocol: HTTPProtocol, length: int | None, limit: int) -> bytes | None:
        """Return a request's body, None where it is longer than `limit`; raise Problem for one that stalls."""
        if length is not None and length > limit:
            return None
        task: Any = asyncio.current_task()
        self._unfinished[task] = self._loop.time() + self._deadline
        try:
            if length is not None and length <= ONE_PIECE:
                body = await protocol()
                self.bytes += len(body)
                return body
            return await self._pieces(protocol, length, limit)
        except asyncio.CancelledError:
            task.uncancel()
            raise http_problem(408, {"Connection": "close"}) from None
        except ProtocolClosed:
            raise http_problem(400, {"Connection": "close"}) from None
        finally:
            self._unfinished.pop(task, None)

    async def _pieces(self, protocol: HTTPProtocol, length: int | None, limit: int) -> bytes | None:
        pieces, size, empty = [], 0, 0
        try:
            async for piece in protocol:
                size += len(piece)
                self.bytes += len(piece)
                empty += not piece
                if size > limit:
                    break
                pieces.append(piece)
                if self.bytes > BUDGET:
                    self._refuse_oldest()
        except BaseException:
            self.bytes -= size
            raise
        if size > limit or empty >= BROKEN_OFF or (length is not None and size < length):
            self.bytes -= size
            if size > limit:
                return None
            raise http_problem(400, {"Connection": "close"})
        return b"".join(pieces)

    def _refuse_oldest(self) -> None:
        task, _ = self._unfinished.popitem(last=False)
        task.cancel()

    def expire(self) -> None:
        """Refuse the uploads past their deadline."""
        now = self._loop.time()
        while self._unfinished and next(iter(self._unfinished.values())) < now:
            self._refuse_oldest()

    def refuse_all(self) -> None:
        """Refuse every unfinished upload: the server stops."""
        while self._unfinished:
            self._refuse_oldest()


class Gateway:
    """An RSGI application around the Flask one; granian calls its `__rsgi__` methods."""

    def __init__(self, web: Web) -> None:
        self._app, self._ingress, self._recorder = web.app, web.ingress, web.recorder
        self._observer, self._instruments, self._settings = web.observer, web.instruments, web.settings
        threads, hops = web.settings.web_threads, web.settings.proxy_hops
        self._pages = ThreadPoolExecutor(threads, "page")
        self._verifying = ThreadPoolExecutor(threads, "verify")
        # One is enough: of checks that meet, the others share what it found.
        self._health = ThreadPoolExecutor(1, "health")
        self._forwarded = _forwarding(hops) if hops else None

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to serve on this loop."""
        loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._uploads = Uploads(self._settings.upload_timeout.total_seconds())
        self._commits = GroupCommit(self._recorder, PATIENCE)
        # Granian stops at SIGTERM and at SIGINT alike: this takes the first, and passes on the second.
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        self._tick()

    def _tick(self) -> None:
        self._uploads.expire()
        self._commits.expire()
        self._instruments.flush()
        self._ticking = self._loop.call_later(TICK, self._tick)

    def _stop(self) -> None:
        self._uploads.refuse_all()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write the last measures."""
        self._ticking.cancel()
        self._instruments.flush()

    async def __rsgi__(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer one request."""
        path = scope.path
        if path.startswith(DELIVERY_PATH) and "/" not in path[len(DELIVERY_PATH) :]:
            if scope.method in METHODS:
                await self._deliver(scope, protocol, path[len(DELIVERY_PATH) :])
                return
        await self._page(scope, protocol)

    async def _deliver(self, scope: Scope, protocol: HTTPProtocol, source: str) -> None:
        headers = scope.headers
        facts = self._observer.begin(
            DELIVERIES, scope.method, headers.get("x-request-id"), headers.get("traceparent")
        )
        size = 0
        try:
            try:
                endpoint = self._ingress.endpoint(source)
                base, address = self._origin(scope)
                limit = endpoint.source.max_body
                pairs = tuple(headers.items())
                _check_repeated(pairs)
                body = await self._uploads.whole(protocol, _length(headers), limit)
                if body is None:
                    raise self._ingress.too_large(endpoint, address, facts)
                size = len(body)
                request = Request(scope.method, full_url(base, scope.path, scope.query_string), pairs, body)
                answer = await self._answer(endpoint, request, address, facts)
            except Problem as problem:
                answer = document(problem)
        except Exception:
            log.exception("A delivery failed.")
            answer = document(http_problem(500))
        finally:
            self._uploads.bytes -= size
        self._observer.answered(facts, answer.status)
        _send(protocol, answer, facts.request_id)
        self._observer.end(facts)

    async def _answer(
        self, endpoint: Endpoint, request: Request, address: str, facts: RequestFacts
    ) -> Answer:
        if endpoint.may_wait:
            context = copy_context()
            prepared = await self._loop.run_in_executor(
                self._verifying, context.run, self._ingress.prepare, endpoint, request, address, facts
            )
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

    def _origin(self, scope: Scope) -> tuple[str, str]:
        """Return what stands before the path of a request's URL, and its client's address."""
        host, port = _split(scope.server)
        address = _split(scope.client)[0]
        name = scope.headers.get("host") or scope.authority
        scheme = scope.scheme
        if self._forwarded:
            scheme, name, address = self._forwarded(scope, scheme, name, address)
        return self._ingress.public_url or base_url(scheme, name, (host, port)), address

    async def _page(self, scope: Scope, protocol: HTTPProtocol) -> None:
        """Answer with the Flask application, which observes its requests itself."""
        try:
            pairs = tuple(scope.headers.items())
            _check_repeated(pairs)
            body = await self._uploads.whole(protocol, _length(scope.headers), PAGE_BODY)
            if body is None:
                raise Problem(413, "too-large", f"The body is longer than {PAGE_BODY} bytes.")
        except Problem as problem:
            _send(protocol, document(problem), "-")
            return
        try:
            environ = _environ(scope, pairs, body)
            if scope.path == "/healthz":
                answered = _run_wsgi(self._app, environ)
            else:
                threads = self._health if scope.path == "/readyz" else self._pages
                answered = await self._loop.run_in_executor(threads, _run_wsgi, self._app, environ)
        finally:
            self._uploads.bytes -= len(body)
        status, headers, text = answered
        protocol.response_bytes(status, headers, text)


def _send(protocol: HTTPProtocol, answer: Answer, request_id: str) -> None:
    headers = [("content-type", answer.content_type), (REQUEST_ID.lower(), request_id)]
    if answer.headers:
        headers += [(name.lower(), value) for name, value in answer.headers.items()]
    protocol.response_bytes(answer.status, headers, answer.body)


def _length(headers: Any) -> int | None:
    """Return the announced length of a body; None where it comes in pieces until it ends."""
    text = headers.get("content-length")
    if text is not None:
        return int(text)
    return None if "transfer-encoding" in headers else 0


def _check_repeated(pairs: Iterable[tuple[str, str]]) -> None:
    """Raise Problem 400 where a header stands twice that has one value: which of them counts is a guess."""
    names = [name for name, _ in pairs]
    if len(names) != len(set(names)):
        for name in SINGLE:
            if names.count(name) > 1:
                raise Problem(400, "repeated-header", f"The header {name} stands more than once.")


def _split(address: str) -> tuple[str, int | None]:
    """Return host and port of a socket's address as granian writes it."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else None


def _environ(scope: Scope, pairs: Iterable[tuple[str, str]], body: bytes) -> dict[str, Any]:
    """Return the WSGI environ of a whole request."""
    host, port = _split(scope.server)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": scope.path.encode().decode("latin-1"),
        "QUERY_STRING": scope.query_string,
        "SERVER_NAME": host,
        "SERVER_PORT": str(port or ""),
        "SERVER_PROTOCOL": f"HTTP/{scope.http_version}",
        "REMOTE_ADDR": _split(scope.client)[0],
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "CONTENT_LENGTH": str(len(body)),
    }
    for name, value in pairs:
        # WSGI would take an underscore for a hyphen: such a header does not pass for the other.
        if "_" in name or name in ("content-length", "transfer-encoding"):
            continue
        key = "CONTENT_TYPE" if name == "content-type" else f"HTTP_{name.upper().replace('-', '_')}"
        joint = "; " if name == "cookie" else ", "
        environ[key] = f"{environ[key]}{joint}{value}" if key in environ else value
    if scope.authority and "HTTP_HOST" not in environ:
        environ["HTTP_HOST"] = scope.authority
    return environ


def _run_wsgi(app: Flask, environ: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
    """Run a WSGI application; return status, headers and the whole body."""
    started: list[Any] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], _error: Any = None
    ) -> Callable[[bytes], None]:
        started[:] = [int(status.split(" ", 1)[0]), headers]
        return lambda _part: None

    parts = app(environ, start_response)
    try:
        text = b"".join(parts)
    finally:
        if close := getattr(parts, "close", None):
            close()
    status, headers = started
    return status, headers, text


def _forwarding(hops: int) -> Callable[[Scope, str, str | None, str], tuple[str, str | None, str]]:
    """Return what reads scheme, host and address of a request that came through so many proxies."""
    seen: dict[str, Any] = {}
    fix = ProxyFix(lambda environ, _start: seen.update(environ) or (), x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[arg-type,func-returns-value]

    def forwarded(scope: Scope, scheme: str, host: str | None, address: str) -> tuple[str, str | None, str]:
        environ = {"REMOTE_ADDR": address, "wsgi.url_scheme": scheme, "HTTP_HOST": host or ""}
        for name in ("For", "Proto", "Host"):
            values = scope.headers.get_all(f"x-forwarded-{name.lower()}")
            if values:
                environ[f"HTTP_X_FORWARDED_{name.upper()}"] = ", ".join(values)
        seen.clear()
        fix(environ, lambda *_: lambda _part: None)  # type: ignore[arg-type]
        return seen["wsgi.url_scheme"], seen["HTTP_HOST"] or None, seen["REMOTE_ADDR"]

    return forwarded
