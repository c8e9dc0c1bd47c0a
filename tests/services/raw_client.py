"""A client on plain sockets: it sends exactly the bytes it is given and reads one response after another."""

import select
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, Self
from urllib.parse import urlsplit

SILENCE = 60
"""Timeout of a connection in seconds: longer than any test waits for an answer."""


class Reply(NamedTuple):
    """A response; the names of its headers are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class RawClient:
    """One connection to a server at an `http://host:port` URL."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self.socket = socket.create_connection((str(where.hostname), where.port or 80), SILENCE)
        self._answers = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, *parts: bytes) -> Self:
        """Send these bytes, each part by itself."""
        for part in parts:
            self.socket.sendall(part)
        return self

    def end(self) -> Self:
        """Send no more, as a client that was cut off; the response can still be read."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def reply(self, *, head: bool = False) -> Reply:
        """Read the next response, with `head` one without its body; fail if the server closes instead."""
        found = self.reply_or_end(head=head)
        assert found is not None, "the server closed its connection without a response"
        return found

    def reply_or_end(self, *, head: bool = False) -> Reply | None:
        """Read the next response; None if the server closes instead."""
        try:
            line = self._answers.readline()
            if not line:
                return None
            headers: dict[str, str] = {}
            while (field := self._answers.readline().strip()) != b"":
                name, _, value = field.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            length = 0 if head else int(headers.get("content-length", 0))
            return Reply(int(line.split()[1]), headers, self._answers.read(length))
        except ConnectionResetError:
            return None

    def answered(self) -> bool:
        """Return whether there is something to read, now."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def closed(self) -> bool:
        """Wait for the server to close; False if it sends something instead."""
        try:
            return self._answers.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close the connection."""
        with suppress(OSError):
            self._answers.close()
        self.socket.close()


def request(
    target: str = "/webhooks/stripe",
    body: bytes | None = b"",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    *,
    method: str = "POST",
    version: str = "1.1",
) -> bytes:
    """Return a whole request; without a body (None) only its head, with the length that `headers` have."""
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    names = {name.lower() for name, _ in pairs}
    if "host" not in names and version == "1.1":
        pairs = [("Host", "hooks.example.com"), *pairs]
    if body is not None and not names & {"content-length", "transfer-encoding"}:
        pairs = [*pairs, ("Content-Length", str(len(body)))]
    lines = [f"{method} {target} HTTP/{version}", *(f"{name}: {value}" for name, value in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def chunked(*parts: bytes) -> bytes:
    """Return parts in chunked encoding, without the last chunk of all."""
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
