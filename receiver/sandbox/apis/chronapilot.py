"""ChronaPilot: a calendar's events, one's own or, under Connect, those of an end-user's account."""

from typing import Any

from flask import Request
from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal
from receiver.sandbox.apis import SandboxApi, header, operations
from receiver.sandbox.storage import Desk, Fields, remove, text

TEXTS = ("title", "description", "location", "start", "end")

account = header("X-Connected-Account")


def credential(request: Request) -> str:
    """Return the bearer token."""
    bearer = request.authorization
    return (bearer.token or "").strip() if bearer and bearer.type == "bearer" else ""


def owner(request: Request) -> str:
    """Return whose calendar it is: the connected account's, or the API key's own."""
    return f"account {account(request)}" if account(request) else f"key {credential(request)}"


def word(refusal: Refusal) -> dict[str, Any]:
    """Return an error; the document names the code of a conflict, the shape is ours."""
    return {"error": {"code": refusal.code, "message": refusal.detail}}


def _named(body: Fields) -> Fields:
    return {name: text(body, name) for name in TEXTS if name in body}


def create(desk: Desk) -> ResponseReturnValue:
    """POST: a new event."""
    body = desk.json()
    text(body, "title", needed=True)
    return desk.create("evt", _named(body) | {"sequence": 0, "createdAt": desk.now}), 201


def events(desk: Desk) -> ResponseReturnValue:
    """GET: all events."""
    return {"events": desk.list()}


def read(desk: Desk, identity: str) -> ResponseReturnValue:
    """GET: one event."""
    return desk.find(identity)


def replace(desk: Desk, identity: str) -> ResponseReturnValue:
    """PUT: say the event anew; the same once more has no effect."""
    body = desk.json()
    text(body, "title", needed=True)
    return desk.change(identity, _named(body))


def change(desk: Desk, identity: str) -> ResponseReturnValue:
    """PATCH: not idempotent by itself, as each one counts the event's sequence up."""
    sequence = int(desk.find(identity)["sequence"]) + 1
    return desk.change(identity, _named(desk.json()) | {"sequence": sequence})


CHRONAPILOT = SandboxApi(
    name="chronapilot",
    credential=credential,
    wanted="Send your API key as a bearer token in Authorization.",
    owner=owner,
    word=word,
    scopes={"credential": credential, "account": account},
    challenge="Bearer",
    routes=(
        *operations("/v1/events", {"POST": create, "GET": events}),
        *operations(
            "/v1/events/<identity>", {"GET": read, "PUT": replace, "PATCH": change, "DELETE": remove}
        ),
    ),
)
