"""How APIs treat idempotency keys: `dialects.toml`, read and checked once.

A dialect says where an API takes keys and for which operations, what it answers to a repeated or a misused
key, and how long it remembers one. docs/dialects.md has each fact with its source.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from config.toml import Duration, Table, load_tables

DIALECTS = Path(__file__).with_name("dialects.toml")

# Characters of the keys that we make: those of a UUID.
KEY_LENGTH = 36

# Characters of a key that an index row of PostgreSQL has room for: 2,704 bytes with the other columns.
KEY_MAX = 2048

# How long a key is trusted where the API does not say how long it remembers one.
UNPUBLISHED = timedelta(hours=1)

# What a fingerprint is made of, besides `header:<name>`; `target` is the path with the query.
PARTS = ("method", "path", "target", "body")

METHODS = ("POST", "PUT", "PATCH", "DELETE")

_OPERATION = re.compile(rf"({'|'.join(METHODS)}) (\*|(?:/[^/\s?#]+)+)")
_NAME = r"[A-Za-z0-9-]+"
_PART = re.compile(rf"{'|'.join(PARTS)}|header:{_NAME}")
# A header's name, without `_`: servers drop or forge such.
Token = Annotated[str, Field(pattern=f"^{_NAME}$")]


class Error(Table):
    """A status and the code that stands in its body; without a code the status alone says it."""

    status: Annotated[int, Field(ge=400, le=599)]
    code: str = ""


class Replay(Table):
    """How a replay looks: a marker header that is `true`, another status, or neither.

    `also` is another spelling of the header that clients read. `outcome` goes with `status`: the name of the
    boolean in the JSON body that says how the original ended.
    """

    status: Annotated[int, Field(ge=200, le=599)] | None = None
    outcome: str = ""
    header: Token | None = None
    also: Token | None = None

    @model_validator(mode="after")
    def _tells_outcomes_apart(self) -> Self:
        if (self.status is None) == bool(self.outcome):
            raise ValueError("status and outcome go together: a status alone does not say how it ended")
        return self


class Server(Table):
    """What serving needs besides: what keys are unique within, and what must be the same."""

    scope: tuple[str, ...]
    fingerprint: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("fingerprint")
    @classmethod
    def _are_parts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            if not _PART.fullmatch(part):
                raise ValueError(f"{part!r} is not one of {', '.join(PARTS)} or header:<name>")
        return value


class Dialect(Table):
    """One API's way with keys. Lengths are in characters; `life` counts from a key's first use.

    `worker.calls.classify` reads it as a client, `receiver.idempotency.policy` as a server.
    """

    title: str
    header: Token | None = None
    """The header that carries the key."""
    field: Annotated[str, Field(min_length=1)] | None = None
    """Or the field of the JSON or form body that does; with neither, the API knows no keys."""
    quoted: bool = False
    """Whether the header holds a structured field string (RFC 8941, section 3.3.3), as in the IETF draft."""
    min_length: Annotated[int, Field(ge=1)] = 1
    max_length: Annotated[int, Field(ge=1, le=KEY_MAX)] = 255
    life: Duration = UNPUBLISHED
    covers: tuple[str, ...] = ()
    """Methods with paths whose requests the API keys: `POST *`, `POST /v1/candidates/{id}/invite`."""
    repeatable: tuple[str, ...] = ()
    """Those that are idempotent by themselves: they may be sent again without a key."""
    in_flight: Literal["waits", "unstated"] | Error = "unstated"
    """What a second copy meets while the first one runs: an error, that one's answer, or nobody says."""
    mismatch: Literal["separate"] | Error | None = None
    """What another request under a used key gets; `separate` where it is a request of its own."""
    stored: Literal["all", "2xx", "final"] | None = None
    """Which answers a key keeps; None where nobody says."""
    replay: Replay = Replay()
    should_retry: Token | None = None
    """The header whose `true` or `false` says whether sending again can help."""
    server: Server | None = None

    @property
    def locked(self) -> Error | None:
        """The error that says that a request with this key still runs."""
        return self.in_flight if isinstance(self.in_flight, Error) else None

    @property
    def misused(self) -> Error | None:
        """The error that says that the key was used for another request."""
        return self.mismatch if isinstance(self.mismatch, Error) else None

    @property
    def carries_keys(self) -> bool:
        """Whether there is a place for keys at all."""
        return bool(self.header or self.field)

    def is_keyed(self, method: str, path: str) -> bool:
        """Say whether the API keys this request; `path` is the URL's, and its end counts."""
        return _has_operation(self.covers, method, path)

    def is_repeatable(self, method: str, path: str) -> bool:
        """Say whether this request may be sent again without a key; `path` as above."""
        return _has_operation(self.repeatable, method, path)

    @field_validator("covers", "repeatable")
    @classmethod
    def _are_methods_with_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not _OPERATION.fullmatch(entry):
                raise ValueError(f"{entry!r} is not one of {', '.join(METHODS)} with a path or *")
        return value

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        if not self.min_length <= KEY_LENGTH <= self.max_length:
            allowed = f"{self.min_length} to {self.max_length} characters"
            raise ValueError(f"keys of {KEY_LENGTH} characters must be allowed, and these are {allowed}")
        if self.header and self.field:
            raise ValueError("header and field are both there; a key stands in one place")
        if self.carries_keys != bool(self.covers):
            raise ValueError("covers and header (or field) go together: what is keyed, and where keys stand")
        if self.quoted and not self.header:
            raise ValueError("quoted is for a header, and there is none")
        if self.server and not (self.header and self.mismatch and self.stored):
            raise ValueError("server needs header, mismatch and stored: the engine does what they say")
        return self


@functools.cache
def load_dialects(path: Path = DIALECTS) -> Mapping[str, Dialect]:
    """Read every dialect by name; raise ConfigError that names file, entry and key."""
    kind = "dialect must be a table such as [stripe]"
    return MappingProxyType(load_tables(path, kind, lambda _name, entry: Dialect.model_validate(entry)))


def _has_operation(entries: Iterable[str], method: str, path: str) -> bool:
    split = [entry.partition(" ") for entry in entries]
    # Only the path's end counts: APIs live below a version, a gateway or a proxy that nobody knows here.
    return any(method == verb and ends_with(path, pattern) for verb, _, pattern in split)


def ends_with(path: str, pattern: str) -> bool:
    """Say whether a path ends with a pattern, in whole segments.

    `{id}` is one segment that is not empty, `*` the whole path.
    """
    if pattern == "*":
        return True
    wanted = pattern.split("/")[1:]
    found = path.split("/")[1:][-len(wanted) :]
    return len(wanted) == len(found) and all(
        part and want in (part, "{id}") for want, part in zip(wanted, found, strict=True)
    )
