"""Twilio, Mandrill and Adyen: their own libraries sign and ours verifies, and the other way round."""

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
    """Return the reason for which a request is refused."""
    with pytest.raises(InvalidSignature) as caught:
        verifier.verify(secrets, request, 0, None)
    return caught.value.reason


def sms(url: str = URL, signed_url: str | None = None, token: str = TOKEN, **how: Any) -> Request:
    """Return a form that Twilio's own library signed."""
    signature = RequestValidator(token).compute_signature(signed_url or url, FIELDS, **how)
    return Request("POST", url, (("X-Twilio-Signature", signature), FORM), urlencode(FIELDS).encode())


def test_twilios_form_verifies() -> None:
    """What Twilio's library signs verifies, with the second of two secrets too; any change does not."""
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


def test_twilio_verifies_ours() -> None:
    """Twilio's library accepts what we sign, form and JSON."""
    form = Twilio().sign(TOKEN, Request("POST", URL, (FORM,), urlencode(FIELDS).encode()), 0, "x")
    assert RequestValidator(TOKEN).validate(form.url, FIELDS, form.header("X-Twilio-Signature"))
    other = Twilio().sign(TOKEN, Request("POST", URL, (JSON,), b'{"a":1}'), 0, "x")
    assert RequestValidator(TOKEN).validate(other.url, '{"a":1}', other.header("X-Twilio-Signature"))
    Twilio().verify([TOKEN], other, 0, None)


@pytest.mark.parametrize("signed", [URL, URL.replace("example.com", "example.com:443")])
@pytest.mark.parametrize("called", [URL, URL.replace("example.com", "example.com:8443")])
def test_twilio_signs_with_or_without_the_port(signed: str, called: str) -> None:
    """The URL verifies with its port and without, whichever of them Twilio signed."""
    request = sms(called, signed)
    if ":443" in signed and ":8443" in called:
        assert refused(Twilio(), request, TOKEN) == "bad_signature"
    else:
        Twilio().verify([TOKEN], request, 0, None)


def test_twilios_shared_keys_use_sha256() -> None:
    """The settings header names the hash; one that is not known is refused."""
    settings = ("X-Twilio-Webhooks-Signature-Settings", "key=webhooks_sharedkey_1,algorithm=HMAC_SHA256")
    request = sms(algorithm="HMAC_SHA256")
    assert refused(Twilio(), request, TOKEN) == "bad_signature"
    Twilio().verify([TOKEN], replace(request, headers=(*request.headers, settings)), 0, None)
    other = (settings[0], "algorithm=HMAC_MD5")
    assert (
        refused(Twilio(), replace(request, headers=(*request.headers, other)), TOKEN) == "refused_algorithm"
    )


def test_twilios_other_bodies_stand_in_the_url() -> None:
    """A body that is no form must have the hash in the URL; without one nothing signs it."""
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
    """The URL's user and password are signed and arrive as Basic auth."""
    body = urlencode({"mandrill_events": '[{"event":"send"}]'}).encode()
    called = "https://hooks.example.com/webhooks/m"
    with_user = called.replace("://", "://user:pass@")
    signed = Mandrill().sign(TOKEN, Request("POST", with_user, (FORM,), body), 0, "x")
    basic = ("Authorization", "Basic dXNlcjpwYXNz")
    Mandrill().verify([TOKEN], replace(signed, url=called, headers=(*signed.headers, basic)), 0, None)
    assert refused(Mandrill(), replace(signed, url=called), TOKEN) == "bad_signature"
    assert refused(Mandrill(), replace(signed, body=body + b"+"), TOKEN) == "bad_signature"


def test_mandrill_sends_forms() -> None:
    """A body of another kind is not in the signed bytes, so it is refused, and nothing signs it."""
    signed = Mandrill().sign(TOKEN, Request("POST", URL, (FORM,), b""), 0, "x")
    changed = replace(signed, headers=(*signed.headers[1:], JSON), body=b'{"evil":1}')
    assert refused(Mandrill(), changed, TOKEN) == "unreadable_body"
    with pytest.raises(CannotSign):
        Mandrill().sign(TOKEN, changed, 0, "x")


def item(reference: str, *, key: str = KEY, **fields: Any) -> dict[str, Any]:
    """Return an item that Adyen's library signed."""
    said = {
        "pspReference": reference,
        "merchantAccountCode": "Acme",
        "merchantReference": "order:1\\2",
        "amount": {"value": 1130, "currency": "EUR"},
        "eventCode": "AUTHORISATION",
        "success": "true",
    } | fields
    said["additionalData"] = {"hmacSignature": generate_notification_sig(said, key).decode()}
    return {"NotificationRequestItem": said}


def batch(*items: Any) -> Request:
    """Return a notification of these items."""
    body = json.dumps({"live": "false", "notificationItems": items}).encode()
    return Request("POST", URL, (JSON,), body)


def test_every_item_of_adyen_is_looked_at() -> None:
    """Items that Adyen's library signed verify; one bad one, wherever it stands, refuses all."""
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
def test_what_adyen_never_sends(request_: Request, reason: str) -> None:
    """A batch without items, an item without signature, and what does not parse are refused."""
    assert refused(Adyen(), request_, KEY) == reason


def test_adyen_verifies_ours() -> None:
    """Adyen's library accepts what we sign; a body without items' places is not signed."""
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


def test_who_signs_nothing_is_let_in() -> None:
    """A source that confirms it lets everything in."""
    request = Request("POST", URL, (), b"id=tr_1")
    Unverified().verify((), request, 0, None)
    assert Unverified().sign("", request, 0, "x") is request


@pytest.mark.parametrize(("name", "verifier"), [("twilio", Twilio()), ("adyen", Adyen())])
def test_a_made_up_secret_will_do(name: str, verifier: Verifier) -> None:
    """What `make run` writes for a provider of code can sign and verify."""
    secret = generate_secret(load_providers()[name])
    sent = verifier.sign(secret, batch({"NotificationRequestItem": {"pspReference": "1"}}), 0, "x")
    verifier.verify([secret], sent, 0, None)
