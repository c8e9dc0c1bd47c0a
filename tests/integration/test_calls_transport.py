"""The HTTP transport against misbehaving servers: one request, one reply or failure, in bounded time."""

import gzip
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from config.apis import Api
from tests.services.attempts import apis_of
from tests.services.calling import Target
from tests.services.raw_server import RawServer, drip, hang_up, reply, stay
from tests.services.sandbox import TELNESS
from tests.services.waiting import free_port, wait_until
from worker.calls.transport import ANSWER_MAX, HttpTransport, NoReply, Outgoing, Reply

DEADLINE = 0.6
"""Seconds, in tests of the deadline; the others have one that they never reach."""
SLACK = 15
"""Seconds that a busy machine may add to a deadline; without a deadline a wait lasts far longer."""
HEAD = b"HTTP/1.1 200 OK\r\n"


@dataclass
class CountingTransport:
    """A transport to one server that notes when each send began."""

    transport: HttpTransport
    url: str
    marks: list[float] = field(default_factory=list)

    def send(self, path: str = "/orders", mark: Callable[[], None] | None = None) -> Reply | NoReply:
        """Send a POST."""
        body = b'{"n":1}'
        headers = (("Host", "127.0.0.1"), ("Content-Length", str(len(body))))

        def noted() -> None:
            self.marks.append(time.monotonic())
            if mark:
                mark()

        return self.transport.send(Outgoing("POST", self.url + path, headers, body), noted)


Connect = Callable[..., CountingTransport]


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Connect]:
    """Make transports to a URL: `connect(url, **settings)`."""
    made: list[HttpTransport] = []

    def make(url: str, **settings: Any) -> CountingTransport:
        given = {"deadline": "60s"} | settings
        target = Target("orders", TELNESS, url, {k: v for k, v in given.items() if k != "max_connections"})
        api: Api = apis_of(tmp_path, target)["orders"]
        if "max_connections" in settings:
            api = Api(**{**vars(api), "max_connections": settings["max_connections"]})
        made.append(HttpTransport.for_api(api))
        return CountingTransport(made[-1], url)

    yield make
    for transport in made:
        transport.close()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Again", "308 Moved"])
def test_a_redirect_is_not_followed(connect: Connect, status: str) -> None:
    """A redirect is returned as the reply."""
    with RawServer() as elsewhere, RawServer(reply(status, Location=elsewhere.url)) as server:
        got = connect(server.url).send()
        assert isinstance(got, Reply)
        assert got.status == int(status[:3])
        assert (len(server.requests), elsewhere.connections) == (1, 0)


@pytest.mark.parametrize(
    "answer",
    [
        hang_up,
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"\x00" * 100,
        b"HTTP/1.1 abc What\r\n\r\n",
        HEAD + b"Content-Length: 10\r\n\r\nshort",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        HEAD + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "ssh", "zeros", "no-status", "short", "chunk", "lengths", "header"],
)
def test_garbage_is_no_answer_and_is_not_sent_again(connect: Connect, answer: Any) -> None:
    """A reply that is not HTTP or is cut off is a failure after the write; nothing is resent."""

    def once(connection: socket.socket) -> None:
        if answer is not hang_up:
            connection.sendall(answer)
        hang_up(connection)

    with RawServer(once) as server:
        line = connect(server.url)
        got = line.send()
        assert isinstance(got, NoReply)
        assert got.written
        assert (len(server.requests), len(line.marks)) == (1, 1)


