"""Calls on a real ledger against socket servers: rows, bytes, and resends."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from receiver.ledger.calls.sends import SLACK
from receiver.ledger.intake import Delivery, record
from receiver.ledger.schema import migrate
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.services.attempts import LEASE, Attempts, apis_of
from tests.services.calling import Target
from tests.services.claiming import claim
from tests.services.raw_server import RawServer, hang_up, reply, stay
from tests.services.sandbox import CHRONAPILOT, STANNP, TELNESS, Client
from tests.services.waiting import free_port, wait_until
from worker.calls.client import Calls
from worker.calls.transport import ANSWER_MAX

CREATED = reply("201 Created", b'{"id": "made"}')
Prepare = Callable[..., Attempts]
PER_SEND = (b"user-agent:", b"traceparent:", b"tracestate:")
"""Headers that may differ between two sends of one call."""


@pytest.fixture
def prepare(store: Store, tmp_path: Path) -> Iterator[Prepare]:
    """Make an event and its attempts against one API: `prepare(url, client, who, **settings)`."""
    made: list[Attempts] = []

    def make(url: str, client: Client = TELNESS, who: str = "one", **settings: str) -> Attempts:
        target = Target("api", client, url, {"deadline": "60s", "quiet": "200ms"} | settings)
        made.append(Attempts(store, apis_of(tmp_path, target, who=who)))
        return made[-1]

    yield make
    for attempts in made:
        attempts.close()


def post(_event: Any, calls: Any) -> None:
    """Handle an event by one call."""
    calls.api.post("/orders", json={"name": "Łódź", "n": 1})


def significant(request: bytes) -> list[bytes]:
    """Return the parts that must be equal in every send: the lines of the head, and the body."""
    head, _, body = request.partition(b"\r\n\r\n")
    return [line for line in head.split(b"\r\n") if not line.lower().startswith(PER_SEND)] + [body]


def test_a_send_is_committed_before_its_first_byte(prepare: Prepare) -> None:
    """When the server has the request, the open send and its key are already committed."""
    seen: list[dict[str, Any]] = []

    def look(connection: Any) -> None:
        seen.extend(attempts.rows("SELECT c.state, c.key, c.credential, s.open FROM send s, call c"))
        connection.sendall(CREATED)

    with RawServer(look) as server:
        attempts = prepare(server.url)
        assert attempts.run(post).move == Move.FINISH
    (row,) = seen
    assert (row["state"], bool(row["open"])) == ("pending", True)
    assert f"X-Idempotency-Key: {row['key']}".encode() in server.requests[0]
    assert row["credential"]
    assert b"one" not in row["credential"].encode(), "an HMAC, not the credential"


BODIES: dict[str, dict[str, Any]] = {
    "json": {"json": {"name": "Łódź", "b": [1.5, None], "a": True}},
    "form": {"data": {"recipient[title]": "Ms", "n": ["1", "2"]}},
    "bytes": {"content": b"\x00\xff", "headers": {"Content-Type": "application/octet-stream"}},
    "files": {"files": {"letter": ("letter.pdf", b"%PDF", "application/pdf")}, "data": {"n": "1"}},
    "nothing": {},
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_resend_is_the_same_bytes(prepare: Prepare, kind: str) -> None:
    """A resend has the bytes of the first send, in head and body, key and boundary included."""

    def handler(_event: Any, calls: Any) -> None:
        calls.api.post("/orders", params={"q": "a b"}, **BODIES[kind])

    with RawServer(hang_up, CREATED) as server:
        attempts = prepare(server.url)
        assert attempts.run(handler).move == Move.RETRY_LATER
        assert attempts.run(handler).move == Move.FINISH
    first, second = server.requests
    assert significant(first) == significant(second)


def test_a_lost_row_makes_the_same_key(prepare: Prepare) -> None:
    """If the rows of an event's calls are lost, as after a restore, its calls get the same keys again."""
    with RawServer(hang_up, CREATED) as server:
        attempts = prepare(server.url)
        attempts.run(post)
        attempts.change("DELETE FROM send", "DELETE FROM call")
        assert attempts.run(post).move == Move.FINISH
    first, second = server.requests
    assert significant(first) == significant(second)


