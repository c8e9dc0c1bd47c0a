"""Official libraries verify what we sign, and we verify what they sign."""

import time
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any

import nacl.signing
import pytest
import standardwebhooks
import stripe
from gocardless_pro import webhooks as gocardless
from gocardless_pro.errors import InvalidSignatureError
from paddle_billing.Notifications import Secret as PaddleSecret
from paddle_billing.Notifications.PaddleSignature import PaddleSignature
from sendgrid.helpers.eventwebhook import EventWebhook
from slack_sdk.signature import Clock, SignatureVerifier

from config.providers import load_providers
from receiver.signatures import InvalidSignature, Request, compile_scheme
from tests.services.presets import make_keys, signed_headers

CATALOGUE = load_providers()
BODY = '{"id":"evt_1","object":"event","type":"invoice.paid","customer":"J\u00fcrgen"}'


def scheme(name: str) -> Any:
    """Compile a preset."""
    return compile_scheme(CATALOGUE[name].required_scheme)


def post(headers: dict[str, str]) -> Request:
    """Make a POST of the body."""
    return Request("POST", "https://x.example/", tuple(headers.items()), BODY.encode())


def test_stripe_verifies_what_we_sign() -> None:
    """Its library accepts our header and the prefixed secret."""
    now = time.time()
    headers = signed_headers(scheme("stripe"), "whsec_k", BODY.encode(), now, "evt_1")
    event = stripe.Webhook.construct_event(BODY, headers["Stripe-Signature"], "whsec_k")  # type: ignore[no-untyped-call]
    assert event["id"] == "evt_1"


def test_we_verify_what_stripe_signs() -> None:
    now = int(time.time())
    signature = stripe.WebhookSignature._compute_signature(f"{now}.{BODY}", "whsec_k")
    header = f"t={now},v1={signature},v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39"
    scheme("stripe").verify(("whsec_k",), post({"Stripe-Signature": header}), now, None)


STANDARD = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_standard_webhooks_verifies_what_we_sign() -> None:
    """The reference library accepts our three headers."""
    headers = signed_headers(scheme("standard-webhooks"), STANDARD, BODY.encode(), time.time(), "msg_1")
    assert standardwebhooks.Webhook(STANDARD).verify(BODY, headers)["id"] == "evt_1"


def test_we_verify_what_standard_webhooks_signs() -> None:
    """Also among versions that we do not know."""
    now = datetime.now(UTC)
    signature = standardwebhooks.Webhook(STANDARD).sign("msg_1", now, BODY)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": f"v1a,AAAA {signature} v2,x",
    }
    scheme("standard-webhooks").verify((STANDARD,), post(headers), now.timestamp(), None)


def test_slack_verifies_what_we_sign() -> None:
    headers = signed_headers(scheme("slack"), "s3cr3t", BODY.encode(), time.time(), "Ev1")
    assert SignatureVerifier("s3cr3t").is_valid_request(BODY, headers)


def test_we_verify_what_slack_signs() -> None:
    now = int(time.time())
    signature = SignatureVerifier("s3cr3t", Clock()).generate_signature(timestamp=str(now), body=BODY)
    assert signature is not None
    headers = {"X-Slack-Request-Timestamp": str(now), "X-Slack-Signature": signature}
    scheme("slack").verify(("s3cr3t",), post(headers), now, None)


def test_githubs_documented_example_verifies() -> None:
    """From GitHub's page on validating deliveries."""
    signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    request = Request("POST", "https://x/", (("X-Hub-Signature-256", signature),), b"Hello, World!")
    scheme("github").verify(("It's a Secret to Everybody",), request, 0, None)


def test_gocardless_verifies_what_we_sign() -> None:
    """Its library finds the same events."""
    body = b'{"events":[{"id":"EV1","resource_type":"payments","action":"paid"}]}'
    headers = signed_headers(scheme("gocardless"), "secret", body, 0, "")
    (event,) = gocardless.parse(body, "secret", headers["Webhook-Signature"])
    assert event.id == "EV1"
    with pytest.raises(InvalidSignatureError):
        gocardless.parse(body + b" ", "secret", headers["Webhook-Signature"])


def test_paddle_verifies_what_we_sign() -> None:
    """Its library accepts our header for either of its secrets."""
    headers = signed_headers(scheme("paddle"), "pdl_new", BODY.encode(), time.time(), "")
    secrets = [PaddleSecret("pdl_old"), PaddleSecret("pdl_new")]
    assert PaddleSignature().verify(headers["Paddle-Signature"], BODY, secrets)


def test_we_verify_what_paddle_signs() -> None:
    now = int(time.time())
    signature = PaddleSignature.calculate_hmac("pdl", f"{now}:{BODY}".encode()).hexdigest()
    scheme("paddle").verify(("pdl",), post({"Paddle-Signature": f"ts={now};h1={signature}"}), now, None)


def test_sendgrid_verifies_what_we_sign() -> None:
    """With an ECDSA public key as SendGrid's settings show it."""
    public, private = make_keys(CATALOGUE["sendgrid"])
    headers = signed_headers(scheme("sendgrid"), private, BODY.encode(), 1.7e9, "")
    signature = headers["X-Twilio-Email-Event-Webhook-Signature"]
    stamp = headers["X-Twilio-Email-Event-Webhook-Timestamp"]
    assert EventWebhook(public).verify_signature(BODY, signature, stamp)
    assert not EventWebhook(public).verify_signature(f"{BODY} ", signature, stamp)


def test_we_verify_what_libsodium_signs_for_discord() -> None:
    """Discord's documented example uses PyNaCl."""
    key = nacl.signing.SigningKey.generate()
    signature = key.sign(b"1700000000" + BODY.encode()).signature.hex()
    headers = {"X-Signature-Ed25519": signature, "X-Signature-Timestamp": "1700000000"}
    secrets = (key.verify_key.encode().hex(),)
    scheme("discord").verify(secrets, post(headers), 1.7e9, None)
    with pytest.raises(InvalidSignature):
        scheme("discord").verify(secrets, post({**headers, "X-Signature-Timestamp": "1"}), 1.7e9, None)


def test_libsodium_verifies_what_we_sign_for_telnyx() -> None:
    """Telnyx's library uses PyNaCl, and signs time, bar and body."""
    public, private = make_keys(CATALOGUE["telnyx"])
    headers = signed_headers(scheme("telnyx"), private, BODY.encode(), 1.7e9, "")
    key = nacl.signing.VerifyKey(b64decode(public))
    assert key.verify(b"1700000000|" + BODY.encode(), b64decode(headers["telnyx-signature-ed25519"]))
