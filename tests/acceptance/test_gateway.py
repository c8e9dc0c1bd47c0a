"""The front of web: stalled senders, bodies cut off, repeated headers, slow pages and verifiers."""

import hmac
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import cycle, islice
from statistics import median
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from receiver import gateway
from tests.conftest import Deploy
from tests.services.databases import NO_BROKER, Databases
from tests.services.deployment import Deployment, timed
from tests.services.ledger import Ledger
from tests.services.processes import lives
from tests.services.raw_client import RawClient, chunked, request
from tests.services.signing import STRIPE_SECRET, stripe_delivery, stripe_event, stripe_headers
from tests.services.waiting import wait_until

SOURCES = """
[stripe]
provider = "stripe"
secrets_env = "STRIPE_WEBHOOK_SECRET"

[github]
provider = "github"
secrets_env = "STRIPE_WEBHOOK_SECRET"

[open]
provider = "mollie-classic"
unverified = true
max_body = 100000
keep_headers = ["X-Note"]

[rides]
provider = "strava"
unverified = true
handshake = true
verify_token_env = "STRIPE_WEBHOOK_SECRET"

[sleepy]
provider = "code"
verifier = "sleepy_webhooks:verify"
secrets_env = "STRIPE_WEBHOOK_SECRET"
options = { event_id = "json:id", event_type = "json:type" }

[other]
provider = "code"
verifier = "sleepy_webhooks:verify_at_once"
secrets_env = "STRIPE_WEBHOOK_SECRET"
options = { event_id = "json:id", event_type = "json:type" }
"""
SLEEPY = """
import pathlib
import time

from receiver.verifiers import verifies

@verifies
def verify(request, secrets, now):
    file = pathlib.Path(request.header("X-Until"))
    file.with_suffix(".begun").touch()
    while not file.exists():
        time.sleep(0.02)

@verifies
def verify_at_once(request, secrets, now):
    pass
"""
API_KEY, TOKEN = "ops-key-of-the-tests", "metrics-token-0123456789"
DEADLINE = 2
"""Seconds that an upload may take in most of these tests."""
PROMPT = 1.0
"""Seconds in which an honest delivery is answered, whatever others do."""
LONG = 60
"""Seconds that a body may take in tests that look at the time before its end."""

Begin = Callable[[], bytes]
"""Makes the beginning of a request that goes no further."""


def deploy_gateway(databases: Databases, deploy: Deploy, kind: str = "sqlite", **env: str) -> Deployment:
    """Deploy a web process, not started, with these sources and settings."""
    settings = {
        "FIRSTSEEN_UPLOAD_TIMEOUT": f"{DEADLINE}s",
        "FIRSTSEEN_API_KEYS": f"ops={API_KEY}",
        "FIRSTSEEN_METRICS_TOKEN": TOKEN,
        "FIRSTSEEN_LOGS": "json",
    }
    made = deploy(databases.migrated(kind), NO_BROKER, sources=SOURCES, env=settings | env)
    (made.handlers.folder / "sleepy_webhooks.py").write_text(SLEEPY)
    return made


@pytest.fixture
def web(databases: Databases, deploy: Deploy) -> Deployment:
    """Deploy a running web process on SQLite whose uploads have DEADLINE seconds."""
    made = deploy_gateway(databases, deploy)
    made.start_web()
    return made


@pytest.fixture
def patient(databases: Databases, deploy: Deploy) -> Deployment:
    """Deploy a running web process on SQLite whose uploads have LONG seconds."""
    made = deploy_gateway(databases, deploy, FIRSTSEEN_UPLOAD_TIMEOUT=f"{LONG}s")
    made.start_web()
    return made


@pytest.fixture
def on_postgres(databases: Databases, deploy: Deploy) -> Deployment:
    """Deploy a running web process on PostgreSQL, whose tables a test can lock."""
    made = deploy_gateway(databases, deploy, "postgres")
    made.start_web()
    return made


def signed(event_id: str, **data: Any) -> tuple[bytes, dict[str, str]]:
    """Return a genuine delivery's body and headers."""
    return stripe_delivery(stripe_event(event_id, **data))


def in_headers() -> bytes:
    """Stop in the middle of a header."""
    return b"POST /webhooks/stripe HTTP/1.1\r\nHost: hooks.example.com\r\nX-Slow: "


def in_body() -> bytes:
    """Announce a body and send a part of it."""
    return request(body=None, headers={"Content-Length": "1000"}) + b"{"


def in_signed_body() -> bytes:
    """Sign a body and leave out its last bytes."""
    body, headers = signed("evt_stalled")
    return request(body=body, headers=headers)[:-2]


def in_chunked_body() -> bytes:
    """Send one chunk, and never the last one."""
    return request(body=None, headers={"Transfer-Encoding": "chunked"}) + chunked(b"{")


