"""The gateway: an ASGI application that takes requests whole and hands them on, so no sender holds a thread.

Deliveries are prepared on the event loop itself and recorded by group commit: no thread waits for another
there. Those of sources whose verification may wait for the network are prepared on threads of their own.
Pages, `/v1` and metrics are the Flask application's, on a few other threads. An upload has a deadline and all
together have a budget, so a stalled sender costs a socket and nothing else.
"""

import asyncio
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from flask import Flask, Response
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.proxy_fix import ProxyFix

from config.tracing import flush
from receiver.app import Web
from receiver.endpoints import Endpoint
from receiver.ingress import METHODS, Prepared, base_url, full_url
from receiver.ledger.intake import GroupCommit
from receiver.problems import Answer, Problem, document, http_problem, unavailable
from receiver.signatures import Request
from receiver.telemetry import DELIVERIES, REQUEST_ID, UNKNOWN, RequestFacts
from receiver.verifiers.remote_keys import AT_ONCE, WAITING

log = logging.getLogger(__name__)

# As ASGI's specification has them.
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[str, str]]

# Seconds in which a delivery is answered, if with a 503: providers give up after ten, some after five.
PATIENCE = 4.5

# Seconds between two looks at deadlines.
TICK = 0.25

# Seconds between two writes of the measures, which other processes read.
FLUSH = 1.0

# Threads of a source whose verifier may wait: more than may wait for keys at once, so that a delivery whose
# key is known finds one.
VERIFYING = WAITING + AT_ONCE

# Seconds after a stop in which requests end, and any process does: granian kills it at ten, unflushed.
LEAVE_AFTER = 7.0

# Bytes of all bodies that are in memory at once, unfinished uploads and requests that wait for the ledger; or
# twice the largest body that a source takes. Past it, the oldest unfinished uploads are refused, or the
# newest request where none is unfinished.
BUDGET = 64 * 1024 * 1024

# Bytes of a request's body for a page or `/v1`, which all take far less; the application says so itself.
PAGE_BODY = 1024 * 1024

# Headers that mean nothing when they stand twice (RFC 9110, section 5.3); others are lists, and are joined.
SINGLE = ("host", "content-type", "content-length", "content-encoding", "authorization")

DELIVERY_PATH = "/webhooks/"

_REQUEST_ID = REQUEST_ID.lower().encode()


def budget(largest: int) -> int:
    """Return the bytes that all bodies may take, given the largest of a source: never too few for it."""
    return max(BUDGET, 2 * largest)


