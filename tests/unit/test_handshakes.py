"""Handshakes of every shape in the catalogue: opt-in, and never an oracle for signatures."""

import hmac
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.providers import HandshakeTable, load_providers
from config.sources import Source
from receiver.endpoints import build_endpoints
from receiver.handshakes import HandshakeAnswer, Handshakes
from receiver.signatures import InvalidSignature, Request
from tests.services.presets import BODY, compiled

SECRET, TOKEN = "the-secret", "the-verify-token"
WITH_HANDSHAKE = [provider for provider in load_providers().values() if provider.handshake]


def handshakes_of(name: str, *, opted_in: bool = True) -> Handshakes:
    """Compile a provider's handshakes, by default for a source that opted in."""
    source = Source("a", load_providers()[name], (SECRET,), handshake=opted_in, verify_tokens=("old", TOKEN))
    return Handshakes(source)


def request(method: str, query: str = "", body: Any = b"", **headers: str) -> Request:
    """Make a request; `_` in header names stands for `-`, a body that is not bytes is sent as JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request(method, f"https://x.example/webhooks/a{query}", named, raw)


def mac(text: str) -> bytes:
    """Return the HMAC of a text under the secret."""
    return hmac.digest(SECRET.encode(), text.encode(), "sha256")


SUBSCRIBE = "?hub.mode=subscribe&hub.verify_token=the-verify-token&hub.challenge=1158201444"
VALIDATE = [
    {"eventType": "Microsoft.EventGrid.SubscriptionValidationEvent", "data": {"validationCode": "c1"}}
]
FORM = "application/x-www-form-urlencoded"
UNSIGNED: list[tuple[str, Request, int, Any, dict[str, str]]] = [
    ("meta", request("GET", SUBSCRIBE), 200, b"1158201444", {}),
    ("whatsapp", request("GET", SUBSCRIBE), 200, b"1158201444", {}),
    ("dropbox", request("GET", "?challenge=c1"), 200, b"c1", {}),
    ("nylas", request("GET", "?challenge=c1"), 200, b"c1", {}),
    ("oura", request("GET", "?verification_token=old&challenge=c1"), 200, {"challenge": "c1"}, {}),
    ("okta", request("GET", X_Okta_Verification_Challenge="c1"), 200, {"verification": "c1"}, {}),
    (
        "x-twitter",
        request("GET", "?crc_token=c1"),
        200,
        {"response_token": "sha256=" + b64encode(mac("c1")).decode()},
        {},
    ),
    (
        "linkedin",
        request("GET", "?challengeCode=890e-c1"),
        200,
        {"challengeCode": "890e-c1", "challengeResponse": mac("890e-c1").hex()},
        {},
    ),
    (
        "smartcar",
        request("POST", body={"eventType": "VERIFY", "data": {"challenge": "c1"}}),
        200,
        {"challenge": mac("c1").hex()},
        {},
    ),
    ("microsoft-graph", request("POST", "?validationToken=Check%3A%20c%201"), 200, b"Check: c 1", {}),
    ("sharepoint", request("POST", "?validationtoken=c1"), 200, b"c1", {}),
    ("front", request("POST", body={"type": "sync"}, X_Front_Challenge="c1"), 200, b"c1", {}),
    ("asana", request("POST", X_Hook_Secret="s-1"), 200, b"", {"X-Hook-Secret": "s-1"}),
    ("clio", request("POST", X_Hook_Secret="s-1"), 200, b"", {"X-Hook-Secret": "s-1"}),
    ("ringcentral", request("POST", Validation_Token="t-1"), 200, b"", {"Validation-Token": "t-1"}),
    ("vercel-log-drains", request("POST"), 200, b"", {"x-vercel-verify": "old"}),
    ("notion", request("POST", body={"verification_token": "secret_1"}), 200, b"", {}),
    ("woocommerce", request("POST", body=b"webhook_id=7", Content_Type=FORM), 200, b"", {}),
    ("trello", request("HEAD"), 200, b"", {}),
    ("mandrill", request("HEAD"), 200, b"", {}),
    ("strava", request("GET", SUBSCRIBE), 200, {"hub.challenge": "1158201444"}, {}),
    ("intercom", request("HEAD"), 200, b"", {}),
    ("mailchimp", request("GET"), 200, b"", {}),
    (
        "cloudevents-webhook",
        request("OPTIONS", WebHook_Request_Origin="events.example"),
        200,
        b"",
        {"WebHook-Allowed-Origin": "events.example", "WebHook-Allowed-Rate": "*"},
    ),
]
SIGNED: list[tuple[str, Request, int, Any]] = [
    ("slack", request("POST", body={"type": "url_verification", "challenge": "c1"}), 200, b"c1"),
    (
        "zoom",
        request("POST", body={"event": "endpoint.url_validation", "payload": {"plainToken": "c1"}}),
        200,
        {"plainToken": "c1", "encryptedToken": mac("c1").hex()},
    ),
    (
        "twitch",
        request(
            "POST", body={"challenge": "c1"}, Twitch_Eventsub_Message_Type="webhook_callback_verification"
        ),
        200,
        b"c1",
    ),
    ("discord", request("POST", body={"type": 1}), 200, {"type": 1}),
    ("discord", request("POST", body={"type": 0}), 204, b""),
    ("azure-event-grid", request("POST", body=VALIDATE), 200, {"validationResponse": "c1"}),
    ("tebex", request("POST", body={"type": "validation.webhook", "id": "v1"}), 200, {"id": "v1"}),
    ("wise", request("POST", body={"data": {}}, X_Test_Notification="true"), 200, b""),
]


def status_and_body(answer: HandshakeAnswer | None) -> tuple[int, Any]:
    """Return a response's status and body, parsed where it is JSON."""
    assert answer is not None
    is_json = answer.content_type == "application/json"
    return answer.status, json.loads(answer.body) if is_json else answer.body