def in_a_chunk() -> bytes:
    """Stop in the middle of a chunk."""
    return request(body=None, headers={"Transfer-Encoding": "chunked"}) + b"ff\r\n{"


HEADS: tuple[Begin, ...] = (lambda: b"", in_headers)
BODIES: tuple[Begin, ...] = (in_body, in_signed_body, in_chunked_body, in_a_chunk)


class Stalled:
    """Connections that stop in mid-request, of all kinds in turn; every second one dribbles on."""

    def __init__(self, url: str, kinds: tuple[Begin, ...], count: int) -> None:
        self.kinds = list(islice(cycle(kinds), count))
        self.clients = [RawClient(url).send(begin()) for begin in self.kinds]
        self._over = threading.Event()
        self._dribbling = threading.Thread(target=self._dribble, daemon=True)
        self._dribbling.start()

    def _dribble(self) -> None:
        # Half of each kind: their number of kinds is even, so every second connection is not enough.
        half = [client for place, client in enumerate(self.clients) if place // len(set(self.kinds)) % 2]
        kinds = [kind for place, kind in enumerate(self.kinds) if place // len(set(self.kinds)) % 2]
        while not self._over.wait(1):
            for client, kind in zip(half, kinds, strict=True):
                if kind is not in_signed_body:
                    # One byte more; in chunked encoding as a chunk of its own.
                    with suppress(OSError):
                        client.send(chunked(b"x") if kind is in_chunked_body else b"x")

    def close(self) -> None:
        """Close all."""
        self._over.set()
        self._dribbling.join()
        for client in self.clients:
            client.close()


@pytest.fixture
def stall() -> Iterator[Callable[..., Stalled]]:
    """Stall so many requests, `stall(url, kinds, count)`; they are closed after the test."""
    with ExitStack() as cleanup:

        def make(url: str, kinds: tuple[Begin, ...], count: int) -> Stalled:
            made = Stalled(url, kinds, count)
            cleanup.callback(made.close)
            return made

        yield make


def rejections(deployment: Deployment) -> Counter[str]:
    """Return how many deliveries were refused, by reason."""
    found = Ledger(deployment.database_url).rows(
        "SELECT what, sum(count) AS n FROM counter WHERE kind = 'rejection' AND name = 'stripe'"
        " AND minute = (SELECT min(minute) FROM counter) GROUP BY what"
    )
    return Counter({row["what"]: int(row["n"]) for row in found})


def lines(deployment: Deployment) -> list[dict[str, Any]]:
    """Return every complete log line of web."""
    written = deployment.logs("web").splitlines(keepends=True)
    return [json.loads(line) for line in written if line.endswith("\n")]


def line_of(deployment: Deployment, request_id: str) -> dict[str, Any]:
    """Wait for the one log line of a request."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(deployment) if line.get("request") == request_id]

    (line,) = wait_until(found, deployment.logs)
    return line


def assert_prompt(deployment: Deployment, name: str) -> None:
    """Deliver and ask for /healthz a few times: all are answered well, as a rule within PROMPT seconds."""
    deliveries = [timed(deployment.deliver, f"{name}_{number}") for number in range(9)]
    health = [timed(deployment.client.get, f"{deployment.url}/healthz") for _ in range(9)]
    assert {answer.status_code for answer, _ in deliveries + health} == {200}
    # The median: a busy machine may hold up a single one.
    assert median(seconds for _, seconds in deliveries) < PROMPT
    assert median(seconds for _, seconds in health) < PROMPT


@pytest.mark.parametrize("count", [64, 500])
def test_stalled_senders_hold_nothing_up(
    patient: Deployment, stall: Callable[..., Stalled], count: int
) -> None:
    """While so many requests stall or dribble, deliveries and health are answered at once, also with 500."""
    stalled = stall(patient.url, HEADS + BODIES, count)
    assert_prompt(patient, "evt_among")
    for client in stalled.clients:
        client.socket.settimeout(0)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)  # none of them was answered or closed meanwhile
    events = Ledger(patient.database_url).events()
    assert {event["event_id"] for event in events} == {f"evt_among_{number}" for number in range(9)}


def test_stalled_requests_are_refused_and_counted(web: Deployment, stall: Callable[..., Stalled]) -> None:
    """After the deadline a stalled body gets 408 and its connection ends; those of sources are counted."""
    bodies, heads = stall(web.url, BODIES, 32), stall(web.url, HEADS, 8)
    answers = [client.reply() for client in bodies.clients]
    assert {answer.status for answer in answers} == {408}
    problem = json.loads(answers[0].body)
    assert problem["type"] == "urn:firstseen:problem:stalled"
    assert all(client.closed() for client in bodies.clients)
    assert {answer.status for client in heads.clients if (answer := client.reply_or_end())} <= {408}
    assert all(client.closed() for client in heads.clients)
    wait_until(lambda: rejections(web) == {"stalled": 32}, lambda: str(rejections(web)))
    with RawClient(web.url).send(request("/v1/events", None, {"Content-Length": "10"})) as page:
        refused = page.reply()
        assert (refused.status, page.closed()) == (408, True)
    assert Ledger(web.database_url).events() == []
    assert "Traceback" not in web.logs("web")
    line = line_of(web, answers[0].headers["x-request-id"])
    assert (line["source"], line["refused"], line["status"]) == ("stripe", "stalled", 408)


def test_idle_connections_hold_nothing_up(patient: Deployment) -> None:
    """With many connections that were used once and are idle now, deliveries are answered as before."""
    with ExitStack() as cleanup:
        clients = [cleanup.enter_context(RawClient(patient.url)) for _ in range(500)]
        for client in clients:
            client.send(request("/healthz", method="GET"))
        assert {client.reply().status for client in clients} == {200}
        assert_prompt(patient, "evt_among")
        clients[0].send(request("/healthz", method="GET"))
        assert clients[0].reply().status == 200


@pytest.mark.parametrize(
    ("target", "limit"), [("/webhooks/open", 100_000), ("/v1/events", 1024 * 1024)], ids=["delivery", "page"]
)
@pytest.mark.parametrize("way", ["length", "chunked", "expect"])
def test_a_long_body_is_refused_unread(web: Deployment, target: str, limit: int, way: str) -> None:
    """A body over the limit gets 413 at its length, or at the first byte too many, and is not read on."""
    with RawClient(web.url) as client:
        if way == "chunked":
            part = chunked(b"x" * 10_000)
            client.send(request(target, None, {"Transfer-Encoding": "chunked"}))
            client.send(*[part] * (limit // 10_000 + 1))
        else:
            expect = {"Expect": "100-continue"} if way == "expect" else {}
            client.send(request(target, None, {"Content-Length": str(limit + 1)} | expect))
        answer = client.reply()
        assert answer.status == 413, "and no 100 Continue before it"
        assert answer.headers["content-type"] == "application/problem+json"
        assert client.closed()
    assert Ledger(web.database_url).events() == []
    assert_prompt(web, "evt_after")


def test_bodies_up_to_the_limit_are_taken(web: Deployment) -> None:
    """The limit itself is allowed, with a length and in chunks."""
    body, other = b"x" * 100_000, b"y" * 100_000
    with RawClient(web.url) as client:
        client.send(request("/webhooks/open", body))
        assert client.reply().status == 200
        client.send(request("/webhooks/open", None, {"Transfer-Encoding": "chunked"}))
        client.send(chunked(other[:7], other[7:]), b"0\r\n\r\n")
        assert client.reply().status == 200
    assert [bytes(event["body"]) for event in Ledger(web.database_url).events()] == [body, other]


def test_a_client_that_waits_for_continue_is_told_to(web: Deployment) -> None:
    """`Expect: 100-continue` gets 100 before the body is sent."""
    body, headers = signed("evt_1")
    head = request(body=None, headers=headers | {"Content-Length": str(len(body)), "Expect": "100-continue"})
    with RawClient(web.url).send(head) as client:
        go_on = client.reply()
        assert go_on.status == 100
        answer = client.send(body).reply()
        assert answer.status == 200
    assert Ledger(web.database_url).state("evt_1") == "received"


def test_http_1_0_is_answered_and_closed(web: Deployment) -> None:
    """A delivery of HTTP/1.0, without Host, is recorded; its connection ends after the answer."""
    body, headers = signed("evt_1")
    with RawClient(web.url).send(request(body=body, headers=headers, version="1.0")) as client:
        answer = client.reply()
        assert answer.status == 200
        assert client.closed()
    assert Ledger(web.database_url).state("evt_1") == "received"


def test_pipelined_requests_are_answered_in_order(web: Deployment) -> None:
    """Requests sent in one piece are each answered, in order, and none has another's facts."""
    deliveries = [request(body=body, headers=headers) for body, headers in map(signed, ("evt_1", "evt_2"))]
    forged = request(body=b"{}", headers=stripe_headers(b"{}", secret="whsec_another"))
    health = request("/healthz", method="GET")
    with RawClient(web.url).send(b"".join([deliveries[0], forged, health, *deliveries])) as client:
        answers = [client.reply() for _ in range(5)]
    assert [answer.status for answer in answers] == [200, 401, 200, 200, 200]
    events = [json.loads(answers[place].body)["event_id"] for place in (0, 3, 4)]
    assert events == ["evt_1", "evt_1", "evt_2"]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 5
    assert Ledger(web.database_url).event("evt_1")["duplicates"] == 1


def test_bytes_after_a_body_are_no_part_of_it(web: Deployment) -> None:
    """What follows a body of known length is another request's, here none that can be read."""
    body, headers = signed("evt_1")
    with RawClient(web.url).send(request(body=body, headers=headers) + b"\x00trailing\r\n\r\n") as client:
        answer = client.reply()
        assert answer.status == 200
        refused = client.reply_or_end()
        assert refused is None or refused.status == 400
    stored = Ledger(web.database_url).event("evt_1")
    assert bytes(stored["body"]) == body


@pytest.mark.parametrize("way", ["length", "chunked", "in a chunk", "no last chunk", "reset"])
def test_a_body_cut_off_is_never_recorded(web: Deployment, way: str) -> None:
    """Where the sender goes away in mid-body nothing is recorded, not even by a source without signatures."""
    length, pieces = {"Content-Length": "9"}, {"Transfer-Encoding": "chunked"}
    sent = {
        "length": request("/webhooks/open", None, length) + b"id=tr_1",
        "chunked": request("/webhooks/open", None, pieces) + chunked(b"id=", b"tr_1"),
        "in a chunk": request("/webhooks/open", None, pieces) + b"9\r\nid=tr_1",
        "no last chunk": request("/webhooks/open", None, pieces) + chunked(b"id=tr_1") + b"0\r\n",
        "reset": request("/webhooks/open", None, length) + b"id=tr_1",
    }
    with RawClient(web.url).send(sent[way]) as client:
        if way == "reset":
            # With a linger of 0 the connection is reset instead of ended.
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
        else:
            answer = client.end().reply()
            assert answer.status == 400
    with RawClient(web.url).send(request("/webhooks/open", b"id=tr_2")) as client:
        assert client.reply().status == 200
    assert [bytes(event["body"]) for event in Ledger(web.database_url).events()] == [b"id=tr_2"]
    assert "Traceback" not in web.logs("web")


@pytest.mark.parametrize(
    "field",
    ["Content-Length: x", "Content-Length: -1", "Content-Length: 2\r\nContent-Length: 3", "Bad Name: x"],
)
def test_a_malformed_head_is_a_bad_request(web: Deployment, field: str) -> None:
    """A head that means nothing gets 400, on a delivery and on a page, and no traceback."""
    for target in ("/webhooks/open", "/v1/events"):
        head = f"POST {target} HTTP/1.1\r\nHost: hooks.example.com\r\n{field}\r\n\r\n"
        with RawClient(web.url).send(head.encode() + b"{}") as client:
            answer = client.reply()
            assert answer.status == 400
    assert Ledger(web.database_url).events() == []
    assert "Traceback" not in web.logs("web")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://hooks.example.com/webhooks/stripe", 200),
        ("/webhooks/str%69pe", 200),
        ("/webhooks/stripe?", 200),
        ("/webhooks/", 404),
        ("/webhooks/%ff", 404),
        ("/webhooks/a%2Fb", 404),
        ("/webhooks/none", 404),
        ("/%00", 404),
    ],
)
def test_targets_name_sources_as_urls_do(web: Deployment, target: str, status: int) -> None:
    """A target may be absolute and percent-encoded; what names no source is 404 and stays out of logs."""
    body, headers = signed("evt_1")
    with RawClient(web.url).send(request(target, body, headers)) as client:
        answer = client.reply()
    assert answer.status == status
    assert answer.headers["x-request-id"]
    assert "Traceback" not in web.logs("web")


