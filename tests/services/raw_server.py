"""A server on plain sockets: it sends exactly the bytes it is given and records those it receives."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

Answer = bytes | Callable[[socket.socket], None]
"""Bytes to send, or a function that gets the connection; it stays open unless the function closes it."""

SILENCE = 60
"""Timeout of a connection in seconds: longer than any test."""

DRIP, DRIPS = 0.1, 400
"""Seconds between two parts of a slow response, and the number of parts: longer than a client should wait."""


def reply(status: str = "200 OK", body: bytes = b"{}", **headers: str) -> bytes:
    """Return a whole response with its length; `_` in header names stands for `-`."""
    named = {"Content-Length": str(len(body))} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def hang_up(connection: socket.socket) -> None:
    """Close without a response."""
    connection.shutdown(socket.SHUT_RDWR)


def stay(connection: socket.socket) -> None:
    """Send nothing until the other side closes."""
    with suppress(OSError):
        while connection.recv(65536):
            pass


def drip(part: bytes, begin: bytes = b"") -> Callable[[socket.socket], None]:
    """Return an answer that takes long to end: `begin`, then `part` again and again."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(begin)
        for _ in range(DRIPS):
            time.sleep(DRIP)
            connection.sendall(part)
        hang_up(connection)

    return answer


class RawServer:
    """Gives the n-th request the n-th answer and later ones the last, on a loopback port.

    `requests` has the raw bytes of each request, `connections` counts those opened, `ended` those that this
    side closed. With `reads=False` it answers before it reads, like a server that does not speak HTTP.
    """

    def __init__(self, *answers: Answer, reads: bool = True) -> None:
        self.answers, self.reads = answers or (reply(),), reads
        self.requests: list[bytes] = []
        self.connections = self.ended = 0
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._accepting = self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would leave accept() blocked.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(SILENCE)
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(SILENCE)

    def _start(self, run: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        thread.start()
        return thread

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.settimeout(SILENCE)
                self.connections += 1
                self._open.append(connection)
                self._threads.append(self._start(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self._converse(connection)
        with self._lock:
            self.ended += 1

    def _converse(self, connection: socket.socket) -> None:
        while request := self._next(connection):
            with self._lock:
                self.requests.append(request)
                place = min(len(self.requests), len(self.answers)) - 1
            answer = self.answers[place]
            if callable(answer):
                answer(connection)
            else:
                connection.sendall(answer)
            if not self.reads:
                return

    def _next(self, connection: socket.socket) -> bytes:
        """Read one request; b"" at the end of the connection."""
        if not self.reads:
            return b"(not read)"
        got = b""
        while b"\r\n\r\n" not in got:
            part = connection.recv(65536)
            if not part:
                return b""
            got += part
        head, _, body = got.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        wanted = int(lengths[0].partition(b":")[2]) if lengths else 0
        while len(body) < wanted:
            body += connection.recv(65536)
        return head + b"\r\n\r\n" + body
