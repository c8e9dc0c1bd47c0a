"""Mandrill (Mailchimp Transactional): an HMAC-SHA1 over the URL and the sorted form.

As in https://mailchimp.com/developer/transactional/guides/track-respond-activity-webhooks/.
"""

import hmac
from base64 import b64encode
from collections.abc import Iterator, Sequence

from config.providers import Locator
from receiver.payload import is_form
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import CannotSign, Request, from_base64, put, wire
from receiver.verifiers.base import Verifier, header, usable
from receiver.verifiers.crypto import has_hmac, sorted_fields

SIGNATURE = "X-Mandrill-Signature"


class Mandrill(Verifier):
    """The secret is the webhook's key."""

    may_wait = False

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`."""
        signature = from_base64(header(request, SIGNATURE))
        if not signature:
            raise InvalidSignature("malformed_signature", SIGNATURE)
        if not is_form(request.header("content-type")):
            raise InvalidSignature("unreadable_body", "it is not a form, and only forms are signed")
        keys, fields = usable(secrets), sorted_fields(request)
        if not has_hmac(signature, keys, (url + fields for url in _urls(request)), "sha1"):
            raise InvalidSignature("bad_signature", f"for {request.url.partition('?')[0]}")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """See `Verifier`."""
        if not is_form(request.header("content-type")):
            raise CannotSign("Mandrill signs forms only")
        content = wire(request.url) + sorted_fields(request)
        text = b64encode(hmac.digest(secret.encode(), content, "sha1")).decode()
        return put(Locator("header", SIGNATURE), text, request)


def _urls(request: Request) -> Iterator[bytes]:
    """Yield the URL as it arrived, and the URL with user and password where it had them."""
    yield wire(request.url)
    # They are signed as part of the URL, but arrive as Basic authentication.
    word, _, encoded = (request.header("authorization") or "").partition(" ")
    pair = from_base64(encoded.strip(" ")) if word.lower() == "basic" else None
    scheme, mark, rest = wire(request.url).partition(b"://")
    if pair and mark:
        yield scheme + mark + pair + b"@" + rest
