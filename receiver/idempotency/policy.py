"""What a server promises about idempotency keys, as data; `config/dialects.toml` has one policy a dialect.

`policy_of` builds a KeyPolicy; `read_key`, `fingerprint` and `scope` apply it to a request.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from flask import Request

from config.dialects import Dialect, Error, Replay, ends_with
from receiver.ledger.text import digest

# The scope parts that every request has; an API names the others.
OF_REQUEST = frozenset({"method", "path"})


class StoredResponses(StrEnum):
    """Which responses a key keeps. `final` is all but 5xx and 404: a repetition could not change those."""

    ALL = "all"
    SUCCESS = "2xx"
    FINAL = "final"


@dataclass
class Refusal(Exception):
    """A request that the engine answers itself; each API has its own shape for it. `retry_after`: seconds."""

    status: int
    code: str
    detail: str
    retry_after: int | None = None


@dataclass(frozen=True)
class KeyPolicy:
    """One dialect's server half. `header` carries the key; lengths are in characters; `life` from first use.

    `fingerprint` lists what must be the same: `method`, `path`, `target` (path and query), `body`, and
    `header:<name>`. `scope` lists what keys are unique within: `method`, `path`, and the API's own names.
    """

    name: str
    header: str
    min_length: int
    max_length: int
    life: timedelta
    scope: tuple[str, ...]
    fingerprint: tuple[str, ...]
    mismatch: Error | None
    """The error for another request under a used key; None where that is a request of its own."""
    locked: Error | None
    """The error while another request with the key runs; None where the second waits for its response."""
    stored: StoredResponses
    replay: Replay
    quoted: bool = False
    covers: tuple[tuple[str, str], ...] = ()
    """Methods with path patterns (`{id}` is one segment, `*` all); what none covers ignores keys."""

    def covered(self, method: str, path: str) -> bool:
        """Whether keys count for this method and path."""
        return any(
            method == verb
            and ends_with(path, pattern)
            and (pattern == "*" or path.count("/") == pattern.count("/"))
            for verb, pattern in self.covers
        )

    def stores(self, status: int) -> bool:
        """Whether a response with this status is kept for replays."""
        match self.stored:
            case StoredResponses.ALL:
                return True
            case StoredResponses.SUCCESS:
                return status // 100 == 2  # noqa: PLR2004 - the class of success
            case StoredResponses.FINAL:
                return status < 500 and status != 404  # noqa: PLR2004 - as the name says


# Reads one part of a scope from an authenticated request: its API key, company or connected account.
Scope = Callable[[Request], str]


def policy_of(name: str, dialect: Dialect, prefix: str = "") -> KeyPolicy:
    """Build the policy of a dialect's server half, its paths below `prefix`; raise ValueError without one."""
    server, header, stored = dialect.server, dialect.header, dialect.stored
    if not (server and header and stored):
        raise ValueError(f"the dialect {name!r} has no server half")
    covers = (entry.partition(" ")[::2] for entry in dialect.covers)
    return KeyPolicy(
        name=name,
        header=header,
        min_length=dialect.min_length,
        max_length=dialect.max_length,
        life=dialect.life,
        scope=server.scope,
        fingerprint=server.fingerprint,
        mismatch=dialect.misused,
        locked=dialect.locked,
        stored=StoredResponses(stored),
        replay=dialect.replay,
        quoted=dialect.quoted,
        covers=tuple((verb, path if path == "*" else prefix + path) for verb, path in covers),
    )


def read_key(policy: KeyPolicy, request: Request) -> str | None:
    """Return the request's key, None when it has none; raise Refusal 400 for one that breaks the policy."""
    value = request.headers.get(policy.header)
    if value is None:
        return None
    key = _unquoted(value) if policy.quoted and value.startswith('"') else value
    allowed = f"{policy.min_length} to {policy.max_length} printable ASCII characters"
    if key is None or not key.isascii() or not key.isprintable():
        raise Refusal(400, "idempotency_key_invalid", f"{policy.header} must be {allowed}.")
    if not policy.min_length <= len(key) <= policy.max_length:
        found = f"this one has {len(key)}" if key else "this one is empty"
        raise Refusal(400, "idempotency_key_invalid", f"{policy.header} must be {allowed}; {found}.")
    return key


def fingerprint(policy: KeyPolicy, request: Request, body: bytes) -> str:
    """Return the fingerprint of a request by its policy's parts."""
    return digest(_part(name, request, body) for name in policy.fingerprint)


def scope(policy: KeyPolicy, request: Request, known: Mapping[str, Scope]) -> str:
    """Return the digest of the scope that a request's key is unique within; `known` reads the API's parts."""
    parts = (
        known[name](request).encode() if name in known else _part(name, request, b"") for name in policy.scope
    )
    return digest(parts)


def _part(name: str, request: Request, body: bytes) -> bytes:
    match name.partition(":"):
        case ("method", _, _):
            return request.method.encode()
        case ("path", _, _):
            return request.path.encode("utf-8", "surrogatepass")
        case ("target", _, _):
            return request.path.encode("utf-8", "surrogatepass") + b"?" + request.query_string
        case ("body", _, _):
            return body
        case ("header", _, header):
            return request.headers.get(header, "").encode("latin-1", "replace")
        case _:
            raise ValueError(f"{name!r} is no part of a request")


def _unquoted(value: str) -> str | None:
    """Read a structured field string (RFC 8941, section 3.3.3), as the IETF draft writes keys."""
    inner, escaped = [], False
    for index, character in enumerate(value[1:], start=1):
        if escaped:
            if character not in '"\\':
                return None
            inner.append(character)
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            return "".join(inner) if index == len(value) - 1 else None
        else:
            inner.append(character)
    return None
