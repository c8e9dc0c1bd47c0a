"""Stripe's signatures by its documentation, without the product's code: an independent check."""

import hashlib
import hmac
import json
import time
import uuid
from typing import Any

STRIPE_SECRET = "whsec_tests_only_2f6a"


def stripe_event(event_id: str | None = None, type: str = "invoice.paid", **data: Any) -> dict[str, Any]:  # noqa: A002
    """Return an event as Stripe sends it; `data` becomes `data.object`."""
    return {
        "id": event_id or f"evt_{uuid.uuid4().hex}",
        "object": "event",
        "api_version": "2025-03-31.basil",
        "created": int(time.time()),
        "type": type,
        "livemode": False,
        "pending_webhooks": 1,
        "data": {"object": data},
    }


def stripe_headers(body: bytes, *, secret: str = STRIPE_SECRET, at: float | None = None) -> dict[str, str]:
    """Sign a body as Stripe does: `t=<unix time>,v1=<HMAC-SHA256 of "t.body", in hex>`."""
    stamp = str(int(time.time() if at is None else at))
    signature = hmac.new(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return {
        "Stripe-Signature": f"t={stamp},v1={signature}",
        "Content-Type": "application/json; charset=utf-8",
    }


def stripe_delivery(event: dict[str, Any], *, secret: str = STRIPE_SECRET) -> tuple[bytes, dict[str, str]]:
    """Return the body and the signed headers of one delivery of this event."""
    body = json.dumps(event, separators=(",", ":")).encode()
    return body, stripe_headers(body, secret=secret)
