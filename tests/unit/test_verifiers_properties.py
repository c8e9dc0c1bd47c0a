"""Properties of verifiers written as code: for any bytes they return or raise InvalidSignature."""

import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.endpoints import VERIFIERS
from receiver.signatures import InvalidSignature, Request
from tests.services.issuing import (
    PUBSUB,
    SNS_TOPIC,
    FixedKeys,
    ec_private,
    google_keys,
    plaid_answer,
    rsa_private,
    sns_certificate,
    sns_message,
)

NOW = time.time()
LONE = "\ud800"  # half of a pair, which no encoding takes
OPTIONS = {
    "aws-sns": {"topic_arn": SNS_TOPIC},
    "google-pubsub": PUBSUB,
    "paypal": {"webhook_id": "WH-1"},
    "plaid": {"client_id": "client", "environment": "sandbox"},
}
ANSWERS = {"google-pubsub": google_keys(), "plaid": plaid_answer()}
MADE = {
    name: make(OPTIONS.get(name, {}), FixedKeys(ANSWERS.get(name, sns_certificate())))
    for name, make in VERIFIERS.items()
}
NAMES = [
    "X-Twilio-Signature", "X-Twilio-Webhooks-Signature-Settings", "X-Mandrill-Signature", "Content-Type",
    "Plaid-Verification", "Authorization", "PAYPAL-TRANSMISSION-SIG", "PAYPAL-AUTH-ALGO", "PAYPAL-CERT-URL",
    "PAYPAL-TRANSMISSION-ID", "PAYPAL-TRANSMISSION-TIME",
]  # fmt: skip
VALUES = st.text(st.characters(max_codepoint=255)) | st.sampled_from(
    [
        "AAAA",
        "SHA256withRSA",
        "application/x-www-form-urlencoded",
        "https://api.paypal.com/v1/notifications/certs/CERT-1",
        "algorithm=HMAC_SHA256,=,,",
        "Basic YTpi",
        "Bearer a.b.c",
        "Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6Imdvb2dsZS0xIn0.W10.AA",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImtleS0xIn0.e30.AA",
        "eyJhbGciOiJFUzI1NiIsImtpZCI6ImtleS0xIiwiY3JpdCI6W119.e30.AA",
    ]
)
HEADERS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8)
FULL = st.fixed_dictionaries(dict.fromkeys(NAMES, VALUES)).map(lambda found: list(found.items()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MESSAGES = st.fixed_dictionaries({}, optional=dict.fromkeys(sns_message("SubscriptionConfirmation"), JSON))
ITEMS = st.lists(
    st.fixed_dictionaries(
        {"pspReference": JSON, "amount": JSON, "additionalData": st.just({"hmacSignature": "AAAA"}) | JSON}
    ).map(lambda item: {"NotificationRequestItem": item})
    | JSON,
    max_size=3,
)
BODIES = (
    st.binary()
    | st.builds(lambda change: json.dumps(sns_message() | {"Signature": "AAAA"} | change).encode(), MESSAGES)
    | st.builds(lambda items: json.dumps({"notificationItems": items}).encode(), ITEMS)
    | st.sampled_from([b"[" * 100_000, b"9" * 9_999, b"a&" * 20_000, b'{"notificationItems": [' * 9_000])
)
URLS = st.text() | st.sampled_from(
    ["https://[bad/?a", "//", "http://x:99999/", "https://u:p@x:1/?bodySHA256=x"]
)


@pytest.mark.parametrize("name", VERIFIERS)
@given(headers=HEADERS | FULL, body=BODIES, url=URLS, secrets=st.lists(st.text(max_size=8), max_size=2))
@example(headers=[], body=b"", url="", secrets=[LONE])
@example(
    headers=[("X-Twilio-Signature", "AAAA")],
    body=b"",
    url=f"https://x/{LONE}?bodySHA256={LONE}",
    secrets=["a"],
)
def test_verifiers_raise_only_invalid_signature(
    name: str, headers: list[tuple[str, str]], body: bytes, url: str, secrets: list[str]
) -> None:
    """A forged delivery of any shape is refused."""
    with pytest.raises(InvalidSignature):
        MADE[name].verify(secrets, Request("POST", url, tuple(headers), body), NOW, None)


NAMED = ["iat", "exp", "iss", "aud", "email", "email_verified", "request_body_sha256", "nbf"]
CLAIMS = st.dictionaries(st.sampled_from(NAMED), JSON) | JSON


@given(claims=CLAIMS)
@example(claims={"iat": NOW, "exp": NOW, "request_body_sha256": LONE, "iss": [], "nbf": "x"})
def test_wrong_claims_under_the_right_key_are_refused(claims: Any) -> None:
    payload = json.dumps(claims).encode()
    for name, key, algorithm, kid in (
        ("plaid", ec_private(), "ES256", "key-1"),
        ("google-pubsub", rsa_private(), "RS256", "google-1"),
    ):
        token = jwt.PyJWS().encode(payload, key, algorithm, {"kid": kid})
        headers = (("Plaid-Verification", token), ("Authorization", f"Bearer {token}"))
        with pytest.raises(InvalidSignature):
            MADE[name].verify(["s"], Request("POST", "https://x/", headers, b""), NOW, None)