def test_the_stored_bytes_go_out_and_not_the_handlers(prepare: Prepare) -> None:
    """With use-stored a resend has the stored bytes and key, whatever the handler sends now."""

    def changed(_event: Any, calls: Any) -> None:
        calls.api.post("/orders", json={"name": "other"})

    with RawServer(hang_up, CREATED) as server:
        attempts = prepare(server.url)
        attempts.run(post)
        attempts.change("UPDATE call SET use_stored = true")
        assert attempts.run(changed).move == Move.FINISH
    first, second = server.requests
    assert significant(first) == significant(second)


def refused(_server: RawServer) -> str:
    """Return the URL of a port without a listener."""
    return f"http://127.0.0.1:{free_port()}"


def no_tls(server: RawServer) -> str:
    """Return an https URL of a server without TLS."""
    return server.url.replace("http:", "https:")


@pytest.mark.parametrize("address", [refused, no_tls])
def test_a_failed_connection_leaves_no_open_send(
    prepare: Prepare, address: Callable[[RawServer], str]
) -> None:
    """A failed connection leaves no open send, and the attempt is not counted."""
    with RawServer(reads=False) as server:
        attempts = prepare(address(server), CHRONAPILOT)
        assert attempts.run(post).move == Move.CALL_LATER
    (send,) = attempts.sends
    assert (bool(send["open"]), send["outcome"]) == (False, "later")
    assert attempts.rows("SELECT attempts FROM event") == [{"attempts": 0}]


def test_a_redirect_leaves_its_send_open(prepare: Prepare) -> None:
    """A redirect is not followed, and its send stays open: the POST may have had its effect."""
    with RawServer() as elsewhere, RawServer(reply("307 Moved", Location=elsewhere.url)) as server:
        attempts = prepare(server.url)
        assert attempts.run(post).move == Move.RETRY_LATER
        assert (len(server.requests), elsewhere.connections) == (1, 0)
    assert bool(attempts.sends[0]["open"])


