"""A small HTTP server on loopback that records its requests and responds as a test says."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.services.waiting import wait_until


class Heard(NamedTuple):
    """One request; header names are as received."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[Heard], tuple[int, bytes] | None]
"""Returns status and body; None closes the connection without a response."""


class Listener:
    """Listens from its creation until `stop`."""

    def __init__(self, answer: Answer = lambda _: (200, b"ok")) -> None:
        self.answer = answer
        self.heard: list[Heard] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                heard = Heard(self.command, self.path, dict(self.headers), body)
                outer.heard.append(heard)
                answered = outer.answer(heard)
                if answered is None:
                    self.close_connection = True
                    return
                self.send_response(answered[0])
                self.send_header("Content-Length", str(len(answered[1])))
                self.end_headers()
                self.wfile.write(answered[1])

            do_GET = do_POST  # noqa: N815 - http.server asks for it

            def log_message(self, *_: Any) -> None:
                """Keep quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def wait(self, count: int, timeout: float = 30) -> list[Heard]:
        """Wait until this many requests were received, and return them."""
        wait_until(
            lambda: len(self.heard) >= count, lambda: f"{count} requests, not {self.heard}", timeout=timeout
        )
        return list(self.heard)

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