@pytest.mark.parametrize(
    ("name", "asked", "status", "body", "headers"), UNSIGNED, ids=[row[0] for row in UNSIGNED]
)
def test_unsigned_handshakes_need_the_sources_opt_in(
    name: str, asked: Request, status: int, body: Any, headers: dict[str, str]
) -> None:
    """Each gets the exact status, body and headers that its provider wants."""
    answer = handshakes_of(name).before_verifying(asked)
    assert status_and_body(answer) == (status, body)
    assert answer is not None
    assert answer.headers == headers
    assert handshakes_of(name).after_verifying(asked) is None
    assert handshakes_of(name, opted_in=False).before_verifying(asked) is None


@pytest.mark.parametrize(("name", "asked", "status", "body"), SIGNED)
def test_signed_handshakes_are_answered_after_verification(
    name: str, asked: Request, status: int, body: Any
) -> None:
    """They need no opt-in."""
    assert status_and_body(handshakes_of(name, opted_in=False).after_verifying(asked)) == (status, body)
    assert handshakes_of(name).before_verifying(asked) is None


def test_every_handshake_of_the_catalogue_is_tested() -> None:
    """Each provider with a handshake is in one of the two tables above."""
    assert {provider.name for provider in WITH_HANDSHAKE} == {row[0] for row in UNSIGNED} | {
        row[0] for row in SIGNED
    }


@pytest.mark.parametrize("provider", WITH_HANDSHAKE, ids=lambda provider: provider.name)
def test_a_signed_event_is_not_taken_for_a_handshake(provider: Any) -> None:
    """An opt-in swallows no event."""
    unsigned = Request("POST", "https://x.example/webhooks/a", (("Content-Type", "application/json"),), BODY)
    if provider.scheme and provider.scheme.type in {"hmac", "hash", "token", "basic"}:
        unsigned = compiled(provider.name).sign(SECRET, unsigned, 1.7e9, "e1")
    if provider.name != "wise":
        assert handshakes_of(provider.name).before_verifying(unsigned) is None
        assert handshakes_of(provider.name).after_verifying(unsigned) is None


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("meta", request("GET", SUBSCRIBE.replace("the-verify", "another"))),
        ("meta", request("GET", SUBSCRIBE.replace("verify_token=", "verify_token=%C3%A4"))),
        ("meta", request("GET", SUBSCRIBE.replace("hub.verify_token", "hub.x"))),
        ("meta", request("GET", SUBSCRIBE.replace("subscribe", "unsubscribe"))),
        ("meta", request("POST", SUBSCRIBE)),
        ("dropbox", request("GET")),
        ("dropbox", request("GET", "?challenge=")),
        ("dropbox", request("GET", "?challenge=a&challenge=b")),
        ("dropbox", request("GET", "?challenge=" + "c" * 1_025)),
        ("asana", request("POST", X_Hook_Secret="a b")),
        ("asana", request("POST", X_Hook_Secret="a\r\nSet-Cookie: x")),
        ("asana", request("POST", X_Hook_Secret="s", X_Hook_Signature="00")),
        ("slack", request("POST", body={"type": "event_callback", "challenge": "c"})),
        ("slack", request("POST", body={"type": "url_verification", "challenge": ["c"]})),
        ("slack", request("POST", body=b"\xff")),
        ("slack", request("GET", body={"type": "url_verification", "challenge": "c"})),
        ("discord", request("POST", body={"type": 1, "event": {"type": "ENTITLEMENT_CREATE"}})),
        ("cloudevents-webhook", request("OPTIONS")),
    ],
)
def test_wrong_handshakes_are_not_answered(name: str, asked: Request) -> None:
    """Wrong token, wrong method, no challenge, or a challenge that would split a header."""
    assert handshakes_of(name).before_verifying(asked) is None
    assert handshakes_of(name).after_verifying(asked) is None


