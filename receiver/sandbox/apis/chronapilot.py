"""ChronaPilot: a calendar's events, one's own or, under Connect, those of an end-user's account."""

from flask import Request

from config.credentials import bearer_token
from receiver.sandbox.apis import SandboxApi, header, resource_routes
from receiver.sandbox.storage import Desk, Fields, text

TEXTS = ("title", "description", "location", "start", "end")

account = header("X-Connected-Account")


def credential(request: Request) -> str:
    """Return the bearer token."""
    return bearer_token(request.headers.get("Authorization", ""))


def owner(request: Request) -> str:
    """Return whose calendar it is: the connected account's, or the API key's own."""
    return f"account {account(request)}" if account(request) else f"key {credential(request)}"


def named(desk: Desk, *, whole: bool = True) -> Fields:
    """Return the texts in the request's body; a `whole` event needs a title."""
    body = desk.json()
    text(body, "title", needed=whole)
    return {name: text(body, name) for name in TEXTS if name in body}


def create(desk: Desk) -> Fields:
    """Make a new event."""
    return desk.create("evt", named(desk) | {"sequence": 0, "createdAt": desk.now})


def replace(desk: Desk, identity: str) -> Fields:
    """Set the event anew; the same once more has no effect."""
    return desk.change(identity, named(desk))


def change(desk: Desk, identity: str) -> Fields:
    """Set the named fields: not idempotent by itself, as each change counts the event's sequence up."""
    sequence = int(desk.find(identity)["sequence"]) + 1
    return desk.change(identity, named(desk, whole=False) | {"sequence": sequence})


CHRONAPILOT = SandboxApi(
    name="chronapilot",
    credential=credential,
    wanted="Send your API key as a bearer token in Authorization.",
    owner=owner,
    # The document names the code of a conflict; the shape is ours.
    error=lambda refusal: {"error": {"code": refusal.code, "message": refusal.detail}},
    scopes={"credential": credential, "account": account},
    challenge="Bearer",
    routes=resource_routes("/v1/events", "events", create, {"PUT": replace, "PATCH": change}),
)
