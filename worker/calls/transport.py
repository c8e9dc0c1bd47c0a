"""The wire: one request, one answer or one failure. It never retries and never follows a redirect."""

import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import httpcore
import httpx

# Compressed answers: none is asked for, and those that come all the same are read.


COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})

EITHER = 32 + zlib.MAX_WBITS
"""What tells zlib to see by itself which of the two formats it is."""


def decoded(encoding: str, body: bytes, most: int) -> bytes:
    """Return at most `most` bytes of what a body says; the body itself where it cannot be read."""
    if encoding.strip().lower() not in COMPRESSED:
        return body
    reader = zlib.decompressobj(EITHER)
    try:
        text = reader.decompress(body, most)
    except zlib.error:
        return body
    return text if reader.eof or len(text) == most else body


ANSWER_MAX = 1024 * 1024
"""Bytes of an answer's body that are read and kept."""

KEEPALIVE = 5.0
"""Seconds that an idle connection is kept: less than servers do, or a request meets a closed one."""

HIDDEN = frozenset(
    {
        "set-cookie",
        "connection",
        "keep-alive",
        "transfer-encoding",
        "content-encoding",
        "content-length",
        "trailer",
    }
)
"""Headers of an answer that nobody is shown: cookies, and what belongs to the connection."""


@dataclass(frozen=True)
class Outgoing:
    """A request, complete: its headers hold credential and key."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """A complete answer; `truncated` when its body is longer than what is kept."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    truncated: bool = False


@dataclass(frozen=True)
class NoReply:
    """No complete answer came. Unless `written`, no byte had left; `error` is a phrase without secrets."""

    error: str
    written: bool


Mark = Callable[[], None]
"""Called once a connection stands, right before the first byte; what it raises comes through, unsent."""


class Wire(Protocol):
    """What carries requests to one API."""

    def send(self, request: Outgoing, mark: Mark) -> Reply | NoReply:
        """Send one request and return what came back."""


class Reach(Protocol):
    """How far requests may go; an `Api` says so."""

    @property
    def base_url(self) -> str: ...  # noqa: D102
    @property
    def deadline(self) -> timedelta: ...  # noqa: D102
    @property
    def connect_timeout(self) -> timedelta: ...  # noqa: D102
    @property
    def read_timeout(self) -> timedelta: ...  # noqa: D102
    @property
    def max_connections(self) -> int: ...  # noqa: D102


class HttpWire:
    """HTTP/1.1 on pooled connections, with connect, read, pool and total deadlines."""

    def __init__(self, api: Reach) -> None:
        self._deadline = api.deadline.total_seconds()
        self._timeouts = {
            "connect": api.connect_timeout.total_seconds(),
            "pool": api.connect_timeout.total_seconds(),
            "read": api.read_timeout.total_seconds(),
            "write": api.read_timeout.total_seconds(),
        }
        self._clock = _Clock()
        tls = httpx.create_ssl_context() if api.base_url.startswith("https:") else None
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            max_connections=api.max_connections,
            keepalive_expiry=KEEPALIVE,
            retries=0,
            network_backend=_Timed(self._clock),
        )

    def send(self, request: Outgoing, mark: Mark) -> Reply | NoReply:
        """Send one request and return what came back, in `deadline` at the latest."""
        written = False

        def trace(name: str, _info: dict[str, Any]) -> None:
            nonlocal written
            if name.endswith(".send_request_headers.started"):
                mark()
                written = True

        self._clock.until = time.monotonic() + self._deadline
        extensions = {"timeout": self._timeouts, "trace": trace}
        content = httpcore.Request(
            request.method,
            request.url,
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in request.headers],
            content=request.body,
            extensions=extensions,
        )
        try:
            return _read(self._pool.handle_request(content))
        except httpcore.TimeoutException as error:
            return NoReply(f"no answer in time ({type(error).__name__})", written)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return NoReply(f"the connection failed ({type(error).__name__})", written)

    def close(self) -> None:
        """Close every pooled connection."""
        self._pool.close()


def _read(response: httpcore.Response) -> Reply:
    parts, size = [], 0
    try:
        for part in response.iter_stream():
            parts.append(part)
            size += len(part)
            if size > ANSWER_MAX:
                break
    finally:
        response.close()
    headers = [_text(header) for header in response.headers]
    encoding = next((value for name, value in headers if name.lower() == "content-encoding"), "")
    body = decoded(encoding, b"".join(parts), ANSWER_MAX + 1)
    shown = tuple(header for header in headers if header[0].lower() not in HIDDEN)
    return Reply(response.status, shown, body[:ANSWER_MAX], max(size, len(body)) > ANSWER_MAX)


def _text(header: tuple[bytes, bytes]) -> tuple[str, str]:
    return header[0].decode("latin-1"), header[1].decode("latin-1")


class _Clock(threading.local):
    """The end of the request that this thread sends, on the monotonic clock."""

    until = float("inf")

    def left(self, timeout: float | None, error: type[Exception]) -> float:
        """Return a timeout that ends no later than the request."""
        rest = self.until - time.monotonic()
        if rest <= 0:
            raise error
        return rest if timeout is None else min(timeout, rest)


class _Timed(httpcore.NetworkBackend):
    """Opens streams that all end with the request: a server that drips bytes cannot hold a thread."""

    def __init__(self, clock: _Clock) -> None:
        self._clock, self._inner = clock, httpcore.SyncBackend()

    def connect_tcp(  # type: ignore[override]  # the rest is passed on as it comes
        self, host: str, port: int, timeout: float | None = None, **rest: Any
    ) -> httpcore.NetworkStream:
        timeout = self._clock.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, timeout, **rest), self._clock)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, clock: _Clock) -> None:
        self._inner, self._clock = inner, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._clock.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._clock.left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        timeout = self._clock.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
