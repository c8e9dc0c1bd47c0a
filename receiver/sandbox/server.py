"""The sandbox's server: werkzeug's threaded one, as it alone lets a view drop its connection."""

import ipaddress
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

log = logging.getLogger("sandbox")

BACKLOG = 128
"""Connections that wait to be accepted: tests open dozens at once."""

IDLE = 60
"""Seconds that a connection may stay silent before its thread is freed."""


class SandboxHandler(WSGIRequestHandler):
    """One request, one line in the log."""

    timeout = IDLE
    server_version = "firstseen-sandbox"
    sys_version = ""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - werkzeug's name
        """Log as every process of ours does."""
        getattr(log, type if type in {"info", "warning", "error"} else "info")(message, *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - as it is called
        """Log the request line and the status, without colours; unprintable characters are escaped."""
        line = self.requestline.rpartition(" ")[0].encode("unicode_escape").decode()
        log.info("%s %s", line, getattr(code, "value", code))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at this host; of names, localhost alone counts."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open the listening socket; port 0 takes a free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]"), port), family=family, backlog=BACKLOG)


def build_server(app: Flask, listener: socket.socket) -> BaseWSGIServer:
    """Build a threaded server on a listening socket; `serve_forever()` runs it."""
    host, port = listener.getsockname()[:2]
    return make_server(host, port, app, threaded=True, request_handler=SandboxHandler, fd=listener.fileno())


def serve(app: Flask, listener: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C; `ready` is called with the address."""
    server = build_server(app, listener)
    # The same end as Ctrl-C: KeyboardInterrupt leaves serve_forever.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    host, port = listener.getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    server.serve_forever()


def hang_up() -> Response:
    """End the connection without a response, as networks do; the one that this returns reaches nobody."""
    connection: socket.socket = request.environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    g.dropped = True
    return Response(status=500)
