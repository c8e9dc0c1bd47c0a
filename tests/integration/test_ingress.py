"""POST /webhooks/<source>: accepted and refused deliveries, and the responses to both."""

import hashlib
import hmac
import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from receiver.dispatch import Dispatcher
from tests.integration.conftest import Serve
from tests.services.databases import NO_BROKER, Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.signing import STRIPE_SECRET, stripe_delivery, stripe_event, stripe_headers
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

LIMIT = 2048
CANARY = "canary-7d0c"
SOURCES = f"""
[stripe]
provider = "stripe"
secrets_env = "TEST_STRIPE_SECRETS"
max_body = {LIMIT}

[slack]
provider = "slack"
secrets_env = "TEST_SLACK_SECRET"

[later]
provider = "stripe"
secrets_env = "TEST_SECRET_NOT_YET_SET"
"""
REFUSED = """SELECT name AS source, what AS reason, count FROM counter
    WHERE kind = 'rejection' AND minute > '2000-01-01'"""
OLD_SECRET, SLACK_SECRET = "whsec_old_3b1f", "slack-5d2e"

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(serve: Serve) -> MakeApp:
    """Make applications with these sources: `make_app(database_url, broker_url)`."""
    secrets = {"TEST_STRIPE_SECRETS": f"{STRIPE_SECRET},{OLD_SECRET}", "TEST_SLACK_SECRET": SLACK_SECRET}

    def make(database_url: str, broker_url: str = NO_BROKER) -> Flask:
        return serve(database_url, SOURCES, BROKER_URL=broker_url, **secrets)

    return make


@pytest.fixture
def client(make_app: MakeApp, migrated_url: str) -> FlaskClient:
    """Return a client of the application, on SQLite and on PostgreSQL; it has no broker."""
    return make_app(migrated_url).test_client()


def deliver(
    client: FlaskClient, body: bytes, headers: dict[str, str], source: str = "stripe"
) -> TestResponse:
    """Post one delivery."""
    return client.post(f"/webhooks/{source}", data=body, headers=headers)


def deliver_event(client: FlaskClient, event_id: str, **data: Any) -> TestResponse:
    """Post one signed Stripe event."""
    return deliver(client, *stripe_delivery(stripe_event(event_id, **data)))


