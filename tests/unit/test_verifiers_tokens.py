"""Plaid, Pub/Sub, PayPal and SNS: verifying with a fetched key, and refusing before one is fetched."""

import hmac
import json
import time
import zlib
from base64 import b64encode, urlsafe_b64encode
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from config.toml import ConfigError
from receiver.signatures import CannotSign, CannotVerify, InvalidSignature, Request
from receiver.verifiers.aws_sns import AwsSns
from receiver.verifiers.base import Verifier
from receiver.verifiers.google_pubsub import GooglePubSub
from receiver.verifiers.paypal import PayPal
from receiver.verifiers.plaid import Plaid
from tests.services.issuing import (
    PUBSUB,
    SNS_CONFIRM,
    SNS_TOPIC,
    FixedKeys,
    certificate,
    ec_private,
    google_keys,
    google_token,
    plaid_answer,
    plaid_token,
    rsa_private,
    sns_certificate,
    sns_message,
)

NOW = time.time()
BODY = b'{"webhook_type": "ITEM"}'
URL = "https://hooks.example.com/webhooks/a"
PLAID = {"client_id": "client", "environment": "sandbox"}


def refused(verifier: Verifier, request: Request, now: float = NOW) -> str:
    """Return the reason of a rejection."""
    with pytest.raises(InvalidSignature) as caught:
        verifier.verify(["secret"], request, now, None)
    return caught.value.reason


def to_plaid(token: str, body: bytes = BODY) -> Request:
    """Return a delivery with a Plaid token."""
    return Request("POST", URL, (("Plaid-Verification", token),), body)


def to_google(token: str) -> Request:
    """Return a delivery with a Google token."""
    return Request("POST", URL, (("Authorization", f"Bearer {token}"),), BODY)


def test_plaids_token_covers_the_body_for_five_minutes() -> None:
    """From a minute before it was issued until five after."""
    keys = FixedKeys(plaid_answer())
    verifier, request = Plaid(PLAID, keys), to_plaid(plaid_token(BODY, NOW))
    verifier.verify(["secret"], request, NOW, None)
    assert dict(keys.asked[0].form) == {"client_id": "client", "secret": "secret", "key_id": "key-1"}
    assert keys.asked[0].url == "https://sandbox.plaid.com/webhook_verification_key/get"
    assert "secret" not in repr(keys.asked[0])
    assert refused(verifier, replace(request, body=BODY + b"\n")) == "unmet_claim"
    assert refused(verifier, request, NOW + 302) == "stale_timestamp"
    assert refused(verifier, request, NOW - 62) == "future_timestamp"
    stranger = plaid_token(BODY, NOW, key=ec.generate_private_key(ec.SECP256R1()))
    assert refused(verifier, to_plaid(stranger)) == "bad_signature"
    for iat in (None, True, "1", 1e300):
        assert refused(verifier, to_plaid(plaid_token(BODY, NOW, iat=iat))) in (
            "malformed_timestamp",
            "malformed_signature",
        )


def unsigned(algorithm: str) -> str:
    """Return an unsigned token that names an algorithm."""
    parts = [{"alg": algorithm, "kid": "key-1"}, {"iat": int(NOW)}]
    return ".".join(urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (unsigned("none"), "refused_algorithm"),
        (unsigned("None"), "refused_algorithm"),
        (plaid_token(BODY, NOW, "HS256", "x" * 32), "refused_algorithm"),
        (plaid_token(BODY, NOW, "RS256", rsa_private()), "refused_algorithm"),
        (jwt.encode({}, "x" * 32), "refused_algorithm"),
        ("a.b.c", "malformed_signature"),
        ("é", "malformed_signature"),
        ("x" * 9_000, "malformed_signature"),
    ],
    ids=["none", "None", "HS256", "RS256", "no kid", "no token", "no ASCII", "too long"],
)
def test_no_key_is_fetched_for_another_algorithm(token: str, reason: str) -> None:
    """Only the pinned algorithm is accepted, and refusing costs no request."""
    keys = FixedKeys(plaid_answer())
    assert refused(Plaid(PLAID, keys), to_plaid(token)) == reason
    assert keys.asked == []


@pytest.mark.parametrize(
    "token",
    [unsigned("none"), google_token(NOW)[:-10], plaid_token(BODY, NOW)],
    ids=["none", "cut", "ES256"],
)
def test_googles_algorithm_is_pinned(token: str) -> None:
    """A cut signature is refused too."""
    verifier = GooglePubSub(PUBSUB, FixedKeys(google_keys()))
    assert refused(verifier, to_google(token)) in ("refused_algorithm", "bad_signature")


def test_a_public_key_is_no_shared_secret() -> None:
    """A token with an HMAC under the public key is refused."""
    signed = unsigned("HS256").rstrip(".")
    public = ec_private().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = urlsafe_b64encode(hmac.digest(public, signed.encode(), "sha256")).decode().rstrip("=")
    keys = FixedKeys(plaid_answer())
    assert refused(Plaid(PLAID, keys), to_plaid(f"{signed}.{signature}")) == "refused_algorithm"


