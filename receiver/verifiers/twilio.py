"""Twilio: an HMAC over the URL and the sorted form, or over a URL that carries the body's SHA-256.

As in https://www.twilio.com/docs/usage/webhooks/webhooks-security and twilio-python's RequestValidator.
"""

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Sequence

from config.providers import Locator
from receiver.payload import is_form
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import Request, from_base64, put, wire
from receiver.verifiers.base import Verifier, header, usable
from receiver.verifiers.crypto import has_hmac, sorted_fields, url_spellings

SIGNATURE = "X-Twilio-Signature"
SETTINGS = "X-Twilio-Webhooks-Signature-Settings"
BODY_HASH = "bodySHA256"
HASHES = {"HMAC_SHA1": "sha1", "HMAC_SHA256": "sha256"}


class Twilio(Verifier):
    """The secret is the account's auth token, or the secret of a shared key."""

    may_wait = False

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`."""
        signature = from_base64(header(request, SIGNATURE))
        if not signature:
            raise InvalidSignature("malformed_signature", SIGNATURE)
        keys, algorithm, signed = usable(secrets), _hash_name(request), _signed_body(request)
        # Twilio signs some URLs with their port and some without.
        contents = (url + signed for url in url_spellings(request.url))
        if not has_hmac(signature, keys, contents, algorithm):
            raise InvalidSignature("bad_signature", f"for {request.url.partition('?')[0]}")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """See `Verifier`; the hash of a body that is no form goes into the URL."""
        if not is_form(request.header("content-type")) and BODY_HASH not in request.query:
            request = put(Locator("query", BODY_HASH), hashlib.sha256(request.body).hexdigest(), request)
        content = wire(request.url) + _signed_body(request)
        text = b64encode(hmac.digest(secret.encode(), content, _hash_name(request))).decode()
        return put(Locator("header", SIGNATURE), text, request)


def _hash_name(request: Request) -> str:
    settings = dict(
        part.strip().partition("=")[::2] for part in (request.header(SETTINGS) or "").split(",", 10)
    )
    name = settings.get("algorithm") or "HMAC_SHA1"
    if name not in HASHES:
        raise InvalidSignature("refused_algorithm", SETTINGS)
    return HASHES[name]


def _signed_body(request: Request) -> bytes:
    """Return what is signed after the URL; a body that is no form must be the one that the URL names."""
    if is_form(request.header("content-type")):
        return sorted_fields(request)
    found = request.query.get(BODY_HASH, ())
    if not found and not request.body:
        return b""
    if len(found) != 1:
        raise InvalidSignature("missing_value", f"query:{BODY_HASH}")
    digest = hashlib.sha256(request.body).hexdigest()
    if not hmac.compare_digest(digest.encode(), found[0].lower().encode("utf-8", "surrogatepass")):
        raise InvalidSignature("unmet_claim", f"{BODY_HASH} is not the body's hash")
    return b""