@pytest.mark.parametrize("method", ["HEAD", "GET", "OPTIONS", "PUT"])
def test_other_methods_keep_the_connection(web: Deployment, method: str) -> None:
    """A delivery by another method is 405 with Allow, and the next request is answered on its connection."""
    with RawClient(web.url) as client:
        for target, status in (("/webhooks/stripe", 405), ("/healthz", 200 if method != "PUT" else 405)):
            client.send(request(target, None, method=method))
            answer = client.reply(head=method == "HEAD")
            assert answer.status == status
            assert status == 200 or "allow" in answer.headers
        client.send(request("/healthz", None, method="GET"))
        assert client.reply().status == 200


@pytest.mark.parametrize("name", ["Host", "Content-Type", "Content-Encoding", "Authorization"])
def test_a_header_of_one_value_is_refused_when_repeated(web: Deployment, name: str) -> None:
    """Which of two hosts or types counts is a guess, so nobody makes it: 400."""
    body, headers = signed("evt_1")
    pairs = [(key, value) for key, value in headers.items() if key != name]
    pairs += [("Host", "hooks.example.com")] * (name != "Host") + [(name, "a-value-1"), (name, "a-value-1")]
    for target in ("/webhooks/stripe", "/v1/events"):
        with RawClient(web.url).send(request(target, body, pairs)) as client:
            answer = client.reply()
            assert answer.status == 400
            assert name.lower() in json.loads(answer.body)["detail"]
    assert Ledger(web.database_url).events() == []


