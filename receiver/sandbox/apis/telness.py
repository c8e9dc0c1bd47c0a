"""Telness Connect: orders."""

import uuid
from typing import Any

from flask import Request
from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal
from receiver.sandbox.apis import SandboxApi, header, operations
from receiver.sandbox.storage import Desk, Fields, remove, text

_api_key, _authorization = header("X-API-Key"), header("Authorization")


def credential(request: Request) -> str:
    """Return X-API-Key, which the example sends, or else Authorization, which the text names."""
    return _api_key(request) or _authorization(request)


def word(refusal: Refusal) -> dict[str, Any]:
    """Return an error; the document names codes and statuses, the shape is ours."""
    return {"error": refusal.code, "message": refusal.detail}


def create(desk: Desk) -> ResponseReturnValue:
    """POST: order something."""
    body = desk.json()
    text(body, "customerId", needed=True)
    order = {"orderId": str(uuid.uuid4()), "status": "CONFIRMED", **_named(body), "createdAt": desk.now}
    desk.keep(order["orderId"], order)
    desk.happened()
    return order, 201


def orders(desk: Desk) -> ResponseReturnValue:
    """GET: all orders."""
    return {"orders": desk.list()}


def read(desk: Desk, identity: str) -> ResponseReturnValue:
    """GET: one order."""
    return desk.find(identity)


def replace(desk: Desk, identity: str) -> ResponseReturnValue:
    """PUT: say the order anew."""
    body = desk.json()
    text(body, "customerId", needed=True)
    return desk.change(identity, {"items": [], **_named(body)})


def change(desk: Desk, identity: str) -> ResponseReturnValue:
    """PATCH: not idempotent by itself, as each one is a revision of the order."""
    revision = int(desk.find(identity).get("revision", 0)) + 1
    return desk.change(identity, _named(desk.json()) | {"revision": revision})


def _named(body: Fields) -> Fields:
    named: Fields = {}
    if "customerId" in body:
        named["customerId"] = text(body, "customerId", needed=True)
    if "items" in body:
        if not isinstance(body["items"], list):
            raise Refusal(400, "validation_error", "items must be a list.")
        named["items"] = body["items"]
    return named


TELNESS = SandboxApi(
    name="telness",
    credential=credential,
    wanted="Send your API key in X-API-Key.",
    owner=credential,
    word=word,
    routes=(
        *operations("/api/v2/orders", {"POST": create, "GET": orders}),
        *operations(
            "/api/v2/orders/<identity>", {"GET": read, "PUT": replace, "PATCH": change, "DELETE": remove}
        ),
    ),
)
