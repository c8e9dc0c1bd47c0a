"""How APIs treat idempotency keys: `dialects.toml`, read and checked once."""

import functools
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from config.durations import Duration
from config.errors import ConfigError

DIALECTS = Path(__file__).with_name("dialects.toml")
KEY_MAX = 2048
"""Characters of a key that an index row of PostgreSQL has room for: 2,704 bytes with the other columns."""

METHODS = ("POST", "PUT", "PATCH", "DELETE")
PARTS = ("method", "path", "target", "body")
"""What a fingerprint is made of, besides `header:<name>`; `target` is the path with the query."""

_NAME = r"[A-Za-z0-9-]+"
_COVERED = re.compile(rf"({'|'.join(METHODS)}) (\*|(?:/[^/\s?#]+)+)")
_PART = re.compile(rf"{'|'.join(PARTS)}|header:{_NAME}")
Token = Annotated[str, Field(pattern=f"^{_NAME}$")]
"""A header's name, without `_`: servers drop or forge such."""


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Error(_Table):
    """A status and the code that stands in its body."""

    status: Annotated[int, Field(ge=400, le=599)]
    code: str


class Replay(_Table):
    """How a replay looks: another status, a marker header, or neither."""

    status: Annotated[int, Field(ge=200, le=599)] | None = None
    header: Token | None = None


class Server(_Table):
    """What a server promises. `locked` left out: a concurrent duplicate waits for the first one's answer."""

    covers: tuple[str, ...]
    scope: tuple[str, ...]
    fingerprint: Annotated[tuple[str, ...], Field(min_length=1)]
    mismatch: Literal["separate"] | Error
    locked: Error | None = None
    stored: Literal["all", "2xx", "final"]
    replay: Replay = Replay()
    quoted: bool = False

    @field_validator("covers")
    @classmethod
    def _are_methods_with_paths(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if not _COVERED.fullmatch(entry):
                raise ValueError(f"{entry!r} is not one of {', '.join(METHODS)} with a path or *")
        return value

    @field_validator("fingerprint")
    @classmethod
    def _are_parts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for part in value:
            if not _PART.fullmatch(part):
                raise ValueError(f"{part!r} is not one of {', '.join(PARTS)} or header:<name>")
        return value


class Dialect(_Table):
    """One API's way with keys. Lengths are in characters; `life` counts from a key's first use."""

    title: str
    header: Token
    min_length: Annotated[int, Field(ge=1)]
    max_length: Annotated[int, Field(ge=1, le=KEY_MAX)]
    life: Duration
    server: Server | None = None

    @field_validator("life")
    @classmethod
    def _is_a_life(cls, value: timedelta) -> timedelta:
        if value <= timedelta(0):
            raise ValueError("a key lives longer than 0s")
        return value

    @model_validator(mode="after")
    def _has_room(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        return self


@functools.cache
def load_dialects(path: Path = DIALECTS) -> Mapping[str, Dialect]:
    """Read every dialect by name; raise ConfigError that names file, entry and key."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    try:
        return MappingProxyType(TypeAdapter(dict[str, Dialect]).validate_python(tables))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']} (found {first['input']!r}).") from None
