"""Who may come in: `Authorization: Bearer <key>`, before anything is read, run or stored."""

from collections.abc import Sequence

from flask import g, request

from config.credentials import ApiKey, find_api_key
from receiver.problems import Problem

READS = frozenset({"GET", "HEAD", "OPTIONS"})


def admit(keys: Sequence[ApiKey]) -> None:
    """Let the request in as `g.api_key`, or raise Problem 401 or 403."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _unauthorized("api-key-missing", "Send an API key: Authorization: Bearer <key>.")
    key = find_api_key(keys, secret.strip())
    if key is None:
        raise _unauthorized(
            "api-key-unknown", "This API key is unknown; FIRSTSEEN_API_KEYS has those that count."
        )
    if key.read_only and request.method not in READS:
        raise Problem(403, "api-key-read-only", "This API key may only read; use one without :read to act.")
    g.api_key = key


def credential() -> str:
    """Return the name of the request's API key."""
    name: str = g.api_key.name
    return name


def who() -> str:
    """Return what the audit says of this request."""
    return f"api:{credential()}"


def _unauthorized(kind: str, detail: str) -> Problem:
    return Problem(401, kind, detail, {"WWW-Authenticate": 'Bearer realm="firstseen"'})
