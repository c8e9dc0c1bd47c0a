"""Twilio, Mandrill and Adyen: their libraries verify what we sign, and we verify what they sign."""

import hashlib
import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest
from Adyen.util import generate_notification_sig, is_valid_hmac_notification
from twilio.request_validator import RequestValidator

from config.providers import generate_secret, load_providers
from receiver.signatures import CannotSign, InvalidSignature, Request
from receiver.verifiers.adyen import Adyen
from receiver.verifiers.base import Unverified, Verifier
from receiver.verifiers.mandrill import Mandrill
from receiver.verifiers.twilio import Twilio

FORM = ("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8")
JSON = ("Content-Type", "application/json")
URL = "https://hooks.example.com/webhooks/twilio?a=%C3%A9&b="
FIELDS = {"From": "+14158675309", "Body": "Grüße & more", "Empty": "", "a": "1", "Z": "2"}
TOKEN, KEY = "token-1f", "0a1b2c3d"


def refused(verifier: Verifier, request: Request, *secrets: str) -> str:
    """Return the reason of a rejection."""
    with pytest.raises(InvalidSignature) as caught:
        verifier.verify(secrets, request, 0, None)
    return caught.value.reason


def sms(url: str = URL, signed_url: str | None = None, token: str = TOKEN, **how: Any) -> Request:
    """Return a form signed by Twilio's library."""
    signature = RequestValidator(token).compute_signature(signed_url or url, FIELDS, **how)
    return Request("POST", url, (("X-Twilio-Signature", signature), FORM), urlencode(FIELDS).encode())


def test_twilios_form_verifies() -> None:
    """Also with the second of two secrets; any change is refused."""
    request = sms()
    Twilio().verify(["other", TOKEN], request, 0, None)
    for changed in (
        replace(request, body=request.body + b"&x=1"),
        replace(request, body=request.body.replace(b"a=1", b"a=2")),
        replace(request, url=URL.replace("%C3%A9", "é")),
        replace(request, url=URL.replace("https", "http")),
    ):
        assert refused(Twilio(), changed, TOKEN) == "bad_signature"
    assert refused(Twilio(), request, "other") == "bad_signature"
    assert refused(Twilio(), request) == "no_secret"


def test_twilio_verifies_what_we_sign() -> None:
    """Form and JSON."""
    form = Twilio().sign(TOKEN, Request("POST", URL, (FORM,), urlencode(FIELDS).encode()), 0, "x")
    assert RequestValidator(TOKEN).validate(form.url, FIELDS, form.header("X-Twilio-Signature"))
    other = Twilio().sign(TOKEN, Request("POST", URL, (JSON,), b'{"a":1}'), 0, "x")
    assert RequestValidator(TOKEN).validate(other.url, '{"a":1}', other.header("X-Twilio-Signature"))
    Twilio().verify([TOKEN], other, 0, None)


@pytest.mark.parametrize("signed", [URL, URL.replace("example.com", "example.com:443")])
@pytest.mark.parametrize("called", [URL, URL.replace("example.com", "example.com:8443")])
def test_twilio_signs_with_or_without_the_port(signed: str, called: str) -> None:
    """The URL verifies either way."""
    request = sms(called, signed)
    if ":443" in signed and ":8443" in called:
        assert refused(Twilio(), request, TOKEN) == "bad_signature"
    else:
        Twilio().verify([TOKEN], request, 0, None)


def test_twilios_shared_keys_use_sha256() -> None:
    """The settings header names the hash; an unknown one is refused."""
    settings = ("X-Twilio-Webhooks-Signature-Settings", "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256")
    request = sms(algorithm="HMAC_SHA256")
    assert refused(Twilio(), request, TOKEN) == "bad_signature"
    Twilio().verify([TOKEN], replace(request, headers=(*request.headers, settings)), 0, None)
    other = (settings[0], "algorithm=HMAC_MD5")
    assert (
        refused(Twilio(), replace(request, headers=(*request.headers, other)), TOKEN) == "refused_algorithm"
    )


def test_twilio_signs_other_bodies_by_their_hash_in_the_url() -> None:
    """Without it the body is not signed, and refused."""
    body = b'{"a":1}'
    url = f"{URL}&bodySHA256={hashlib.sha256(body).hexdigest()}"
    signed = {
        at: ("X-Twilio-Signature", RequestValidator(TOKEN).compute_signature(at, {})) for at in (url, URL)
    }
    Twilio().verify([TOKEN], Request("POST", url, (signed[url], JSON), body), 0, None)
    Twilio().verify([TOKEN], Request("GET", URL, (signed[URL],), b""), 0, None)
    assert refused(Twilio(), Request("POST", url, (signed[url], JSON), b"{}"), TOKEN) == "unmet_claim"
    assert refused(Twilio(), Request("POST", URL, (signed[URL], JSON), body), TOKEN) == "missing_value"