def test_a_repeated_header_is_joined(web: Deployment) -> None:
    """The values of other headers are joined by commas, in order; a repeated signature is refused."""
    sent = [("X-Note", "first"), ("x-note", "second, third"), ("X-NOTE", "caf\xe9 \xff")]
    with RawClient(web.url).send(request("/webhooks/open", b"id=tr_1", sent)) as client:
        assert client.reply().status == 200
    (event,) = Ledger(web.database_url).events()
    kept = json.loads(event["headers"]) if isinstance(event["headers"], str) else event["headers"]
    assert kept == {"X-Note": "first, second, third, caf\xe9 \xff"}
    body, headers = signed("evt_1")
    forged = stripe_headers(body, secret="whsec_another")["Stripe-Signature"]
    for pairs in (
        [("Stripe-Signature", forged), *headers.items()],
        [*headers.items(), ("Stripe-Signature", forged)],
    ):
        with RawClient(web.url).send(request(body=body, headers=pairs)) as client:
            assert client.reply().status == 401


def test_an_underscore_does_not_pass_for_a_hyphen(web: Deployment) -> None:
    """`X_GitHub_Event` is not `X-GitHub-Event`, and `Stripe_Signature` proves nothing; nor on pages."""
    body, headers = signed("evt_1")
    signature = hmac.new(STRIPE_SECRET.encode(), b"{}", "sha256").hexdigest()
    github = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": "evt_g"}
    with RawClient(web.url) as client:
        client.send(request("/webhooks/github", b"{}", github | {"X_GitHub_Event": "forged"}))
        assert client.reply().status == 200
        under = {name.replace("-", "_"): value for name, value in headers.items()}
        client.send(request(body=body, headers=under))
        assert client.reply().status == 401
        key = f"Bearer {API_KEY}"
        client.send(
            request("/v1/events", method="GET", headers={"Authorization": key, "X_Request_Id": "x" * 20})
        )
        answer = client.reply()
    assert answer.status == 200
    assert answer.headers["x-request-id"] != "x" * 20
    (event,) = Ledger(web.database_url).events()
    assert (event["event_id"], event["type"]) == ("evt_g", "unknown")
    assert "forged" not in str(event["headers"])


