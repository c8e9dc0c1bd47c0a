"""Salesly: contacts, one at a time or in batches."""

from typing import Any

from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal
from receiver.sandbox.apis import SandboxApi, header, operations
from receiver.sandbox.storage import Desk, Fields, remove, text

BATCH_MAX = 100
CONFLICT = "This Idempotency-Key has already been used with a different request."
"""The document's own sentence."""

_key = header("x-api-key")


def word(refusal: Refusal) -> dict[str, Any]:
    """Return an error in the document's shape."""
    message = CONFLICT if refusal.code == "idempotency_conflict" else refusal.detail
    return {"error": {"type": refusal.code, "message": message}}


def _contact(desk: Desk, body: Any) -> Fields:
    if not isinstance(body, dict):
        raise Refusal(400, "validation_error", "A contact must be a JSON object.")
    name = text(body, "name", needed=True)
    return {"name": name, "type": text(body, "type") or "client", "createdAt": desk.now}


def create(desk: Desk) -> ResponseReturnValue:
    """POST: a new contact."""
    return {"data": desk.create("cont", _contact(desk, desk.json()))}, 201


def create_batch(desk: Desk) -> ResponseReturnValue:
    """POST: several contacts or, when one of them is wrong, none."""
    wanted = desk.json().get("contacts")
    if not isinstance(wanted, list) or not 1 <= len(wanted) <= BATCH_MAX:
        raise Refusal(400, "validation_error", f"contacts must be a list of 1 to {BATCH_MAX} contacts.")
    made = [desk.create("cont", _contact(desk, body), effect=body) for body in wanted]
    return {"data": made}, 201


def contacts(desk: Desk) -> ResponseReturnValue:
    """GET: all contacts."""
    return {"data": desk.list()}


def read(desk: Desk, identity: str) -> ResponseReturnValue:
    """GET: one contact."""
    return {"data": desk.find(identity)}


def replace(desk: Desk, identity: str) -> ResponseReturnValue:
    """PUT: naturally idempotent; the same once more has no effect."""
    body = desk.json()
    named = {"name": text(body, "name", needed=True), "type": text(body, "type") or "client"}
    return {"data": desk.change(identity, named)}


def change(desk: Desk, identity: str) -> ResponseReturnValue:
    """PATCH: set what is named."""
    body = desk.json()
    named: Fields = {name: text(body, name, needed=True) for name in ("name", "type") if name in body}
    return {"data": desk.change(identity, named)}


SALESLY = SandboxApi(
    name="salesly",
    credential=_key,
    wanted="Send your API key in x-api-key.",
    owner=_key,
    word=word,
    scopes={"credential": _key},
    routes=(
        *operations("/api/v1/developers/contacts", {"POST": create, "GET": contacts}),
        *operations("/api/v1/developers/contacts/batch", {"POST": create_batch}),
        *operations(
            "/api/v1/developers/contacts/<identity>",
            {"GET": read, "PUT": replace, "PATCH": change, "DELETE": remove},
        ),
    ),
)
