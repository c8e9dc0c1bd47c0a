"""Telness Connect: orders."""

import uuid

from flask import Request

from receiver.idempotency import Refusal
from receiver.sandbox.apis import SandboxApi, header, resource_routes
from receiver.sandbox.storage import Desk, Fields, text

_api_key, _authorization = header("X-API-Key"), header("Authorization")


def credential(request: Request) -> str:
    """Return X-API-Key, which the example sends, or else Authorization, which the text names."""
    return _api_key(request) or _authorization(request)


def named(desk: Desk, *, whole: bool = True) -> Fields:
    """Return the fields in the request's body; a `whole` order needs a customer."""
    body = desk.json()
    fields: Fields = {}
    if whole or "customerId" in body:
        fields["customerId"] = text(body, "customerId", needed=True)
    if "items" in body:
        if not isinstance(body["items"], list):
            raise Refusal(400, "validation_error", "items must be a list.")
        fields["items"] = body["items"]
    return fields


def create(desk: Desk) -> Fields:
    """Order something."""
    identity = str(uuid.uuid4())
    order = {"orderId": identity, "status": "CONFIRMED", **named(desk), "createdAt": desk.now}
    desk.keep(identity, order)
    desk.happened()
    return order


def replace(desk: Desk, identity: str) -> Fields:
    """Set the order anew."""
    return desk.change(identity, {"items": [], **named(desk)})


def change(desk: Desk, identity: str) -> Fields:
    """Set the named fields: not idempotent by itself, as each change is a revision of the order."""
    revision = int(desk.find(identity).get("revision", 0)) + 1
    return desk.change(identity, named(desk, whole=False) | {"revision": revision})


TELNESS = SandboxApi(
    name="telness",
    credential=credential,
    wanted="Send your API key in X-API-Key.",
    owner=credential,
    # The document names codes and statuses; the shape is ours.
    error=lambda refusal: {"error": refusal.code, "message": refusal.detail},
    routes=resource_routes("/api/v2/orders", "orders", create, {"PUT": replace, "PATCH": change}),
)