def test_repeated_forwarded_headers_are_one_list(databases: Databases, deploy: Deploy) -> None:
    """A proxy may add a line of its own: the trusted value is the last of all lines, not of the first."""
    web = deploy_gateway(databases, deploy, FIRSTSEEN_PROXY_HOPS="1")
    web.start_web()
    pairs = [
        ("X-Forwarded-For", "198.51.100.7"),
        ("X-Forwarded-For", "203.0.113.9"),
        ("X_Forwarded_For", "192.0.2.1"),
    ]
    with RawClient(web.url) as client:
        client.send(request("/webhooks/open", b"id=tr_1", pairs))
        assert client.reply().status == 200
        forged = request(headers=[*pairs, *stripe_headers(b"", secret="whsec_another").items()])
        assert client.send(forged).reply().status == 401
    ledger = Ledger(web.database_url)
    assert [event["address"] for event in ledger.events()] == ["203.0.113.9"]
    (sample,) = wait_until(lambda: ledger.rows("SELECT address FROM rejection_sample"))
    assert sample["address"] == "203.0.113.9"


def test_a_usual_delivery_leaves_no_line(web: Deployment) -> None:
    """First deliveries and duplicates log nothing; a conflict, a refusal and a handled fault log one line."""
    usual = [web.deliver("evt_1"), web.deliver("evt_1", changed=1)]
    body, headers = signed("evt_2")
    usual[1:1] = [web.post("stripe", body, headers) for _ in range(2)]
    assert [answer.status_code for answer in usual] == [200] * 4
    conflict = line_of(web, usual[-1].headers["X-Request-Id"])
    assert (conflict["level"], conflict["verdict"], conflict["event_id"]) == ("info", "conflict", "evt_1")
    refused = web.post("stripe", body, stripe_headers(body, secret="whsec_another"))
    line = line_of(web, refused.headers["X-Request-Id"])
    assert (line["status"], line["source"], line["refused"]) == (401, "stripe", "bad_signature")
    assert "event_id" not in line
    parked = web.post("stripe", torn := body[:-5], stripe_headers(torn))
    assert line_of(web, parked.headers["X-Request-Id"])["status"] == 200
    usual_ids = {answer.headers["X-Request-Id"] for answer in usual[:-1]}
    assert len(usual_ids) == 3
    assert not [line for line in lines(web) if line.get("request") in usual_ids]