class UploadRefused(Exception):
    """A body is given up before it is whole: `reason` is stalled, no_room, stopping or cut_off."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True)
class _Upload:
    until: float
    size: int = 0
    refused: str | None = None


class Uploads:
    """The requests whose bodies are not whole yet, oldest first, and the bytes of all bodies in memory."""

    def __init__(self, deadline: float, budget: int) -> None:
        self._deadline, self._budget = deadline, budget
        self._loop = asyncio.get_running_loop()
        self._unfinished: dict[asyncio.Task[Any], _Upload] = {}
        self._stopping = False
        self.bytes = 0

    @property
    def full(self) -> bool:
        """Whether whole bodies alone are past the budget, since unfinished ones make room for them."""
        return self.bytes > self._budget

    async def whole(self, receive: Receive, length: int | None, limit: int) -> bytes | None:
        """Return a request's body, whose bytes the caller gives back; None where it is longer than `limit`.

        Raises UploadRefused.
        """
        if length is not None and length > limit:
            return None
        task: Any = asyncio.current_task()
        upload = self._unfinished[task] = _Upload(self._loop.time() + self._deadline)
        pieces, more = [], True
        try:
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise UploadRefused("cut_off")
                more = message.get("more_body", False)
                if piece := message.get("body"):
                    pieces.append(piece)
                    upload.size += len(piece)
                    self.bytes += len(piece)
                    if upload.size > limit:
                        self._give_back(upload)
                        return None
                    if not more:
                        # It is whole, and no more one of those that make room.
                        del self._unfinished[task]
                    self._make_room()
                    if upload.refused:
                        raise UploadRefused(upload.refused)
        except BaseException as error:
            self._give_back(upload)
            if isinstance(error, asyncio.CancelledError) and upload.refused and not task.uncancel():
                raise UploadRefused(upload.refused) from None
            raise
        finally:
            self._unfinished.pop(task, None)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _give_back(self, upload: _Upload) -> None:
        self.bytes -= upload.size
        upload.size = 0

    def _make_room(self) -> None:
        while self.full:
            # One that holds nothing would make no room.
            oldest = next((task for task, upload in self._unfinished.items() if upload.size), None)
            if oldest is None:
                return
            self._refuse(oldest, "no_room")

    def _refuse(self, task: asyncio.Task[Any], reason: str) -> None:
        upload = self._unfinished.pop(task)
        upload.refused = reason
        self._give_back(upload)
        # The present task finds out by itself; others wait for their next piece.
        if task is not asyncio.current_task():
            task.cancel()

    def expire(self) -> None:
        """Refuse the uploads past their deadline; called a few times a second."""
        now = self._loop.time()
        while self._unfinished:
            task, oldest = next(iter(self._unfinished.items()))
            if not self._stopping and oldest.until >= now:
                return
            self._refuse(task, "stopping" if self._stopping else "stalled")

    def stop(self) -> None:
        """Refuse every unfinished upload, now and at each `expire`: the server stops."""
        self._stopping = True
        self.expire()


class _Verifying:
    """The threads of a source whose verifier may wait."""

    def __init__(self, source: str) -> None:
        self._threads = ThreadPoolExecutor(VERIFYING, f"verify-{source}")
        self._free = asyncio.Semaphore(VERIFYING)

    async def run(self, prepare: Callable[[], Prepared | Answer]) -> Prepared | Answer:
        """Run `prepare` on a thread, in this context.

        Cancelled, it leaves a thread that has begun to its own: nobody gets its result. One that waits for a
        thread leaves nothing, so that a verifier that never ends does not pile up requests.
        """
        await self._free.acquire()
        running = self._threads.submit(copy_context().run, prepare)
        loop = asyncio.get_running_loop()

        def release(_ended: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(self._free.release)

        running.add_done_callback(release)
        return await asyncio.wrap_future(running)


class Gateway:
    """The ASGI application around the Flask one."""

    def __init__(self, web: Web) -> None:
        self._app, self._ingress, self._recorder = web.app, web.ingress, web.recorder
        self._observer, self._instruments, self._settings = web.observer, web.instruments, web.settings
        self._dispatcher = web.dispatcher
        hops = web.settings.proxy_hops
        # Pages may all wait for the database at once: one connection is never theirs.
        pages = min(web.settings.web_threads, web.settings.db_pool - 1)
        self._pages = ThreadPoolExecutor(pages, "page")
        # For each source whose verifier may wait, so that it holds up no other.
        self._verifying = {name: _Verifying(name) for name in web.ingress.slow_sources}
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
        if delivers:
            await self._delivery(source, scope, headers, receive, send)
        else:
            await self._page(scope, headers, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        self._loop = asyncio.get_running_loop()
        deadline = self._settings.upload_timeout.total_seconds()
        self._uploads = Uploads(deadline, budget(self._ingress.largest_body))
        self._commits = GroupCommit(self._recorder)
        # Granian stops at SIGTERM and at SIGINT alike: this takes the first, and passes on the second.
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        ticking = self._loop.create_task(self._tick())
        # A thread of its own: a folder on a disk that hangs must not hold the loop.
        threading.Thread(target=self._flush_for_ever, daemon=True, name="measures").start()
        self._dispatcher.load()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        ticking.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._loop.run_in_executor(self._health, self._flush), FLUSH)
        await send({"type": "lifespan.shutdown.complete"})

    def _flush_for_ever(self) -> None:
        while True:
            time.sleep(FLUSH)
            try:
                self._instruments.flush()
            except Exception:
                log.exception("The measures could not be written; the next second follows.")

    def _flush(self) -> None:
        """Write what is counted in memory, before the process ends."""
        self._instruments.flush()
        self._recorder.cache.flush()
        self._ingress.flush()

    async def _tick(self) -> None:
        while True:
            for tidy in (self._uploads.expire, self._commits.expire):
                try:
                    tidy()
                except Exception:
                    # Without this loop no deadline would hold.
                    log.exception("A look at deadlines failed.")
            await asyncio.sleep(TICK)

    def _stop(self) -> None:
        self._uploads.stop()
        # A thread: the loop may have ended while a verifier's own thread still holds the process.
        leaving = threading.Timer(LEAVE_AFTER, self._leave)
        leaving.daemon = True
        leaving.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)

    def _leave(self) -> None:
        """End this process: what waits by now is a sender that stopped in mid-header, or a verifier."""
        log.warning("Requests are not over %g s after the stop; they are cut off.", LEAVE_AFTER)
        self._instruments.flush()
        flush(TICK)
        logging.shutdown()
        os._exit(0)

    async def _delivery(
        self, source: str, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        found = _by_name(headers)
        facts = self._observer.begin(
            DELIVERIES, scope["method"], found.get("x-request-id"), found.get("traceparent")
        )
        held, failed = 0, None
        try:
            endpoint = self._ingress.endpoint(source)
            url, address = self._origin(scope, headers)
            try:
                _check_repeated(headers, found)
            except Problem:
                self._ingress.refuse(endpoint, "repeated_header", address, facts)
                raise
            try:
                body = await self._uploads.whole(receive, _length(found), endpoint.source.max_body)
            except UploadRefused as error:
                if error.reason in ("stalled", "no_room"):
                    self._ingress.refuse(endpoint, error.reason, address, facts)
                raise self._given_up(error) from None
            if body is None:
                raise self._ingress.too_large(endpoint, address, facts)
            held = len(body)
            request = Request(scope["method"], url, tuple(headers), body)
            answer = await self._answer(endpoint, request, address, facts)
        except Problem as problem:
            answer = document(problem)
        except HTTPException as error:
            answer = document(http_problem(error.code or 400))
        except Exception as error:
            failed = error
            log.exception("A delivery failed.")
            answer = document(http_problem(500))
        finally:
            self._uploads.bytes -= held
        try:
            self._observer.answered(facts, answer.status)
            await _send(send, answer, facts.request_id)
        finally:
            self._observer.end(facts, failed)

    def _given_up(self, refused: UploadRefused) -> Problem:
        """Return what a request gets whose body was given up; it is not read on."""
        if refused.reason == "stopping":
            return unavailable("This server stops; nothing was recorded. Send it again.", close=True)
        if refused.reason == "cut_off":
            # Its sender may have ended its own side alone, and still read.
            return Problem(400, "cut-off", "The body ended before it was whole.", {"Connection": "close"})
        if refused.reason == "no_room":
            return unavailable(
                "Too many uploads came at once; nothing was recorded. Send it again.", close=True
            )
        seconds = f"{self._settings.upload_timeout.total_seconds():g}"
        problem = f"The request was not whole after {seconds} s."
        return Problem(408, "stalled", problem, {"Connection": "close"})

    async def _answer(
        self, endpoint: Endpoint, request: Request, address: str, facts: RequestFacts
    ) -> Answer:
        if self._uploads.full:
            raise unavailable("Too many deliveries wait here; nothing was recorded. Send it again.")
        until = self._loop.time() + PATIENCE
        if verifying := self._verifying.get(endpoint.source.name):
            prepare = partial(self._ingress.prepare, endpoint, request, address, facts)
            try:
                prepared = await asyncio.wait_for(verifying.run(prepare), PATIENCE)
            except TimeoutError:
                self._ingress.refuse(endpoint, "cannot_verify", address, facts)
                raise unavailable(
                    "It cannot be verified in time; nothing was recorded. Send it again."
                ) from None
        else:
            prepared = self._ingress.prepare(endpoint, request, address, facts)
        if isinstance(prepared, Answer):
            return prepared
        try:
            verdicts = await self._commits.record(prepared.deliveries, until - self._loop.time())
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
            found = _by_name(headers)
            _check_repeated(headers, found)
            body = await self._uploads.whole(receive, _length(found), PAGE_BODY)
            if body is None:
                raise Problem(413, "too-large", f"The body is longer than {PAGE_BODY} bytes.")
            held = len(body)
            if held and self._uploads.full:
                raise unavailable("Too many requests wait here; nothing was done. Send it again.")
            environ = _environ(scope, headers, body)
            if path == "/healthz":
                status, sent, text = _run_wsgi(self._app, environ)
            else:
                threads = self._health if path == "/readyz" else self._pages
                run = self._loop.run_in_executor(threads, _run_wsgi, self._app, environ)
                status, sent, text = await run
        except (Problem, UploadRefused) as error:
            problem = error if isinstance(error, Problem) else self._given_up(error)
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


def _by_name(headers: Headers) -> Mapping[str, str]:
    """Return headers by name; one that stands more than once is joined by commas (RFC 9110, 5.3)."""
    found = dict(headers)
    if len(found) < len(headers):
        for name in found:
            found[name] = ", ".join(value for other, value in headers if other == name)
    return found


def _length(headers: Mapping[str, str]) -> int | None:
    """Return the announced length of a body; None where none is, or one that is no number."""
    text = headers.get("content-length")
    if text is None or not (text.isascii() and text.isdecimal()):
        return None
    return int(text)


def _check_repeated(headers: Headers, found: Mapping[str, str]) -> None:
    """Raise Problem 400 where a header stands twice that has one value: which of them counts is a guess."""
    if len(found) < len(headers):
        names = [name for name, _ in headers]
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