def test_no_database_connection_is_held_while_it_waits(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Eight handlers that wait for responses leave a pool of two connections free."""
    small = Store(f"sqlite:///{tmp_path}/ledger.db", pool=2)
    request.addfinalizer(small.close)
    migrate(small)
    go = threading.Event()

    def wait(connection: Any) -> None:
        go.wait(60)
        connection.sendall(CREATED)

    with RawServer(wait) as server, ThreadPoolExecutor(8) as pool:
        apis = apis_of(tmp_path, Target("api", TELNESS, server.url, {"deadline": "60s"}))
        context = Attempts(small, apis).context
        helds = []
        for number in range(8):
            event = record(small, [Delivery("stripe", f"evt_w{number}", "x", b"{}")])[0].event
            helds.append(claim(small, event, lease=LEASE, worker="test"))
        answers = [pool.submit(post, None, Calls(context, held)) for held in helds if held]
        wait_until(lambda: len(server.requests) == len(answers) == 8, "8 requests to wait")
        for number in range(20):
            record(small, [Delivery("stripe", f"evt_m{number}", "x", b"{}")])
        assert not any(answer.done() for answer in answers), "the ledger was free while all eight waited"
        go.set()
        for answer in answers:
            answer.result()
        for transport in context.transports.values():
            transport.close()  # type: ignore[attr-defined]


def test_an_answer_over_the_cap_parks(prepare: Prepare) -> None:
    """A success whose response is too long to store parks with an open send, and is never resent."""
    with RawServer(reply("201 Created", b"x" * (ANSWER_MAX + 1))) as server:
        attempts = prepare(server.url)
        assert attempts.run(post).move == Move.PARK
        assert len(server.requests) == 1
    assert [bool(send["open"]) for send in attempts.sends] == [True]
    assert "too long" in attempts.calls[0]["reason"]


def test_a_stored_answer_is_the_live_one(prepare: Prepare) -> None:
    """A stored response equals the live one in status, headers and body, except for cookies."""
    live = reply(
        "201 Created", b'{"id": 7}', X_Request="r1", Set_Cookie="a=b", Content_Type="application/json"
    )
    got: list[Any] = []

    def handler(_event: Any, calls: Any) -> None:
        got.append(calls.api.post("/orders", json={}))

    with RawServer(live) as server:
        attempts = prepare(server.url)
        attempts.run(handler, settles=False)
        attempts.change("UPDATE event SET state = 'waiting', lease_until = NULL")
        attempts.run(handler)
        assert len(server.requests) == 1
    first, second = got
    assert (first.status_code, first.content, first.headers) == (
        second.status_code,
        second.content,
        second.headers,
    )
    assert first.headers["x-request"] == "r1"
    assert "set-cookie" not in first.headers


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 204 No Content\r\n\r\n", reply("200 OK", b"")], ids=["204", "empty"]
)
def test_an_answer_without_a_body_is_one(prepare: Prepare, answer: bytes) -> None:
    """204 and an empty body are successes, and are stored as such."""
    with RawServer(answer) as server:
        attempts = prepare(server.url)
        attempts.run(post, settles=False)
        attempts.change("UPDATE event SET state = 'waiting', lease_until = NULL")
        assert attempts.run(post).move == Move.FINISH
        assert len(server.requests) == 1


def test_a_kept_connection_that_dies_doubles_nothing(prepare: Prepare) -> None:
    """A request lost on a kept-alive connection is resent by the journal, and never by the transport."""

    def handler(_event: Any, calls: Any) -> None:
        calls.api.post("/orders", json={"n": 1}, step="one")
        calls.api.post("/orders", json={"n": 2}, step="two")

    with RawServer(CREATED, hang_up, CREATED) as server:
        attempts = prepare(server.url)
        assert attempts.run(handler).move == Move.RETRY_LATER
        assert len(server.requests) == 2
        assert attempts.run(handler).move == Move.FINISH
    one, two, again = server.requests
    assert significant(two) == significant(again) != significant(one)


def test_an_expired_key_is_not_sent_again(prepare: Prepare, store: Store) -> None:
    """After `expires_at - margin` a call with an open send parks instead of being resent."""
    with RawServer(hang_up, CREATED) as server:
        attempts = prepare(server.url, key_life="4min")
        attempts.run(post)
        store.shift += timedelta(minutes=3)
        assert attempts.run(post).move == Move.PARK
        assert len(server.requests) == 1
    assert attempts.state == "parked"
    assert "forgotten" in attempts.calls[0]["reason"]


def test_another_credential_sends_nothing_again(prepare: Prepare) -> None:
    """A call with an open send parks if the credential was rotated: the key may be unknown now."""
    with RawServer(hang_up, CREATED) as server:
        attempts = prepare(server.url)
        attempts.run(post)
        rotated = prepare(server.url, who="two")
        assert rotated.run(post).move == Move.PARK
        assert prepare(server.url).state == "parked"
        assert len(server.requests) == 1


def test_the_quiet_time_is_waited_out(prepare: Prepare, store: Store) -> None:
    """Where concurrent copies are undefined, a resend waits for the deadline and the settle delay."""
    with RawServer(hang_up, CREATED) as server:
        attempts = prepare(server.url, CHRONAPILOT, deadline="20s", quiet="10s")
        attempts.run(post)
        end = attempts.run(post)
        assert end.move == Move.CALL_LATER
        assert timedelta(seconds=25) < end.delay <= timedelta(seconds=30)
        attempts.change("UPDATE call SET due_at = NULL")
        assert attempts.run(post).move == Move.CALL_LATER, "beginning a send checks the open send itself"
        store.shift += timedelta(seconds=31)
        assert attempts.run(post).move == Move.FINISH
        assert len(server.requests) == 2


def test_a_lease_outlasts_its_send(prepare: Prepare) -> None:
    """The lease covers the send's deadline and the recording of its response."""
    seen: list[dict[str, Any]] = []

    def look(connection: Any) -> None:
        seen.extend(attempts.rows("SELECT e.lease_until, s.sending_until FROM event e, send s"))
        connection.sendall(CREATED)

    with RawServer(look) as server:
        attempts = prepare(server.url, deadline="20s")
        held = attempts.claim(timedelta(seconds=2))
        post(None, Calls(attempts.context, held))
    (row,) = seen
    lease, until = (seconds(row[name]) for name in ("lease_until", "sending_until"))
    assert lease - until >= SLACK.total_seconds() - 0.001


def seconds(value: Any) -> float:
    """Convert a time that a plain SELECT returned to seconds: SQLite returns text."""
    return (datetime.fromisoformat(value) if isinstance(value, str) else value).timestamp()


def test_an_answer_after_the_claim_was_lost_counts(prepare: Prepare) -> None:
    """A 201 that arrives after the claim was lost ends the call, and the new holder sends nothing."""

    def slowly(connection: Any) -> None:
        attempts.change("UPDATE event SET state = 'waiting', lease_until = NULL")
        taken.append(attempts.claim())
        connection.sendall(CREATED)

    taken: list[Any] = []
    with RawServer(slowly, CREATED) as server:
        attempts = prepare(server.url)
        held = attempts.claim()
        post(None, Calls(attempts.context, held))
        assert [call["state"] for call in attempts.calls] == ["succeeded"]
        post(None, Calls(attempts.context, taken[0]))
        assert len(server.requests) == 1


def test_a_lost_claim_sends_nothing(prepare: Prepare) -> None:
    """A worker that lost its claim writes no byte, and nothing in the journal."""
    with RawServer() as server:
        attempts = prepare(server.url)
        held = attempts.claim()
        attempts.change("UPDATE event SET claim = claim + 1")
        with pytest.raises(Exception, match="taken this event over"):
            post(None, Calls(attempts.context, held))
        assert server.requests == []
    assert attempts.calls == []


def test_a_silent_server_costs_its_read_timeout(prepare: Prepare) -> None:
    """A read timeout leaves the send open, and the call is resent under its key."""
    with RawServer(stay, CREATED) as server:
        attempts = prepare(server.url, STANNP, read_timeout="200ms", deadline="300ms", quiet="1ms")

        def handler(_event: Any, calls: Any) -> None:
            calls.api.post("/letters", data={"n": "1"})

        end = attempts.run(handler)
        assert (end.move, bool(attempts.sends[0]["open"])) == (Move.RETRY_LATER, True)
        wait_until(lambda: attempts.run(handler).move == Move.FINISH, "the quiet time to end")
    assert [bool(send["open"]) for send in attempts.sends] == [False, False], (
        "the response settles both sends"
    )


def test_headers_outside_ascii_pass_both_ways(prepare: Prepare) -> None:
    """Latin-1 header values are sent, received and stored."""
    got: list[Any] = []

    def handler(_event: Any, calls: Any) -> None:
        got.append(calls.api.post("/orders", json={}, headers={"X-Name": "Zoë"}))

    with RawServer(reply("201 Created").replace(b"\r\n\r\n", b"\r\nX-Name: Zo\xeb\r\n\r\n")) as server:
        attempts = prepare(server.url)
        attempts.run(handler, settles=False)
        attempts.change("UPDATE event SET state = 'waiting', lease_until = NULL")
        assert attempts.run(handler).move == Move.FINISH
        assert b"X-Name: Zo\xeb" in server.requests[0]
    assert [answer.headers["X-Name"] for answer in got] == ["Zoë", "Zoë"]


def test_a_locked_call_is_waited_for(prepare: Prepare) -> None:
    """The attempt resends a locked call after pauses of 100 and 200 ms, and continues."""
    locked = reply("409 Conflict", b'{"code": "idempotency_key_locked"}')
    with RawServer(locked, locked, CREATED) as server:
        attempts = prepare(server.url)
        begun = time.monotonic()
        assert attempts.run(post).move == Move.FINISH
        assert time.monotonic() - begun >= 0.1 + 0.2
        assert len(server.requests) == 3
    assert len({tuple(significant(request)) for request in server.requests}) == 1
    assert [send["outcome"] for send in attempts.sends] == ["locked", "locked", "succeeded"]


def test_a_get_is_neither_journaled_nor_keyed(prepare: Prepare) -> None:
    """A GET is sent each time, leaves no row and has no key; its temporary failures are retried."""
    ends: list[Any] = []

    def handler(_event: Any, calls: Any) -> None:
        ends.append(calls.api.get("/orders", params={"page": "2"}).status_code)

    answers = (reply(), reply("503 Not now"), hang_up, reply("404 Not found"))
    with RawServer(*answers) as server:
        attempts = prepare(server.url)
        moves = [attempts.run(handler, settles=False).move]
        for _ in answers[1:]:
            attempts.change("UPDATE event SET state = 'waiting', lease_until = NULL")
            moves.append(attempts.run(handler, settles=False).move)
        assert moves == [Move.FINISH, Move.RETRY_LATER, Move.RETRY_LATER, Move.GIVE_UP]
        assert all(b"idempotency" not in request.lower() for request in server.requests)
        assert server.requests[0].startswith(b"GET /telness/orders?page=2 HTTP/1.1\r\n")
    assert (ends, attempts.calls, attempts.sends) == ([200], [], [])