@pytest.mark.parametrize("name", ["x-twitter", "linkedin", "smartcar"])
def test_a_signed_challenge_never_verifies_as_an_event(name: str) -> None:
    """Anyone may ask with a challenge, so it must be a bare word, and a bare word is never an event."""
    event = '{"id":"forged"}'
    for asked in (
        request("GET", f"?crc_token={event}&challengeCode={event}"),
        request("POST", body={"eventType": "VERIFY", "data": {"challenge": event}}),
    ):
        assert handshakes_of(name).before_verifying(asked) is None
    source = Source("a", load_providers()[name], (SECRET,), handshake=True)
    endpoint = build_endpoints({"a": source})["a"]
    for body, accepted in ((event.encode(), True), (b"bareword", False), (b"7", False), (b"", False)):
        signed = endpoint.scheme.sign(SECRET, Request("POST", "https://x/", (), body), 0, "")
        if accepted:
            endpoint.verify(signed, 0)
        else:
            with pytest.raises(InvalidSignature):
                endpoint.verify(signed, 0)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"signed": False, "answer": "{challenge}"}, "go together"),
        ({"signed": False, "challenge": "query:c"}, "go together"),
        ({"signed": True, "challenge": "query:c", "answer": "{proof}"}, "proof and an answer"),
        ({"signed": True, "answer": "{secret}"}, "not a placeholder"),
        ({"signed": False}, "would swallow events"),
        ({"signed": True, "headers": {"a b": "c"}}, "not a header's name"),
        ({"signed": True, "when": {"cookie:a": "b"}}, "is not a place"),
    ],
)
def test_a_wrong_table_is_refused(table: dict[str, Any], sentence: str) -> None:
    """One that cannot be answered, or that would swallow events."""
    with pytest.raises(ValueError, match=sentence):
        HandshakeTable.model_validate({"method": "POST", **table})


TEXTS = st.text() | st.sampled_from(["\r\n", "\ud800", "\0", "c1", "\u00e4"])
NAMES = st.sampled_from(["X-Hook-Secret", "Validation-Token", "WebHook-Request-Origin", "X-Front-Challenge"])
BODIES = st.binary() | st.dictionaries(st.sampled_from(["type", "challenge", "event", "payload"]), TEXTS).map(
    lambda value: json.dumps(value).encode()
)


ALL = [handshakes_of(provider.name) for provider in WITH_HANDSHAKE]


@settings(max_examples=200)
@given(
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS"]),
    TEXTS.map(lambda text: f"https://x/?challenge={text}&crc_token={text}&validationToken={text}"),
    st.lists(st.tuples(NAMES, TEXTS), max_size=3).map(tuple),
    BODIES,
)
def test_no_bytes_raise(method: str, url: str, headers: Any, body: bytes) -> None:
    """Any request gets a bounded response or none."""
    asked = Request(method, url, headers, body)
    for handshakes in ALL:
        for answer in (handshakes.before_verifying(asked), handshakes.after_verifying(asked)):
            if answer is not None:
                assert len(answer.body) <= 8_192
                assert all(value.isascii() and value.isprintable() for value in answer.headers.values())