def slack_headers(body: bytes, secret: str = SLACK_SECRET) -> dict[str, str]:
    """Sign a body as Slack does."""
    stamp = str(int(time.time()))
    digest = hmac.new(secret.encode(), b"v0:" + stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    return {
        "X-Slack-Request-Timestamp": stamp,
        "X-Slack-Signature": f"v0={digest}",
        "Content-Type": "application/json",
    }


def assert_problem(answer: TestResponse | httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check for a problem document of this kind (RFC 9457) and return it."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer.text)
    assert (problem["status"], problem["type"]) == (status, f"urn:firstseen:problem:{kind}")
    assert problem["title"]
    assert problem["detail"]
    return problem


def test_a_first_delivery_is_recorded(client: FlaskClient, ledger: Ledger) -> None:
    """A signed delivery gets 200 with both ids, and its exact bytes are stored."""
    body, headers = stripe_delivery(stripe_event("evt_1"))
    answer = deliver(client, body, headers)
    assert answer.status_code == 200
    assert "Idempotent-Replayed" not in answer.headers
    assert answer.json
    assert answer.json == {"status": "accepted", "id": answer.json["id"], "event_id": "evt_1"}
    assert UUID(answer.json["id"]).version == 7
    event = ledger.event("evt_1")
    assert (event["state"], event["type"], bytes(event["body"])) == ("received", "invoice.paid", body)


def test_a_duplicate_is_answered_as_the_first_was(client: FlaskClient, ledger: Ledger) -> None:
    """A duplicate gets the first status and body, and the header Idempotent-Replayed."""
    body, headers = stripe_delivery(stripe_event("evt_1"))
    first, *others = [deliver(client, body, headers) for _ in range(3)]
    for other in others:
        assert (other.status_code, other.data) == (first.status_code, first.data)
        assert other.headers["Idempotent-Replayed"] == "true"
    assert (ledger.event("evt_1")["duplicates"], ledger.event("evt_1")["conflicts"]) == (2, 0)


def test_another_body_under_an_id_is_a_conflict(client: FlaskClient, ledger: Ledger) -> None:
    """A conflict is answered like a duplicate, and its body is stored with the event."""
    first = deliver_event(client, "evt_1", amount=1)
    other = deliver_event(client, "evt_1", amount=2)
    assert (other.status_code, other.data) == (first.status_code, first.data)
    assert other.headers["Idempotent-Replayed"] == "true"
    event = ledger.event("evt_1")
    assert (event["conflicts"], event["duplicates"]) == (1, 1)
    assert b'"amount":1' in bytes(event["body"])
    (kept,) = ledger.rows("SELECT body FROM conflict")
    assert b'"amount":2' in bytes(kept["body"])


def test_any_secret_of_a_source_may_match(client: FlaskClient) -> None:
    """A delivery signed with an old secret is accepted while both are configured."""
    body = json.dumps(stripe_event("evt_1")).encode()
    assert deliver(client, body, stripe_headers(body, secret=OLD_SECRET)).status_code == 200


FORGERIES: dict[str, Callable[[bytes], tuple[bytes, dict[str, str]]]] = {
    "missing_signature": lambda body: (body, {}),
    "bad_signature": lambda body: (body + b" ", stripe_headers(body)),
    "stale_timestamp": lambda body: (body, stripe_headers(body, at=time.time() - 3600)),
    "malformed_signature": lambda body: (body, {"Stripe-Signature": "nonsense"}),
}


@pytest.mark.parametrize("reason", FORGERIES)
def test_a_forgery_is_refused_and_counted(
    client: FlaskClient, ledger: Ledger, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An unverified delivery gets 401, is counted and leaves no event; its content is logged nowhere."""
    body = json.dumps(stripe_event("evt_1", note=CANARY)).encode()
    assert_problem(deliver(client, *FORGERIES[reason](body)), 401, "invalid-signature")
    wait_until(lambda: ledger.rows(REFUSED), lambda: f"the refusal to be counted:\n{caplog.text}")
    (counted,) = ledger.rows(REFUSED)
    assert counted == {"source": "stripe", "reason": reason, "count": 1}
    (sample,) = ledger.rows("SELECT * FROM rejection_sample")
    assert CANARY not in f"{sample}{caplog.text}"
    assert ledger.states() == {}


def test_a_wrong_secret_is_refused(client: FlaskClient, ledger: Ledger) -> None:
    """The response names no secret."""
    body = json.dumps(stripe_event("evt_1")).encode()
    answer = deliver(client, body, stripe_headers(body, secret=CANARY))
    assert_problem(answer, 401, "invalid-signature")
    assert not {secret for secret in (STRIPE_SECRET, OLD_SECRET, CANARY) if secret in answer.text}
    assert ledger.states() == {}


def test_an_unknown_source(client: FlaskClient) -> None:
    """An unknown source gets 404, and the response does not repeat its name."""
    answer = client.post(f"/webhooks/{CANARY}", data=b"{}")
    assert_problem(answer, 404, "unknown-source")
    assert CANARY not in answer.text


def test_other_errors_are_problems_too(client: FlaskClient) -> None:
    """A wrong method and a wrong path get problem documents without the path."""
    answer = client.get("/webhooks/stripe")
    assert_problem(answer, 405, "method-not-allowed")
    assert "POST" in answer.headers["Allow"]
    other = client.post(f"/{CANARY}")
    assert_problem(other, 404, "not-found")
    assert CANARY not in other.text


def test_a_source_without_a_secret(client: FlaskClient, ledger: Ledger) -> None:
    """A source without a secret gets 503, so that the provider retries, and the refusal is counted."""
    body, headers = stripe_delivery(stripe_event("evt_1"))
    answer = deliver(client, body, headers, "later")
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    wait_until(lambda: ledger.rows(REFUSED), "the refusal to be counted")
    assert [row["reason"] for row in ledger.rows(REFUSED)] == ["no_secret"]
    assert ledger.states() == {}


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b'{"type": "invoice.paid"}', "no event id"),
        (b"\xff\x00not json", "does not parse"),
        (b"", "does not parse"),
    ],
)
def test_a_verified_delivery_with_a_problem_is_parked(
    client: FlaskClient, ledger: Ledger, body: bytes, sentence: str
) -> None:
    """A verified delivery that has no id or does not parse is parked and answered 200."""
    first, second = [deliver(client, body, stripe_headers(body)) for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)
    assert second.headers["Idempotent-Replayed"] == "true"
    event = ledger.event(f"sha256:{hashlib.sha256(body).hexdigest()}")
    assert (event["state"], bytes(event["body"]), event["duplicates"]) == ("parked", body, 1)
    assert sentence in event["reason"]


def test_a_handshake_is_answered_and_not_recorded(client: FlaskClient, ledger: Ledger) -> None:
    """A signed url_verification gets its challenge and leaves no event; a forged one gets 401."""
    body = json.dumps({"type": "url_verification", "challenge": "c-123", "token": "t"}).encode()
    answer = deliver(client, body, slack_headers(body), "slack")
    assert (answer.status_code, answer.text) == (200, "c-123")
    forged = deliver(client, body, slack_headers(body, "another"), "slack")
    assert_problem(forged, 401, "invalid-signature")
    assert "c-123" not in forged.text
    assert ledger.states() == {}


def padded(length: int, name: str = "sized") -> bytes:
    """Return a Stripe event of exactly this many bytes, with the id `evt_<length>_<name>`."""
    event = stripe_event(f"evt_{length}_{name}", note="")
    event["data"]["object"]["note"] = "x" * (length - len(json.dumps(event)))
    return json.dumps(event).encode()


@pytest.mark.parametrize(("length", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)])
def test_the_limit_is_exact(client: FlaskClient, ledger: Ledger, length: int, status: int) -> None:
    """A body of max_body bytes is accepted; one byte more is 413 and counted."""
    body = padded(length)
    assert len(body) == length
    answer = deliver(client, body, stripe_headers(body))
    assert answer.status_code == status
    if status == 200:
        assert len(ledger.event(f"evt_{length}_sized")["body"]) == length
    else:
        assert_problem(answer, 413, "too-large")
        wait_until(lambda: ledger.rows(REFUSED), "the refusal to be counted")
        assert [row["reason"] for row in ledger.rows(REFUSED)] == ["too_large"]
        assert ledger.states() == {}


def test_a_nudge_follows_the_commit(
    make_app: MakeApp, migrated_url: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is committed before its nudge; duplicates nudge until the event is done."""
    heard: list[str] = []

    def nudge(_dispatcher: Dispatcher, count: int) -> None:
        heard.extend([ledger.event("evt_1").get("state", "not there")] * count)

    monkeypatch.setattr(Dispatcher, "nudge", nudge)
    client = make_app(migrated_url).test_client()
    deliver_event(client, "evt_1")
    deliver_event(client, "evt_1")
    assert heard == ["received", "received"]
    ledger.change("UPDATE event SET state = 'done'")
    deliver_event(client, "evt_1")
    assert heard == ["received", "received"]


def test_a_ledger_without_tables_is_unavailable(
    make_app: MakeApp, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a schema deliveries get 503 and /readyz gives the reason; no log line has payload or secret."""
    with caplog.at_level(logging.DEBUG, "receiver"):
        client = make_app(database_url).test_client()
        body = json.dumps(stripe_event("evt_1", note=CANARY)).encode()
        answer = deliver(client, body, stripe_headers(body) | {"X-Note": CANARY})
        forged = deliver(client, body, {})
    assert_problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) > 0
    assert forged.status_code == 401, "what does not verify needs no ledger"
    ready = client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json
    assert "firstseen migrate" in ready.json["ledger"]
    assert client.get("/healthz").status_code == 200
    assert CANARY not in answer.text
    assert CANARY not in caplog.text
    assert STRIPE_SECRET not in caplog.text


def test_readiness_reports_the_broker_and_needs_none(client: FlaskClient) -> None:
    """Without a broker web is ready, and /readyz reports the broker's state."""
    assert client.get("/readyz").json == {"status": "ok", "ledger": "ok", "broker": "untried"}
    deliver_event(client, "evt_1")
    wait_until(lambda: (client.get("/readyz").json or {})["broker"] == "unreachable", "the broker's state")
    assert client.get("/readyz").status_code == 200


def test_a_frozen_broker_holds_no_answer(
    make_app: MakeApp, migrated_url: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No response waits for a frozen broker; the nudges are sent after the thaw."""
    patience = 30.0
    monkeypatch.setattr("config.broker.PUBLISH_TIMEOUT", patience)
    client = make_app(migrated_url, valkey.url).test_client()
    deliver_event(client, "evt_warm")
    wait_until(lambda: valkey.queue_length("firstseen") == 1, "the first nudge")
    valkey.freeze()
    begun = time.monotonic()
    assert [deliver_event(client, f"evt_{number}").status_code for number in range(4)] == [200] * 4
    assert time.monotonic() - begun < patience
    valkey.thaw()
    wait_until(lambda: valkey.queue_length("firstseen") == 5, "all nudges")


def test_a_full_broker_is_logged_once(
    make_app: MakeApp, migrated_url: str, valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker out of memory is logged once, however many deliveries arrive."""
    client = make_app(migrated_url, valkey.url).test_client()
    with caplog.at_level(logging.INFO, "receiver"), valkey.client() as broker:
        broker.config_set("maxmemory", 1)
        for number in range(5):
            assert deliver_event(client, f"evt_{number}").status_code == 200
        wait_until(lambda: "Broker unreachable" in caplog.text, "the line")
        broker.config_set("maxmemory", 0)
        deliver_event(client, "evt_last")
        wait_until(lambda: "Broker ok" in caplog.text, "the other line")
    assert caplog.text.count("Broker unreachable") == 1
    assert "Traceback" not in caplog.text


@pytest.fixture(scope="module")
def web(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Run a real web process: only a real server handles Content-Length and chunks."""
    made = Deployment(
        tmp_path_factory.mktemp("web"),
        databases.migrated("sqlite"),
        NO_BROKER,
        sources=SOURCES,
        env={"TEST_STRIPE_SECRETS": STRIPE_SECRET, "TEST_SLACK_SECRET": SLACK_SECRET},
    )
    made.start_web()
    yield made
    made.stop()


def in_chunks(body: bytes) -> Iterator[bytes]:
    """Yield a body in pieces, which httpx sends chunked, without a Content-Length."""
    for start in range(0, len(body), 500):
        yield body[start : start + 500]


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize(("length", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413)])
def test_the_limit_is_exact_over_http(web: Deployment, length: int, status: int, *, chunked: bool) -> None:
    """A body up to the limit is accepted and a longer one refused, with a Content-Length or chunked."""
    name = "chunked" if chunked else "whole"
    body = padded(length, name)
    headers = stripe_headers(body)
    content = in_chunks(body) if chunked else body
    answer = web.client.post(f"{web.url}/webhooks/stripe", content=content, headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert bytes(Ledger(web.database_url).event(f"evt_{length}_{name}")["body"]) == body
    else:
        assert_problem(answer, 413, "too-large")


def test_an_endless_body_is_not_awaited(web: Deployment) -> None:
    """One byte over the limit gives 413 without waiting for the end of a chunked body."""
    with socket.create_connection(("127.0.0.1", int(web.url.rpartition(":")[2])), timeout=60) as connection:
        connection.sendall(b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(f"{LIMIT + 1:x}\r\n".encode() + bytes(LIMIT + 1) + b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    assert web.deliver("evt_after").status_code == 200


def test_a_body_that_breaks_off_is_not_recorded(web: Deployment) -> None:
    """A delivery whose connection closes in the middle of its body is not recorded."""
    body, headers = stripe_delivery(stripe_event("evt_broken"))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", int(web.url.rpartition(":")[2])), timeout=60) as connection:
        connection.sendall(head.encode() + body[:-1])
    assert web.deliver("evt_whole").status_code == 200
    ledger = Ledger(web.database_url)
    assert ledger.event("evt_broken") == {}
    assert ledger.rows("SELECT 1 FROM event WHERE state = 'parked'") == []
