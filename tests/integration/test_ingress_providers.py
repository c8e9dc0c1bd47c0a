"""The endpoint for providers with special needs: handshakes, batches, response bodies and rejections."""

import json
import time

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from config.providers import load_providers
from receiver.signatures import Request, compile_scheme
from tests.integration.conftest import Serve
from tests.services.ledger import Ledger

SECRET = "tests-only-7c1e"
NAMES = (
    "meta",
    "x-twitter",
    "okta",
    "asana",
    "trello",
    "cloudevents-webhook",
    "xero",
    "line",
    "shiphero",
    "walmart",
)
SOURCES = "\n".join(
    f'[{name}]\nprovider = "{name}"\nsecrets_env = "TEST_SECRET"\n'
    + ("handshake = true\n" if load_providers()[name].has_unsigned_handshake else "")
    + ('verify_token_env = "TEST_VERIFY_TOKEN"\n' if name == "meta" else "")
    for name in NAMES
)
CLOSED = '\n[closed]\nprovider = "dropbox"\nsecrets_env = "TEST_SECRET"\n'
NO_SECRET = '\n[new]\nprovider = "asana"\nsecrets_env = "TEST_NOT_SET"\nhandshake = true\n'


@pytest.fixture
def client(serve: Serve, migrated_url: str) -> FlaskClient:
    """Return a client of an application with these sources, on SQLite and on PostgreSQL."""
    sources = SOURCES + CLOSED + NO_SECRET
    return serve(migrated_url, sources, TEST_SECRET=SECRET, TEST_VERIFY_TOKEN="token-1").test_client()


def deliver(client: FlaskClient, name: str, body: bytes, secret: str = SECRET) -> TestResponse:
    """Post a body signed by a provider preset."""
    unsigned = Request("POST", f"http://localhost/webhooks/{name}", (), body)
    scheme = compile_scheme(load_providers()[name].required_scheme)
    signed = scheme.sign(secret, unsigned, 0, "")
    return client.post(f"/webhooks/{name}", data=signed.body, headers=list(signed.headers))


def test_every_method_of_a_handshake_is_answered(client: FlaskClient, ledger: Ledger) -> None:
    """GET, HEAD, OPTIONS and POST handshakes get the response that their provider documents."""
    subscribed = client.get("/webhooks/meta?hub.mode=subscribe&hub.verify_token=token-1&hub.challenge=c1")
    assert (subscribed.status_code, subscribed.text) == (200, "c1")
    assert subscribed.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert subscribed.headers["X-Content-Type-Options"] == "nosniff"
    assert subscribed.headers["Content-Length"] == "2"
    checked = client.get("/webhooks/x-twitter?crc_token=c1")
    assert checked.json is not None
    assert checked.json["response_token"].startswith("sha256=")
    assert client.get("/webhooks/okta", headers={"X-Okta-Verification-Challenge": "c2"}).json == {
        "verification": "c2"
    }
    assert client.head("/webhooks/trello").status_code == 200
    asked = client.options("/webhooks/cloudevents-webhook", headers={"WebHook-Request-Origin": "e.example"})
    assert (asked.status_code, asked.headers["WebHook-Allowed-Origin"]) == (200, "e.example")
    assert ledger.states() == {}