@pytest.mark.parametrize(
    "status", ["500 Broken", "503 Unavailable", "429 Too Many", "408 Timeout", "425 Early"]
)
def test_no_status_is_sent_again(connect: Connect, status: str) -> None:
    """The transport sends once, whatever the status."""
    with RawServer(reply(status, Retry_After="0")) as server:
        got = connect(server.url).send()
        assert isinstance(got, Reply)
        assert (got.status, len(server.requests)) == (int(status[:3]), 1)


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"X"),
        drip(b"X: y\r\n", HEAD),
        drip(b"x", HEAD + b"Content-Length: 99999\r\n\r\n"),
        drip(b"1\r\nx\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
        drip(b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["status", "headers", "body", "chunks", "continue"],
)
def test_a_dripping_answer_ends_at_the_deadline(connect: Connect, answer: Any) -> None:
    """A server that sends a byte now and then is given up at `deadline`."""
    with RawServer(answer) as server:
        begun = time.monotonic()
        got = connect(server.url, deadline=f"{DEADLINE}s", read_timeout="500ms").send()
        assert isinstance(got, NoReply)
        assert got.written
        assert time.monotonic() - begun < DEADLINE + SLACK


def test_silence_ends_at_the_read_timeout(connect: Connect) -> None:
    """A silent server is given up at `read_timeout`, before the deadline."""
    with RawServer(stay) as server:
        begun = time.monotonic()
        got = connect(server.url, read_timeout="300ms").send()
        assert isinstance(got, NoReply)
        assert got.written
        assert 0.3 <= time.monotonic() - begun < 0.3 + SLACK


def test_a_full_pool_sends_nothing(connect: Connect) -> None:
    """With every connection in use, a call fails at `connect_timeout`, neither begun nor sent."""
    leave = threading.Event()

    def hold(connection: socket.socket) -> None:
        leave.wait(60)
        connection.sendall(reply())

    with RawServer(hold) as server, ThreadPoolExecutor(1) as pool:
        line = connect(server.url, connect_timeout="200ms", max_connections=1)
        first = pool.submit(line.send)
        wait_until(lambda: server.requests, "the first request")
        got = line.send()
        leave.set()
        assert isinstance(got, NoReply)
        assert not got.written
        assert isinstance(first.result(), Reply)
        assert (len(server.requests), len(line.marks)) == (1, 1)


def test_a_refused_connection_sends_nothing(connect: Connect) -> None:
    """A refused connection leaves the send unbegun and unwritten."""
    line = connect(f"http://127.0.0.1:{free_port()}")
    got = line.send()
    assert isinstance(got, NoReply)
    assert (got.written, line.marks) == (False, [])


def test_an_unknown_host_sends_nothing(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown host leaves the send unbegun and unwritten."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    line = connect("https://api.example.invalid")
    got = line.send()
    assert isinstance(got, NoReply)
    assert (got.written, line.marks) == (False, [])


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 This is HTTP\r\n\r\n", stay], ids=["http", "mute"])
def test_a_failed_handshake_sends_nothing(connect: Connect, answer: Any) -> None:
    """A server without TLS, or one that never answers the handshake, gets one connection and no request."""
    with RawServer(answer, reads=False) as server:
        line = connect(server.url.replace("http:", "https:"), connect_timeout="300ms")
        got = line.send()
        assert isinstance(got, NoReply)
        assert (got.written, line.marks, server.connections) == (False, [], 1)


def test_a_connection_that_never_stands_ends_in_time(connect: Connect) -> None:
    """A host that does not complete the TCP handshake is given up at `connect_timeout`."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for item in waiting:
            item.settimeout(0)
            item.connect_ex(address)
        begun = time.monotonic()
        got = connect(f"http://127.0.0.1:{address[1]}", connect_timeout="300ms").send()
        for item in waiting:
            item.close()
        assert isinstance(got, NoReply)
        assert not got.written
        assert time.monotonic() - begun < 0.3 + SLACK


def test_a_mark_that_refuses_leaves_nothing_behind(connect: Connect) -> None:
    """An error of `before_send` is raised; nothing is written, and the connection is free again."""

    def refuse() -> None:
        raise KeyError("no")

    with RawServer() as server:
        line = connect(server.url, max_connections=1)
        for _ in range(3):
            with pytest.raises(KeyError):
                line.send(mark=refuse)
        assert server.requests == []
        assert isinstance(line.send(), Reply)
        assert len(server.requests) == 1


def test_no_byte_leaves_while_it_is_marked(connect: Connect) -> None:
    """The server gets no byte before `before_send` has returned."""
    seen: list[int] = []
    with RawServer() as server:
        line = connect(server.url)

        def slowly() -> None:
            time.sleep(0.3)
            seen.append(len(server.requests))

        assert isinstance(line.send(mark=slowly), Reply)
        assert (seen, len(server.requests)) == ([0], 1)


def test_a_mark_that_outlasts_the_deadline_sends_nothing(connect: Connect) -> None:
    """If `before_send` returns after the deadline, nothing is written."""
    with RawServer() as server:
        got = connect(server.url, deadline=f"{DEADLINE}s").send(mark=lambda: time.sleep(DEADLINE + 0.1))
        assert isinstance(got, NoReply)
        assert got.written, "the ledger has the send, so it counts as written"
        assert server.requests == []


def test_an_idle_connection_that_ended_is_not_used(connect: Connect) -> None:
    """A pooled connection that the server closed is replaced: one request and one send each time."""

    def last(connection: socket.socket) -> None:
        connection.sendall(reply())
        hang_up(connection)

    with RawServer(last) as server:
        line = connect(server.url)
        for number in (1, 2, 3):
            assert isinstance(line.send(), Reply)
            assert (len(server.requests), len(line.marks)) == (number, number)
            wait_until(lambda number=number: server.ended == number, "the connection to end")


def test_a_connection_that_dies_under_a_request_is_not_tried_again(connect: Connect) -> None:
    """A request on a kept-alive connection that the server closes is not retried."""
    with RawServer(reply(), hang_up) as server:
        line = connect(server.url)
        assert isinstance(line.send(), Reply)
        got = line.send()
        assert isinstance(got, NoReply)
        assert got.written
        assert (len(server.requests), server.connections, len(line.marks)) == (2, 1, 2)


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" + reply("201 Created"), 201, b"{}"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + reply("201 Created"), 201, b"{}"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, b""),
        (reply("201 Created", b""), 201, b""),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 200, b"{}"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, b""),
    ],
    ids=["continue", "hints", "204", "304", "empty", "chunked", "no chunks"],
)
def test_answers_of_every_shape_are_read(connect: Connect, answer: bytes, status: int, body: bytes) -> None:
    """Interim responses are skipped, an empty body is valid, and the connection is reused."""
    with RawServer(answer) as server:
        line = connect(server.url)
        for _ in range(2):
            got = line.send()
            assert isinstance(got, Reply)
            assert (got.status, got.body, got.truncated) == (status, body, False)
        assert server.connections == 1


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "GZIP"])
def test_a_compressed_answer_is_read(connect: Connect, encoding: str) -> None:
    """A compressed response is decoded, although compression is not requested."""
    text = b'{"code": "idempotency_key_mismatch"}'
    packed = zlib.compress(text) if encoding == "deflate" else gzip.compress(text)
    with RawServer(reply("409 Conflict", packed, Content_Encoding=encoding)) as server:
        got = connect(server.url).send()
        assert isinstance(got, Reply)
        assert (got.body, got.truncated) == (text, False)
        assert b"accept-encoding: gzip" not in server.requests[0].lower()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 99999999\r\n\r\n" + b"x" * (ANSWER_MAX + 1),
        reply(body=gzip.compress(bytes(50 * ANSWER_MAX)), Content_Encoding="gzip"),
    ],
    ids=["endless", "bomb"],
)
def test_an_answer_over_the_cap_is_cut(connect: Connect, answer: bytes) -> None:
    """An endless or compressed response is cut at the cap and marked truncated."""
    with RawServer(answer) as server:
        got = connect(server.url).send()
        assert isinstance(got, Reply)
        assert (len(got.body), got.truncated) == (ANSWER_MAX, True)


def test_an_encoding_that_cannot_be_read_is_left_as_it_is(connect: Connect) -> None:
    """An undecodable body keeps its bytes and status."""
    for encoding in ("gzip", "br"):
        with RawServer(reply("201 Created", b"\xff\xfe not gzip", Content_Encoding=encoding)) as server:
            got = connect(server.url).send()
            assert isinstance(got, Reply)
            assert (got.status, got.body) == (201, b"\xff\xfe not gzip")


def test_no_proxy_is_used(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment's proxies get neither the request nor the credential."""
    with RawServer() as proxy, RawServer() as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        assert isinstance(connect(server.url).send(), Reply)
        assert (len(server.requests), proxy.connections) == (1, 0)
