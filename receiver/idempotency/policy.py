"""What a server promises about idempotency keys, as data; `config/dialects.toml` has one a dialect."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from flask import Request

from config.dialects import Dialect, Error, Replay, ends_with

OF_REQUEST = frozenset({"method", "path"})
"""The scope parts that every request has; an API names the others."""


class WhatIsStored(StrEnum):
    """Which answers a key keeps. `final` is all but 5xx and 404: what asking again could not change."""

    ALL = "all"
    SUCCESS = "2xx"
    FINAL = "final"


@dataclass
class Refusal(Exception):
    """A request that the engine answers itself; the API words it its own way."""

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
    """What another request under a used key gets; None where it is a request of its own."""
    locked: Error | None
    """What a request gets while another with its key runs; None where it waits for that one's answer."""
    stored: WhatIsStored
    replay: Replay
    quoted: bool = False
    covers: tuple[tuple[str, str], ...] = ()
    """Methods with path patterns (`{id}` is one segment, `*` all); what none covers ignores keys."""

    def covered(self, method: str, path: str) -> bool:
        """Say whether keys count for this method and path."""
        return any(method == verb and _path_matches(pattern, path) for verb, pattern in self.covers)

    def stores(self, status: int) -> bool:
        """Say whether an answer with this status is kept for replays."""
        match self.stored:
            case WhatIsStored.ALL:
                return True
            case WhatIsStored.SUCCESS:
                return status // 100 == 2  # noqa: PLR2004 - the class of success
            case WhatIsStored.FINAL:
                return status < 500 and status != 404  # noqa: PLR2004 - as the name says


Scope = Callable[[Request], str]
"""Names one part of a scope from an authenticated request: its API key, company or connected account."""


def digest(parts: Iterable[bytes]) -> str:
    """Return a SHA-256 in hex over parts, each with its length, so that no two lists run together."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def fingerprint(policy: KeyPolicy, request: Request, body: bytes) -> str:
    """Return the fingerprint of a request by its policy's parts."""
    return digest(_part(name, request, body) for name in policy.fingerprint)


def scope(policy: KeyPolicy, request: Request, known: Mapping[str, Scope]) -> str:
    """Return the digest that a request's key is unique within."""
    parts = (
        known[name](request).encode() if name in known else _part(name, request, b"") for name in policy.scope
    )
    return digest(parts)


def _path_matches(pattern: str, path: str) -> bool:
    return ends_with(path, pattern) and (pattern == "*" or path.count("/") == pattern.count("/"))


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


def policy_of(name: str, dialect: Dialect, prefix: str = "") -> KeyPolicy:
    """Build the policy of a dialect's server half, its paths below `prefix`; raise ValueError without one."""
    server, header, stored = dialect.server, dialect.header, dialect.stored
    if not (server and header and stored):
        raise ValueError(f"the dialect {name!r} has no server half")
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
        stored=WhatIsStored(stored),
        replay=dialect.replay,
        quoted=dialect.quoted,
        covers=tuple(_below(prefix, entry) for entry in dialect.covers),
    )


def _below(prefix: str, entry: str) -> tuple[str, str]:
    verb, _, path = entry.partition(" ")
    return verb, path if path == "*" else prefix + path
