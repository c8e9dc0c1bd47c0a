"""Celper AI: candidates of a company, who are invited, selected or rejected."""

from typing import Any

from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal
from receiver.sandbox.apis import SandboxApi, header, operations
from receiver.sandbox.storage import Desk, remove, text

NAMES = ("firstName", "lastName", "email", "jobPositionId")
IDENTIFIES = NAMES[:3]

_key = header("X-API-Key")


def company(request: Any) -> str:
    """Return whose key it is: all before its last `_`, so that a company has several keys. Our choice."""
    before, mark, _ = _key(request).rpartition("_")
    return before if mark and before else _key(request)


def word(refusal: Refusal) -> dict[str, Any]:
    """Return an error; the document names the code of a conflict, the shape is ours."""
    return {"error": {"code": refusal.code.upper(), "message": refusal.detail}}


def create(desk: Desk) -> ResponseReturnValue:
    """POST: a new candidate."""
    body = desk.json()
    fields = {name: text(body, name) for name in NAMES}
    if not any(fields[name] for name in IDENTIFIES):
        raise Refusal(400, "validation_error", f"A candidate needs one of {', '.join(IDENTIFIES)}.")
    return desk.create("cand", fields | {"status": "NEW", "createdAt": desk.now}), 201


def candidates(desk: Desk) -> ResponseReturnValue:
    """GET: all of the company's candidates."""
    return {"candidates": desk.list()}


def read(desk: Desk, identity: str) -> ResponseReturnValue:
    """GET: one candidate."""
    return desk.find(identity)


def change(desk: Desk, identity: str) -> ResponseReturnValue:
    """PATCH: naturally idempotent, as it sets what it names; the same once more has no effect."""
    body = desk.json()
    return desk.change(identity, {name: text(body, name) for name in NAMES if name in body})


def invite(desk: Desk, identity: str) -> ResponseReturnValue:
    """POST: send an invitation; each one that is sent is an effect."""
    return _move(desk, identity, "INVITED")


def select(desk: Desk, identity: str) -> ResponseReturnValue:
    """POST: choose the candidate."""
    return _move(desk, identity, "SELECTED")


def reject(desk: Desk, identity: str) -> ResponseReturnValue:
    """POST: turn the candidate down."""
    return _move(desk, identity, "REJECTED")


def _move(desk: Desk, identity: str, status: str) -> ResponseReturnValue:
    desk.json()
    count = int(desk.find(identity).get("statusChanges", 0)) + 1
    return desk.change(identity, {"status": status, "statusChanges": count, "updatedAt": desk.now})


CELPER = SandboxApi(
    name="celper",
    credential=_key,
    wanted="Send your API key in X-API-Key.",
    owner=company,
    word=word,
    scopes={"company": company},
    routes=(
        *operations("/v1/candidates", {"POST": create, "GET": candidates}),
        *operations("/v1/candidates/<identity>", {"GET": read, "PATCH": change, "DELETE": remove}),
        *operations("/v1/candidates/<identity>/invite", {"POST": invite}),
        *operations("/v1/candidates/<identity>/select", {"POST": select}),
        *operations("/v1/candidates/<identity>/reject", {"POST": reject}),
    ),
)
