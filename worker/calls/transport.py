"""HTTP/1.1 on pooled connections: one request, one reply or one failure.

`HttpTransport.send` never retries and never follows a redirect: the journal decides about both. It ends in
bounded time whatever the server does, and calls `before_send` right before the first byte leaves.
"""

import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol, Self

import httpcore
import httpx

from config.apis import Api

# Bytes of a reply's body that are read and kept.
ANSWER_MAX = 1024 * 1024

# Seconds that an idle connection is kept: less than servers do, or a request meets a closed one.
KEEPALIVE = 5.0

# Headers of a reply that are dropped: cookies, and what belongs to the connection.
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

# Encodings that are read, though none is asked for: some servers compress all the same.
COMPRESSED = frozenset({"gzip", "x-gzip", "deflate"})


@dataclass(frozen=True)
class Outgoing:
    """A complete request: its headers hold credential and key."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True)
class Reply:
    """A complete response; `truncated` when its body is longer than ANSWER_MAX."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    truncated: bool = False


@dataclass(frozen=True)
class NoReply:
    """No complete response came. Unless `written`, no byte had left; `error` is a phrase without secrets."""

    error: str
    written: bool


# Called once a connection stands, right before the first byte; what it raises comes through, unsent.
BeforeSend = Callable[[], None]


class Transport(Protocol):
    """What carries requests to one API; tests have their own."""

    def send(self, request: Outgoing, before_send: BeforeSend) -> Reply | NoReply:
        """Send one request and return what came back."""


class HttpTransport:
    """Carries requests to one host, with connect, read, pool and total deadlines."""

    def __init__(
        self,
        url: str,
        *,
        deadline: timedelta,
        connect_timeout: timedelta,
        read_timeout: timedelta,
        max_connections: int,
    ) -> None:
        self._deadline = deadline.total_seconds()
        self._timeouts = {
            "connect": connect_timeout.total_seconds(),
            "pool": connect_timeout.total_seconds(),
            "read": read_timeout.total_seconds(),
            "write": read_timeout.total_seconds(),
        }
        self._clock = _Deadline()
        self._pool = httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context() if url.startswith("https:") else None,
            max_connections=max_connections,
            keepalive_expiry=KEEPALIVE,
            retries=0,
            network_backend=_BoundedBackend(self._clock),
        )

    @classmethod
    def for_api(cls, api: Api) -> Self:
        """Make the transport of an API, with the limits that apis.toml gives it."""
        return cls(
            api.base_url,
            deadline=api.deadline,
            connect_timeout=api.connect_timeout,
            read_timeout=api.read_timeout,
            max_connections=api.max_connections,
        )

    def send(self, request: Outgoing, before_send: BeforeSend) -> Reply | NoReply:
        """Send one request and return what came back, in `deadline` at the latest."""
        written = False

        def trace(name: str, _info: dict[str, Any]) -> None:
            nonlocal written
            # httpcore announces the first byte by this event, and what its callback raises comes through.
            if name.endswith(".send_request_headers.started"):
                before_send()
                written = True

        self._clock.until = time.monotonic() + self._deadline
        content = httpcore.Request(
            request.method,
            request.url,
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in request.headers],
            content=request.body,
            extensions={"timeout": self._timeouts, "trace": trace},
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
        # With a body that was not read to its end this closes the connection: the rest must meet no reply.
        response.close()
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers]
    encoding = next((value for name, value in headers if name.lower() == "content-encoding"), "")
    body = b"".join(parts)
    if encoding.strip().lower() in COMPRESSED:
        # 32 lets zlib tell gzip and deflate apart by itself.
        reader = zlib.decompressobj(32 + zlib.MAX_WBITS)
        # A body that cannot be read stays as it came.
        with suppress(zlib.error):
            # One byte more than is kept, which shows that there was more.
            text = reader.decompress(body, ANSWER_MAX + 1)
            body = text if reader.eof or len(text) > ANSWER_MAX else body
    kept = tuple(header for header in headers if header[0].lower() not in HIDDEN)
    return Reply(response.status, kept, body[:ANSWER_MAX], max(size, len(body)) > ANSWER_MAX)


class _Deadline(threading.local):
    """When the request that this thread sends must end, on the monotonic clock."""

    until = float("inf")

    def cut(self, timeout: float | None, error: type[Exception]) -> float:
        """Return a timeout that ends no later than the request; raise `error` when that is over."""
        rest = self.until - time.monotonic()
        if rest <= 0:
            raise error
        return rest if timeout is None else min(timeout, rest)


class _BoundedBackend(httpcore.NetworkBackend):
    """Opens streams that all end with the request: a server that drips bytes cannot hold a thread."""

    def __init__(self, clock: _Deadline) -> None:
        self._clock, self._inner = clock, httpcore.SyncBackend()

    def connect_tcp(  # type: ignore[override]  # the rest is passed on as it comes
        self, host: str, port: int, timeout: float | None = None, **rest: Any
    ) -> httpcore.NetworkStream:
        timeout = self._clock.cut(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._inner.connect_tcp(host, port, timeout, **rest), self._clock)


class _BoundedStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, clock: _Deadline) -> None:
        self._inner, self._clock = inner, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._clock.cut(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._clock.cut(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        timeout = self._clock.cut(timeout, httpcore.ConnectTimeout)
        return _BoundedStream(self._inner.start_tls(ssl_context, server_hostname, timeout), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
