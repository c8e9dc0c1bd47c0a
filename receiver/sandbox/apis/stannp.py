"""Stannp: letters, from forms."""

import secrets

from flask import Request

from receiver.idempotency import Refusal
from receiver.sandbox.apis import Route, SandboxApi
from receiver.sandbox.storage import Desk, Fields

SAMPLE = "https://www.stannp.com/assets/samples/letter-sample.pdf"
COST = "0.78"
# The id of every test letter: nothing is printed, and nothing can be fetched.
TEST_ID = "0"


def credential(request: Request) -> str:
    """Return the API key: the user name of Basic authentication, with no password."""
    basic = request.authorization
    return (basic.username or "").strip() if basic and basic.type == "basic" else ""


def create(desk: Desk) -> Fields:
    """Write a letter. Only its response to a first request has status 200."""
    form = desk.request.form
    if not any(name == "recipient" or name.startswith("recipient[") for name in form):
        raise Refusal(400, "validation_error", "A letter needs a recipient: send recipient[...] as a form.")
    test = form.get("test", "").lower() in {"true", "1"}
    identity = TEST_ID if test else str(1_000_000 + secrets.randbelow(9_000_000_000))
    letter = {
        "pdf": SAMPLE if test else SAMPLE.replace("sample.pdf", f"{identity}.pdf"),
        "id": identity,
        "created": desk.now,
        "format": "letter",
        "cost": COST,
        "status": "test" if test else "received",
    }
    if not test:
        desk.keep(identity, letter)
    desk.happened()
    return {"success": True, "data": letter}


def read(desk: Desk, identity: str) -> Fields:
    """Return one letter."""
    return {"success": True, "data": desk.find(identity)}


STANNP = SandboxApi(
    name="stannp",
    credential=credential,
    wanted="Send your API key as the user name of Basic authentication.",
    owner=credential,
    # `success` is the document's, the rest is ours.
    error=lambda refusal: {"success": False, "error": refusal.detail, "code": refusal.code},
    scopes={"credential": credential},
    challenge='Basic realm="Stannp"',
    routes=(
        Route("POST", "/api/v1/letters/create", create),
        Route("GET", "/api/v1/letters/get/<identity>", read),
    ),
)