def test_plaids_keys_expire() -> None:
    request = to_plaid(plaid_token(BODY, NOW))
    Plaid(PLAID, FixedKeys(plaid_answer(expired_at=int(NOW) + 9))).verify(["s"], request, NOW, None)
    assert refused(Plaid(PLAID, FixedKeys(plaid_answer(expired_at=int(NOW) - 9))), request) == "foreign_key"


@pytest.mark.parametrize("answer", [None, b"", b"[]", b'{"key": 1}', b'{"key": {"kty": "EC"}}', b"[" * 9_999])
def test_an_unusable_key_raises_cannot_verify(answer: bytes | None) -> None:
    """It says nothing about the delivery."""
    with pytest.raises(CannotVerify):
        Plaid(PLAID, FixedKeys(answer)).verify(["s"], to_plaid(plaid_token(BODY, NOW)), NOW, None)


def test_plaids_environment_is_one_of_two() -> None:
    """Another one stops web at its start."""
    with pytest.raises(ConfigError, match="production, sandbox"):
        Plaid(PLAID | {"environment": "development"}, FixedKeys(None))


def test_pubsub_checks_issuer_audience_account_and_time() -> None:
    verifier = GooglePubSub(PUBSUB, FixedKeys(google_keys()))
    verifier.verify((), to_google(google_token(NOW)), NOW, None)
    for wrong in (
        {"aud": "https://other.example.com"},
        {"aud": [PUBSUB["audience"], "other"]},
        {"email": "other@acme.iam.gserviceaccount.com"},
        {"email_verified": False},
        {"email_verified": "true"},
        {"iss": "https://accounts.example.com"},
    ):
        assert refused(verifier, to_google(google_token(NOW, **wrong))) == "unmet_claim"
    assert refused(verifier, to_google(google_token(NOW)), NOW + 3_662) == "stale_timestamp"
    assert refused(verifier, to_google(google_token(NOW)), NOW - 62) == "future_timestamp"
    assert refused(verifier, Request("POST", URL, (), BODY)) == "missing_signature"
    basic = Request("POST", URL, (("Authorization", "Basic YTpi"),), BODY)
    assert refused(verifier, basic) == "malformed_signature"


def test_pubsub_refetches_keys_once_for_an_unknown_key() -> None:
    """Keys rotate; if the new list lacks it too, the delivery is refused."""
    keys = FixedKeys(b'{"keys": [1, {"kid": "other"}]}')
    assert refused(GooglePubSub(PUBSUB, keys), to_google(google_token(NOW))) == "foreign_key"
    assert len(keys.asked) == 2


def transmission(body: bytes = b"{}", webhook: str = "WH-1", **headers: str) -> Request:
    """Return a delivery as PayPal sends it."""
    content = f"id-1|2026-11-25T10:00:00Z|{webhook}|{zlib.crc32(body)}"
    signature = rsa_private().sign(content.encode(), padding.PKCS1v15(), hashes.SHA256())
    default_headers = {
        "PAYPAL-TRANSMISSION-ID": "id-1",
        "PAYPAL-TRANSMISSION-TIME": "2026-11-25T10:00:00Z",
        "PAYPAL-CERT-URL": "https://api.paypal.com/v1/notifications/certs/CERT-1a",
        "PAYPAL-AUTH-ALGO": "SHA256withRSA",
        "PAYPAL-TRANSMISSION-SIG": b64encode(signature).decode(),
    }
    return Request("POST", URL, tuple((default_headers | headers).items()), body)


def paypal_certificate(name: str = "messageverificationcerts.paypal.com", **how: Any) -> FixedKeys:
    """Return keys with one of PayPal's certificates."""
    return FixedKeys(certificate(rsa_private().public_key(), name, **how))


def test_paypal_signs_for_one_webhook() -> None:
    """Another webhook's id, body or algorithm is refused."""
    verifier = PayPal({"webhook_id": "WH-1"}, paypal_certificate())
    verifier.verify((), transmission(), NOW, None)
    assert refused(verifier, transmission(webhook="WH-2")) == "bad_signature"
    assert refused(verifier, replace(transmission(), body=b"{} ")) == "bad_signature"
    assert refused(verifier, transmission(**{"PAYPAL-AUTH-ALGO": "SHA1withRSA"})) == "refused_algorithm"
    assert refused(verifier, transmission(**{"PAYPAL-TRANSMISSION-SIG": "?"})) == "malformed_signature"
    with pytest.raises(CannotSign):
        verifier.sign("", transmission(), NOW, "x")


STRANGE_ADDRESSES = [
    "http://{}/",
    "https://{}.evil.example/",
    "https://evil.example/{}",
    "https://evil.example#{}/",
    "https://{}@evil.example/",
    "https://{}\\@evil.example/",
    "https://{}:444/",
    "https://x.{}/",
    "https://{}\n.evil.example/",
    "//{}/",
    "",
]