def test_mandrill_signs_user_and_password() -> None:
    """They are part of the signed URL and arrive as Basic auth."""
    body = urlencode({"mandrill_events": '[{"event":"send"}]'}).encode()
    called = "https://hooks.example.com/webhooks/m"
    with_user = called.replace("://", "://user:pass@")
    signed = Mandrill().sign(TOKEN, Request("POST", with_user, (FORM,), body), 0, "x")
    basic = ("Authorization", "Basic dXNlcjpwYXNz")
    Mandrill().verify([TOKEN], replace(signed, url=called, headers=(*signed.headers, basic)), 0, None)
    assert refused(Mandrill(), replace(signed, url=called), TOKEN) == "bad_signature"
    assert refused(Mandrill(), replace(signed, body=body + b"+"), TOKEN) == "bad_signature"


def test_mandrill_signs_only_forms() -> None:
    """Another body is not in the signed bytes."""
    signed = Mandrill().sign(TOKEN, Request("POST", URL, (FORM,), b""), 0, "x")
    changed = replace(signed, headers=(*signed.headers[1:], JSON), body=b'{"evil":1}')
    assert refused(Mandrill(), changed, TOKEN) == "unreadable_body"
    with pytest.raises(CannotSign):
        Mandrill().sign(TOKEN, changed, 0, "x")


def item(reference: str, *, key: str = KEY, **fields: Any) -> dict[str, Any]:
    """Return an item signed by Adyen's library."""
    fields_sent = {
        "pspReference": reference,
        "merchantAccountCode": "Acme",
        "merchantReference": "order:1\\2",
        "amount": {"value": 1130, "currency": "EUR"},
        "eventCode": "AUTHORISATION",
        "success": "true",
    } | fields
    fields_sent["additionalData"] = {"hmacSignature": generate_notification_sig(fields_sent, key).decode()}
    return {"NotificationRequestItem": fields_sent}


def batch(*items: Any) -> Request:
    """Return a notification of these items."""
    body = json.dumps({"live": "false", "notificationItems": items}).encode()
    return Request("POST", URL, (JSON,), body)


def test_every_item_of_adyen_is_verified() -> None:
    """One forged item at any position refuses the whole batch."""
    Adyen().verify(["ff", KEY], batch(item("1"), item("2", originalReference="1")), 0, None)
    forged = item("2") | {}
    forged["NotificationRequestItem"]["success"] = "false"
    assert is_valid_hmac_notification(json.loads(batch(item("1"), forged).body), KEY)
    assert refused(Adyen(), batch(item("1"), forged), KEY) == "bad_signature"
    assert refused(Adyen(), batch(forged, item("1")), KEY) == "bad_signature"
    assert refused(Adyen(), batch(item("1", key="ff")), KEY) == "bad_signature"


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (batch(), "missing_signature"),
        (batch(item("1"), {}), "missing_signature"),
        (batch(item("1"), "x"), "missing_signature"),
        (batch({"NotificationRequestItem": {"additionalData": {"hmacSignature": ""}}}), "missing_signature"),
        (batch({"NotificationRequestItem": {"additionalData": {"hmacSignature": "?"}}}), "bad_signature"),
        (Request("POST", URL, (JSON,), b"[]"), "missing_signature"),
        (Request("POST", URL, (JSON,), b"{"), "unreadable_body"),
        (batch(*[item("1")] * 10_001), "unreadable_body"),
    ],
)
def test_malformed_adyen_notifications_are_refused(request_: Request, reason: str) -> None:
    """No items, no signature, or unreadable."""
    assert refused(Adyen(), request_, KEY) == reason


def test_adyen_verifies_what_we_sign() -> None:
    """A body without a place for its signature is not signed."""
    bare = batch(
        {"NotificationRequestItem": {"pspReference": "1", "amount": {"value": 1, "currency": "EUR"}}}
    )
    signed = Adyen().sign(KEY, bare, 0, "x")
    assert is_valid_hmac_notification(json.loads(signed.body), KEY)
    Adyen().verify([KEY], signed, 0, None)
    for request in (batch("x"), batch({"NotificationRequestItem": {"additionalData": 1}})):
        with pytest.raises(CannotSign):
            Adyen().sign(KEY, request, 0, "x")
    with pytest.raises(ValueError, match="hex"):
        Adyen().sign("no hex", bare, 0, "x")


def test_an_unverified_source_accepts_everything() -> None:
    """The source has confirmed it."""
    request = Request("POST", URL, (), b"id=tr_1")
    Unverified().verify((), request, 0, None)
    assert Unverified().sign("", request, 0, "x") is request


@pytest.mark.parametrize(("name", "verifier"), [("twilio", Twilio()), ("adyen", Adyen())])
def test_generated_secrets_sign_and_verify(name: str, verifier: Verifier) -> None:
    """As `make run` writes them."""
    secret = generate_secret(load_providers()[name])
    sent = verifier.sign(secret, batch({"NotificationRequestItem": {"pspReference": "1"}}), 0, "x")
    verifier.verify([secret], sent, 0, None)
