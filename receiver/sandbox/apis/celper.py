"""Celper AI: candidates of a company, who are invited, selected or rejected."""

from flask import Request

from receiver.idempotency import Refusal
from receiver.sandbox.apis import Route, SandboxApi, View, header, resource_routes
from receiver.sandbox.storage import Desk, Fields, text

PATH = "/v1/candidates"
NAMES = ("firstName", "lastName", "email", "jobPositionId")
IDENTIFYING = NAMES[:3]
STATUSES = {"invite": "INVITED", "select": "SELECTED", "reject": "REJECTED"}

api_key = header("X-API-Key")


def company(request: Request) -> str:
    """Return whose key it is: all before its last `_`, so that a company has several keys. Our choice."""
    before, mark, _ = api_key(request).rpartition("_")
    return before if mark and before else api_key(request)


def create(desk: Desk) -> Fields:
    """Make a new candidate."""
    body = desk.json()
    fields = {name: text(body, name) for name in NAMES}
    if not any(fields[name] for name in IDENTIFYING):
        raise Refusal(400, "validation_error", f"A candidate needs one of {', '.join(IDENTIFYING)}.")
    return desk.create("cand", fields | {"status": "NEW", "createdAt": desk.now})


def change(desk: Desk, identity: str) -> Fields:
    """Set the fields that are named: naturally idempotent, as the same once more has no effect."""
    body = desk.json()
    return desk.change(identity, {name: text(body, name) for name in NAMES if name in body})


def move_to(status: str) -> View:
    """Return a view that moves a candidate to this status; each move is counted, so that it is an effect."""

    def view(desk: Desk, identity: str) -> Fields:
        desk.json()  # the body is not used, but must be JSON
        count = int(desk.find(identity).get("statusChanges", 0)) + 1
        return desk.change(identity, {"status": status, "statusChanges": count, "updatedAt": desk.now})

    return view


CELPER = SandboxApi(
    name="celper",
    credential=api_key,
    wanted="Send your API key in X-API-Key.",
    owner=company,
    # The document names the code of a conflict; the shape is ours.
    error=lambda refusal: {"error": {"code": refusal.code.upper(), "message": refusal.detail}},
    scopes={"company": company},
    routes=(
        *resource_routes(PATH, "candidates", create, {"PATCH": change}),
        *(Route("POST", f"{PATH}/<identity>/{verb}", move_to(status)) for verb, status in STATUSES.items()),
    ),
)