@pytest.mark.parametrize("shape", STRANGE_ADDRESSES)
def test_no_certificate_is_fetched_from_elsewhere(shape: str) -> None:
    """An address that is not wholly the provider's own is refused without a request."""
    keys = paypal_certificate()
    address = shape.format("api.paypal.com") + "v1/notifications/certs/CERT-1a" if shape else ""
    found = refused(PayPal({"webhook_id": "WH-1"}, keys), transmission(**{"PAYPAL-CERT-URL": address}))
    address = shape.format("sns.eu-west-1.amazonaws.com") + "a.pem"
    other = refused(AwsSns({"topic_arn": SNS_TOPIC}, keys), message(SigningCertURL=address))
    assert {found, other} <= {"foreign_key", "missing_signature"}
    assert keys.asked == []


def test_a_certificate_must_be_in_force_and_the_providers() -> None:
    """Expired, of another name, of another kind; an unreadable one decides nothing."""
    past = datetime.now(UTC) - timedelta(days=9)
    for keys in (
        paypal_certificate(since=past, days=8),
        paypal_certificate("paypal.com.evil.example"),
        paypal_certificate("evilpaypal.com"),
        FixedKeys(certificate(ec.generate_private_key(ec.SECP256R1()).public_key(), "x.paypal.com")),
    ):
        assert refused(PayPal({"webhook_id": "WH-1"}, keys), transmission()) == "foreign_key"
    with pytest.raises(CannotVerify):
        PayPal({"webhook_id": "WH-1"}, FixedKeys(b"<html>")).verify((), transmission(), NOW, None)
    stranger = rsa.generate_private_key(65537, 2048).public_key()
    keys = FixedKeys(certificate(stranger, "x.paypal.com"))
    assert refused(PayPal({"webhook_id": "WH-1"}, keys), transmission()) == "bad_signature"


def message(kind: str = "Notification", **fields: Any) -> Request:
    """Return a message as SNS sends it."""
    body = json.dumps(sns_message(kind, **fields)).encode()
    return Request("POST", URL, (("Content-Type", "text/plain; charset=UTF-8"),), body)


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("kind", ["Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"])
def test_sns_signs_in_two_versions(version: str, kind: str) -> None:
    """Each kind of message verifies in both; a changed field does not."""
    verifier = AwsSns({"topic_arn": f"arn:aws:sns:other, {SNS_TOPIC}"}, FixedKeys(sns_certificate()))
    verifier.verify((), message(kind, SignatureVersion=version, Subject="Hi"), NOW, None)
    changed = sns_message(kind, SignatureVersion=version) | {"Message": "evil"}
    assert refused(verifier, Request("POST", URL, (), json.dumps(changed).encode())) == "bad_signature"


def test_sns_signs_for_anybody() -> None:
    """A stranger's topic is signed as well, so it is refused before its certificate is fetched."""
    keys = FixedKeys(sns_certificate())
    verifier = AwsSns({"topic_arn": SNS_TOPIC}, keys)
    assert refused(verifier, message(TopicArn="arn:aws:sns:eu-west-1:666:evil")) == "unmet_claim"
    assert keys.asked == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"[1]", "missing_signature"),
        (b"{", "unreadable_body"),
        (b"{}", "missing_signature"),
        (json.dumps(sns_message() | {"SignatureVersion": "3"}).encode(), "refused_algorithm"),
        (json.dumps(sns_message() | {"Type": "Other"}).encode(), "unmet_requirement"),
        (json.dumps(sns_message() | {"Signature": "?"}).encode(), "malformed_signature"),
        (json.dumps(sns_message() | {"TopicArn": ["x"]}).encode(), "missing_value"),
        (json.dumps(sns_message() | {"Subject": None}).encode(), "missing_value"),
    ],
    ids=["list", "no JSON", "nothing", "version", "type", "signature", "topic", "subject"],
)
def test_malformed_sns_messages_are_refused(body: bytes, reason: str) -> None:
    verifier = AwsSns({"topic_arn": SNS_TOPIC}, FixedKeys(sns_certificate()))
    assert refused(verifier, Request("POST", URL, (), body)) == reason


def test_a_subscription_is_confirmed_at_aws_only() -> None:
    """Its address is called only if it is AWS's own; a notification confirms nothing."""
    keys = FixedKeys(b"<ConfirmSubscriptionResponse/>")
    verifier = AwsSns({"topic_arn": SNS_TOPIC}, keys)
    assert not verifier.confirm(message())
    assert not verifier.confirm(message("UnsubscribeConfirmation"))
    assert verifier.confirm(message("SubscriptionConfirmation"))
    assert [ask.url for ask in keys.asked] == [SNS_CONFIRM]
    for address in ("https://evil.example/?Action=ConfirmSubscription&Token=1", "http" + SNS_CONFIRM[5:]):
        with pytest.raises(InvalidSignature):
            verifier.confirm(message("SubscriptionConfirmation", SubscribeURL=address))
    assert len(keys.asked) == 1