def test_a_source_without_a_secret_can_shake_hands(client: FlaskClient, ledger: Ledger) -> None:
    """Asana's handshake delivers the secret, so a source without one answers it."""
    answer = client.post("/webhooks/new", headers={"X-Hook-Secret": "s-1"})
    assert (answer.status_code, answer.headers["X-Hook-Secret"], answer.data) == (200, "s-1", b"")
    assert client.post("/webhooks/new", data=b"{}").status_code == 503
    assert ledger.states() == {}


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("closed", "GET", 405),
        ("okta", "GET", 403),
        ("okta", "OPTIONS", 405),
        ("meta", "GET", 403),
        ("line", "HEAD", 405),
        ("nobody", "GET", 404),
        ("closed", "PUT", 405),
    ],
)
def test_other_methods_without_a_handshake_are_refused(
    client: FlaskClient, path: str, method: str, status: int
) -> None:
    """Without opt-in, challenge or token, methods other than POST are refused."""
    answer = client.open(f"/webhooks/{path}?hub.mode=subscribe&hub.challenge=c1&challenge=c1", method=method)
    assert answer.status_code == status
    assert "c1" not in answer.text
    assert (status == 403) == ("verify token is another" in answer.text)
    if status == 405 and method != "PUT":
        assert "POST" in answer.headers["Allow"]


def test_an_opt_in_opens_nothing_else(client: FlaskClient, ledger: Ledger) -> None:
    """An unsigned event of a source with a handshake is refused."""
    answer = client.post("/webhooks/meta", data=b'{"entry":[{"id":"1"}]}')
    assert answer.status_code == 401
    assert ledger.states() == {}


def test_a_rejection_without_a_body(client: FlaskClient) -> None:
    """Xero expects 200 and 401 with empty bodies."""
    body = json.dumps({"events": [], "firstEventSequence": 0}).encode()
    right, wrong = deliver(client, "xero", body), deliver(client, "xero", body, "another")
    assert (right.status_code, right.data) == (200, b"")
    assert (wrong.status_code, wrong.data) == (401, b"")
    assert "Set-Cookie" not in {*right.headers.keys(), *wrong.headers.keys()}


def test_a_success_with_the_providers_own_body(client: FlaskClient) -> None:
    """ShipHero expects its own JSON, for duplicates as well."""
    for _ in range(2):
        answer = deliver(client, "shiphero", b'{"webhook_type":"Order Update"}')
        assert answer.json == {"code": "200", "Status": "Success"}
        assert answer.status_code == 200


def test_a_batch_is_recorded_item_by_item(client: FlaskClient, ledger: Ledger) -> None:
    """Each item of a batch is an event, an item without an id is parked, and the batch can be resent."""
    events = [
        {"webhookEventId": "a", "type": "message"},
        {"type": "x"},
        {"webhookEventId": "b", "type": "follow"},
    ]
    first, again = [deliver(client, "line", json.dumps({"events": events}).encode()) for _ in range(2)]
    assert first.json is not None
    assert [event["event_id"] for event in first.json["events"]][::2] == ["a", "b"]
    assert again.headers["Idempotent-Replayed"] == "true"
    assert ledger.states() == {"received": 2, "parked": 1}
    grown = deliver(client, "line", json.dumps({"events": [*events, {"webhookEventId": "c"}]}).encode())
    assert "Idempotent-Replayed" not in grown.headers
    assert ledger.states() == {"received": 3, "parked": 1}


def test_a_header_with_an_underscore_arrives(client: FlaskClient) -> None:
    """Walmart's header is found although WSGI replaces underscores; two copies are refused."""
    unsigned = Request("POST", "http://localhost/webhooks/walmart", (), b'{"source":{}}')
    scheme = compile_scheme(load_providers()["walmart"].required_scheme)
    signed = scheme.sign(SECRET, unsigned, time.time(), "")
    headers = dict(signed.headers)
    assert client.post("/webhooks/walmart", data=signed.body, headers=headers).status_code == 200
    twice = {**headers, "Wm-Sec.Signature": headers["WM_SEC.SIGNATURE"]}
    assert client.post("/webhooks/walmart", data=signed.body, headers=twice).status_code == 401


def test_an_empty_batch_is_a_success(client: FlaskClient, ledger: Ledger) -> None:
    """LINE's verification sends no events and expects 200."""
    answer = deliver(client, "line", b'{"destination":"U1","events":[]}')
    assert (answer.status_code, answer.json) == (200, {"status": "accepted", "events": []})
    assert ledger.states() == {}
