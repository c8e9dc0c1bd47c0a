"""Salesly: contacts, one at a time or in batches."""

from typing import Any

from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal
from receiver.sandbox.apis import Route, SandboxApi, header, resource_routes
from receiver.sandbox.storage import Desk, Fields, text

PATH = "/api/v1/developers/contacts"
BATCH_MAX = 100
# The document's own sentence.
CONFLICT = "This Idempotency-Key has already been used with a different request."

api_key = header("x-api-key")


def error(refusal: Refusal) -> dict[str, Any]:
    """Return an error in the document's shape."""
    message = CONFLICT if refusal.code == "idempotency_conflict" else refusal.detail
    return {"error": {"type": refusal.code, "message": message}}


def contact(body: Any) -> Fields:
    """Return a contact's fields from JSON; raise Refusal 400."""
    if not isinstance(body, dict):
        raise Refusal(400, "validation_error", "A contact must be a JSON object.")
    return {"name": text(body, "name", needed=True), "type": text(body, "type") or "client"}


def create(desk: Desk) -> Fields:
    """Make a new contact."""
    return desk.create("cont", contact(desk.json()) | {"createdAt": desk.now})


def create_batch(desk: Desk) -> ResponseReturnValue:
    """Make several contacts or, when one of them is wrong, none."""
    wanted = desk.json().get("contacts")
    if not isinstance(wanted, list) or not 1 <= len(wanted) <= BATCH_MAX:
        raise Refusal(400, "validation_error", f"contacts must be a list of 1 to {BATCH_MAX} contacts.")
    made = [desk.create("cont", contact(body) | {"createdAt": desk.now}, effect=body) for body in wanted]
    return {"data": made}, 201


def replace(desk: Desk, identity: str) -> Fields:
    """Set the contact anew: naturally idempotent, as the same once more has no effect."""
    return desk.change(identity, contact(desk.json()))


def change(desk: Desk, identity: str) -> Fields:
    """Set the fields that are named."""
    body = desk.json()
    return desk.change(
        identity, {name: text(body, name, needed=True) for name in ("name", "type") if name in body}
    )


SALESLY = SandboxApi(
    name="salesly",
    credential=api_key,
    wanted="Send your API key in x-api-key.",
    owner=api_key,
    error=error,
    scopes={"credential": api_key},
    routes=(
        *resource_routes(PATH, "data", create, {"PUT": replace, "PATCH": change}, envelope="data"),
        Route("POST", f"{PATH}/batch", create_batch),
    ),
)