def test_lines_of_requests_that_meet_have_their_own_facts(on_postgres: Deployment) -> None:
    """Of conflicts that are answered together, each has a line with its own request, event and verdict."""
    ids = [f"evt_{number}" for number in range(8)]
    for event_id in ids:
        assert on_postgres.deliver(event_id).status_code == 200
    ledger = Ledger(on_postgres.database_url)
    with ThreadPoolExecutor(len(ids)) as pool, ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE event IN EXCLUSIVE MODE"))
        asked = {event_id: pool.submit(on_postgres.deliver, event_id, changed=1) for event_id in ids}
        wait_until(lambda: ledger.rows(WAITS_FOR_EVENT), "a delivery to be recorded")
        other.rollback()
        answers = {event_id: delivery.result() for event_id, delivery in asked.items()}
    for event_id, answer in answers.items():
        assert answer.status_code == 200
        line = line_of(on_postgres, answer.headers["X-Request-Id"])
        assert (line["event_id"], line["event"]) == (event_id, answer.json()["id"])
        assert line["verdict"] == "conflict"


@pytest.mark.parametrize(
    ("target", "status"), [("/webhooks/stripe", 401), ("/v1/events", 405)], ids=["delivery", "page"]
)
def test_bodies_are_forgotten_once_answered(web: Deployment, target: str, status: int) -> None:
    """After bodies of more than all the room there is, the next delivery is taken as ever."""
    body = b"x" * 1024 * 1024
    with RawClient(web.url) as client:
        for _ in range(gateway.BUDGET // len(body) + 1):
            assert client.send(request(target, body)).reply().status == status
    assert web.deliver("evt_after").status_code == 200


def test_a_delivery_that_waits_too_long_is_unavailable(on_postgres: Deployment) -> None:
    """Behind a locked table a delivery gets 503 in time and a line; health is answered meanwhile."""
    ledger = Ledger(on_postgres.database_url)
    with ThreadPoolExecutor(16) as pool, ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE event IN EXCLUSIVE MODE"))
        asked = [pool.submit(timed, on_postgres.deliver, f"evt_{number}") for number in range(16)]
        wait_until(lambda: ledger.rows(WAITS_FOR_EVENT), "a delivery to be recorded")
        assert on_postgres.client.get(f"{on_postgres.url}/healthz").status_code == 200
        answers = [delivery.result() for delivery in asked]
        other.rollback()
    assert {answer.status_code for answer, _ in answers} == {503}
    assert {answer.headers["Retry-After"] for answer, _ in answers} == {"5"}
    assert max(seconds for _, seconds in answers) < 10, "providers give up then"
    line = line_of(on_postgres, answers[0][0].headers["X-Request-Id"])
    assert (line["level"], line["status"]) == ("info", 503)
    assert on_postgres.deliver("evt_after").status_code == 200


WAITS_FOR_EVENT = "SELECT pid FROM pg_locks WHERE relation = 'event'::regclass AND NOT granted"


def test_a_client_that_goes_away_while_its_commit_waits_is_recorded(on_postgres: Deployment) -> None:
    """Its delivery was whole: it is recorded, no traceback is logged, and others are answered."""
    ledger = Ledger(on_postgres.database_url)
    body, headers = signed("evt_gone")
    with ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE event IN EXCLUSIVE MODE"))
        client = RawClient(on_postgres.url).send(request(body=body, headers=headers))
        wait_until(lambda: ledger.rows(WAITS_FOR_EVENT), "the delivery to be recorded")
        client.close()
        other.rollback()
    wait_until(lambda: ledger.state("evt_gone") == "received", on_postgres.logs)
    assert on_postgres.deliver("evt_next").status_code == 200
    assert "Traceback" not in on_postgres.logs("web")


def test_a_slow_page_holds_no_delivery(on_postgres: Deployment) -> None:
    """While more pages wait for a locked table than there are threads, deliveries and health go on."""
    ledger = Ledger(on_postgres.database_url)
    bearer = {"Authorization": f"Bearer {API_KEY}"}
    waits = "SELECT pid FROM pg_locks WHERE relation = 'conflict'::regclass AND NOT granted"
    first = on_postgres.deliver("evt_0").json()["id"]
    page = f"{on_postgres.url}/v1/events/{first}"
    assert on_postgres.client.get(page, headers=bearer).status_code == 200
    with ThreadPoolExecutor(8) as pool, ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE conflict IN ACCESS EXCLUSIVE MODE"))
        asked = [pool.submit(on_postgres.client.get, page, headers=bearer) for _ in range(8)]
        # All connections to the database but the one that pages leave to deliveries.
        wait_until(lambda: len(ledger.rows(waits)) == 3, "the pages to wait")
        assert_prompt(on_postgres, "evt_among")
        assert not any(request.done() for request in asked)
        other.rollback()
        assert {request.result().status_code for request in asked} == {200}


def test_bodies_that_wait_for_a_page_have_a_budget(on_postgres: Deployment) -> None:
    """Behind pages that wait for a locked table, bodies past the budget are refused; none of them is kept."""
    ledger = Ledger(on_postgres.database_url)
    bearer = {"Authorization": f"Bearer {API_KEY}"}
    page = f"/v1/events/{on_postgres.deliver('evt_0').json()['id']}"
    body = b"x" * 1024 * 1024
    with ExitStack() as cleanup, ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE conflict IN ACCESS EXCLUSIVE MODE"))
        for _ in range(3):
            slow = cleanup.enter_context(RawClient(on_postgres.url))
            slow.send(request(page, None, bearer, method="GET"))
        waits = "SELECT pid FROM pg_locks WHERE relation = 'conflict'::regclass AND NOT granted"
        wait_until(lambda: len(ledger.rows(waits)) == 3, "the pages to wait")
        clients = [
            cleanup.enter_context(RawClient(on_postgres.url)).send(request("/v1/events", body))
            for _ in range(gateway.BUDGET // len(body) + 1)
        ]
        answered = wait_until(lambda: [client for client in clients if client.answered()], "a refusal")
        assert {client.reply().status for client in answered} == {503}
        assert len(answered) < len(clients)
        assert on_postgres.client.get(f"{on_postgres.url}/healthz").status_code == 200
        other.rollback()
        rest = [client for client in clients if client not in answered]
        assert {client.reply().status for client in rest} <= {405, 503}


def test_a_sleeping_verifier_holds_nothing_else(web: Deployment) -> None:
    """While a verifier of one's own sleeps for many deliveries, other sources and pages are answered."""
    until = web.folder / "until"
    body, headers = b'{"id": "evt_s", "type": "a"}', {"X-Until": str(until)}
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(web.post, "sleepy", body, headers) for _ in range(16)]
        wait_until(until.with_suffix(".begun").exists, "the verifier to begin")
        try:
            assert_prompt(web, "evt_among")
            bearer = {"Authorization": f"Bearer {API_KEY}"}
            assert web.client.get(f"{web.url}/v1/events", headers=bearer).status_code == 200
            assert web.post("other", body, {}, timeout=LONG).status_code == 200, "another source's verifier"
            assert not any(delivery.done() and delivery.result().is_success for delivery in asked)
        finally:
            until.touch()
        assert {delivery.result().status_code for delivery in asked} <= {200, 503}
    assert web.post("sleepy", body, headers).status_code == 200, "its threads are free again"
    assert sum(event["event_id"] == "evt_s" for event in Ledger(web.database_url).events()) == 2


def test_a_verifier_that_never_ends_is_not_waited_for(web: Deployment) -> None:
    """More deliveries than it has threads get 503 in time, and are counted."""
    until = web.folder / "never"
    with ThreadPoolExecutor(24) as pool:
        body, headers = b'{"id": "evt_n", "type": "a"}', {"X-Until": str(until)}
        asked = [pool.submit(web.post, "sleepy", body, headers) for _ in range(24)]
        answers = [delivery.result() for delivery in asked]
    until.touch()
    assert {answer.status_code for answer in answers} == {503}
    assert max(answer.elapsed.total_seconds() for answer in answers) < gateway.PATIENCE + 5
    counted = "SELECT sum(count) AS count FROM counter WHERE name = 'sleepy' AND what = 'cannot_verify'"
    ledger = Ledger(web.database_url)
    wait_until(lambda: (ledger.rows(counted)[0]["count"] or 0) >= len(asked), "the refusals to be counted")


def test_a_stopping_web_ends_every_kind_of_connection(databases: Databases, deploy: Deploy) -> None:
    """At SIGTERM what is whole is recorded and answered, stalled and idle connections end; exit 0 in time."""
    deployed = deploy_gateway(databases, deploy, "postgres", FIRSTSEEN_UPLOAD_TIMEOUT=f"{LONG}s")
    (web,) = deployed.start_web()
    ledger = Ledger(deployed.database_url)
    body, headers = signed("evt_whole")
    with (
        ledger.engine.connect() as other,
        RawClient(deployed.url) as whole,
        RawClient(deployed.url) as stalled,
        RawClient(deployed.url) as pieces,
        RawClient(deployed.url) as head,
        RawClient(deployed.url) as idle,
    ):
        assert idle.send(request("/healthz", method="GET")).reply().status == 200
        other.execute(text("LOCK TABLE event IN EXCLUSIVE MODE"))
        whole.send(request(body=body, headers=headers))
        stalled.send(in_signed_body())
        pieces.send(in_chunked_body())
        head.send(in_headers())
        wait_until(lambda: ledger.rows(WAITS_FOR_EVENT), "the delivery to be recorded")
        begun = time.monotonic()
        web.terminate()
        for client in (stalled, pieces):
            assert client.reply().status == 503
            assert client.closed()
        assert idle.closed()
        other.rollback()
        answer = whole.reply()
        assert answer.status == 200
        assert web.wait_exit() == 0
        assert time.monotonic() - begun < 10
        assert head.closed()
    assert ledger.state("evt_whole") == "received"
    assert [event["event_id"] for event in ledger.events()] == ["evt_whole"]
    # The process ended by itself. Granian may say that it kills one which it sees end at that moment.
    assert "they are cut off" in web.logs()
    assert "Traceback" not in web.logs()
    assert rejections(deployed) == {}, "the senders are not to blame"


def test_a_verifier_does_not_hold_up_a_stop(web: Deployment) -> None:
    """A delivery whose verifier sleeps through a stop gets its 503, and web exits 0 in time."""
    (process,) = web.webs
    until = web.folder / "never"
    with RawClient(web.url) as client:
        client.send(request("/webhooks/sleepy", b"{}", {"X-Until": str(until)}))
        wait_until(until.with_suffix(".begun").exists, "the verifier to begin")
        begun = time.monotonic()
        process.terminate()
        assert client.reply().status == 503
        assert process.wait_exit() == 0
        assert time.monotonic() - begun < 10
    assert "they are cut off" in web.logs()


def test_a_handshake_is_answered(web: Deployment) -> None:
    """By GET with its challenge, by HEAD without a body; the connection goes on."""
    query = f"hub.mode=subscribe&hub.challenge=c%20%26&hub.verify_token={STRIPE_SECRET}"
    with RawClient(web.url) as client:
        answer = client.send(request(f"/webhooks/rides?{query}", None, method="GET")).reply()
        assert (answer.status, json.loads(answer.body)) == (200, {"hub.challenge": "c &"})
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.send(request("/webhooks/rides?hub.mode=x", None, method="GET")).reply().status == 403
        head = client.send(request(f"/webhooks/rides?{query}", None, method="HEAD")).reply(head=True)
        assert head.status in (200, 403, 405)
        assert client.send(request("/healthz", None, method="HEAD")).reply(head=True).status == 200
        assert client.send(request("/healthz", None, method="GET")).reply().status == 200


def scrape(deployment: Deployment) -> dict[tuple[str, ...], float]:
    """Return the samples of /metrics by name and label values, fetched over a new connection."""
    answer = httpx.get(f"{deployment.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    assert answer.status_code == 200
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_two_processes_share_events_and_measures(databases: Databases, deploy: Deploy) -> None:
    """Copies over two processes are first seen once, totals are right, and either reports both's measures.

    A process that dies takes no measures along.
    """
    deployed = deploy_gateway(databases, deploy, "postgres", WEB_CONCURRENCY="2")
    (web,) = deployed.start_web()
    events, copies, threads = 60, 4, 8
    bodies = [signed(f"evt_{number}") for number in range(events)]

    def lane(place: int) -> list[httpx.Response]:
        # A connection each time, so that both processes get some.
        order = [*bodies[place * 7 :], *bodies[: place * 7]]
        return [httpx.post(f"{deployed.url}/webhooks/stripe", content=body, headers=headers, timeout=30)
                for body, headers in order for _ in range(copies // 2)]  # fmt: skip

    with ThreadPoolExecutor(threads) as pool:
        answers = [answer for got in pool.map(lane, range(threads)) for answer in got]
    sent = events * threads * copies // 2
    assert Counter(answer.status_code for answer in answers) == {200: sent}
    firsts = Counter(
        answer.json()["event_id"] for answer in answers if "Idempotent-Replayed" not in answer.headers
    )
    assert firsts == Counter({f"evt_{number}": 1 for number in range(events)})
    ledger = Ledger(deployed.database_url)
    assert sum(event["duplicates"] for event in ledger.events()) == sent - events
    answered = ("firstseen_answer_seconds_count", "/webhooks/<source>", "200")

    def agree(served: int) -> bool:
        # Both processes answer scrapes; each writes its measures a few times a second.
        return {scrape(deployed).get(answered) for _ in range(8)} == {served}

    wait_until(lambda: agree(sent), lambda: str(scrape(deployed)))
    found = scrape(deployed)
    assert found["firstseen_record_batch_events_count",] == sent
    wait_until(lambda: scrape(deployed)["firstseen_deliveries_total", "first seen", "stripe"] == events)
    wait_until(lambda: scrape(deployed)["firstseen_deliveries_total", "duplicate", "stripe"] == sent - events)
    first, *servers = web.family()
    servers[-1].kill()
    wait_until(lambda: [new for new in web.family() if new not in (first, *servers) and lives(new)], web.logs)
    deployed.wait_ready()
    assert deployed.deliver("evt_after").status_code == 200
    wait_until(lambda: agree(sent + 1), lambda: str(scrape(deployed)))
