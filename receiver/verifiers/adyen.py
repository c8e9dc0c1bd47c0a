"""Adyen's standard notifications: each item carries its own HMAC over eight of its fields.

As in https://docs.adyen.com/development-resources/webhooks/verify-hmac-signatures and Adyen's Python library.
"""

import hmac
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from config.providers import key_bytes
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import CannotSign, Request, as_text, dig, from_base64
from receiver.verifiers.base import Verifier
from receiver.verifiers.crypto import has_hmac

FIELDS = tuple(
    tuple(name.split("."))
    for name in (
        "pspReference",
        "originalReference",
        "merchantAccountCode",
        "merchantReference",
        "amount.value",
        "amount.currency",
        "eventCode",
        "success",
    )
)
# Items of one delivery; Adyen sends one, or a few.
MOST_ITEMS = 10_000


class Adyen(Verifier):
    """The secret is the HMAC key in hex. Only the eight fields are signed."""

    may_wait = False

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Verifier`; one item without a good signature refuses them all."""
        keys = [key for secret in secrets if (key := key_bytes(secret, "hex"))]
        if not keys:
            raise InvalidSignature("no_secret")
        # Every item, though Adyen's library checks the first: each becomes an event of its own here.
        for number, item in enumerate(_items(request)):
            signature = dig(item, ("additionalData", "hmacSignature"))
            if not isinstance(signature, str) or not signature:
                raise InvalidSignature("missing_signature", f"item {number}")
            found = from_base64(signature) or b""
            if not has_hmac(found, keys, [_content(item, number)], "sha256"):
                raise InvalidSignature("bad_signature", f"item {number}")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """See `Verifier`; the signatures go into a copy of the body."""
        key = key_bytes(secret, "hex")
        if key is None:
            raise ValueError("the secret is not a hex key")
        payload = json.loads(json.dumps(request.payload.value))
        entries = dig(payload, ("notificationItems",))
        for number, entry in enumerate(entries if isinstance(entries, list) else ()):
            _put_signature(dig(entry, ("NotificationRequestItem",)), number, key)
        return replace(request, body=json.dumps(payload, separators=(",", ":")).encode())


def _put_signature(item: Any, number: int, key: bytes) -> None:
    if not isinstance(item, dict) or not isinstance(item.setdefault("additionalData", {}), dict):
        raise CannotSign(f"item {number} has no place for a signature")
    try:
        content = _content(item, number)
    except InvalidSignature as error:
        raise CannotSign(str(error)) from None
    signature = hmac.digest(key, content, "sha256")
    item["additionalData"]["hmacSignature"] = b64encode(signature).decode()


def _items(request: Request) -> list[Any]:
    if request.payload.problem:
        raise InvalidSignature("unreadable_body", request.payload.problem)
    entries = dig(request.payload.value, ("notificationItems",))
    if not isinstance(entries, list) or not entries:
        raise InvalidSignature("missing_signature", "json:notificationItems")
    if len(entries) > MOST_ITEMS:
        raise InvalidSignature("unreadable_body", f"it has more than {MOST_ITEMS} items")
    return [dig(entry, ("NotificationRequestItem",)) for entry in entries]


def _content(item: Any, number: int) -> bytes:
    """Return the signed bytes of an item, the `number`-th of its delivery; raise InvalidSignature."""
    texts = []
    for path in FIELDS:
        value = dig(item, path)
        text = "" if value is None else as_text(value)
        if isinstance(value, bool):
            text = "true" if value else "false"
        if text is None:
            raise InvalidSignature("unreadable_body", f"item {number} has a signed field that is no text")
        texts.append(text)
    return ":".join(texts).encode("utf-8", "surrogatepass")
