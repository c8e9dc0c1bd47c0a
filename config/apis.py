"""What this deployment calls: one table per API, checked at start-up against its dialect."""

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import Field, StrictInt, StrictStr, ValidationError

from config.api_parts import Auth, AuthTable, BaseUrl, Headers, auth_of
from config.dialects import Dialect
from config.durations import WrittenDuration, in_words
from config.errors import ConfigError
from config.tables import Table, explain, kind_of, read_toml, suggest

APIS = Path(__file__).with_name("apis.toml")
CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=20)
DEADLINE = timedelta(seconds=30)
LONGEST_DEADLINE = timedelta(minutes=10)  # a handler is allowed as much by default
QUIET = timedelta(seconds=15)
MAX_CONNECTIONS = 16  # as many as a worker runs handlers
LEAST_MARGIN = timedelta(minutes=10)
DEADLINES_IN_MARGIN = 4
"""The default margin covers a request that is slow, its resend, and clocks that differ."""

RESERVED: Final = frozenset(
    {"again", "bench", "check_time", "derived", "made", "make", "owed", "read", "value"}
)
"""What `calls` has of its own, in a worker and in tests."""

SILENT = frozenset({"auth", "base_url", "headers"})
"""Keys whose values an error never repeats: a credential may stand there by mistake."""

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class ApiTable(Table):
    """An API as it is written."""

    base_url: BaseUrl
    dialect: StrictStr
    auth: AuthTable
    headers: Headers = Field(default_factory=dict)
    connect_timeout: WrittenDuration | None = None
    read_timeout: WrittenDuration | None = None
    deadline: WrittenDuration = DEADLINE
    max_connections: Annotated[StrictInt, Field(ge=1, le=1_000)] = MAX_CONNECTIONS
    quiet: WrittenDuration = QUIET
    key_life: WrittenDuration | None = None
    key_margin: WrittenDuration | None = None


@dataclass(frozen=True)
class Api:
    """One target, `calls.<name>`.

    `base_url` has no slash at its end. `key_life` counts from a key's first send; in its last `key_margin`
    nothing is sent again. Without a usable credential `credential` is empty and `problem` says why.
    """

    name: str
    base_url: str
    dialect_name: str
    dialect: Dialect
    auth: Auth
    credential: str = field(repr=False)
    key_life: timedelta
    key_margin: timedelta
    problem: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: timedelta = CONNECT_TIMEOUT
    read_timeout: timedelta = READ_TIMEOUT
    deadline: timedelta = DEADLINE
    max_connections: int = MAX_CONNECTIONS
    quiet: timedelta = QUIET


def header_of(api: Api) -> tuple[str, str]:
    """Return the header that carries the credential, name and value; raise ConfigError without one."""
    if api.problem:
        raise ConfigError(api.problem)
    return api.auth.header, api.auth.value(api.credential)


def load_apis(path: Path, dialects: Mapping[str, Dialect], environ: Mapping[str, str]) -> Mapping[str, Api]:
    """Load every API; raise ConfigError with one sentence for the first thing that is wrong."""
    return {name: _load(path, name, entry, dialects, environ) for name, entry in read_toml(path).items()}


def _load(
    path: Path, name: str, entry: Any, dialects: Mapping[str, Dialect], environ: Mapping[str, str]
) -> Api:
    try:
        table = _read(name, entry)
        dialect = _known(table.dialect, dialects)
        _check_headers(table, dialect)
        key_life = _key_life(table, dialect)
        connect_timeout, read_timeout = _timeouts(table)
        key_margin = _key_margin(table, key_life)
    except ValueError as error:
        raise ConfigError(f"{path}: [{name}] {error}") from None
    auth = auth_of(table.auth)
    credential, problem = _credential(auth, environ)
    return Api(
        name=name,
        base_url=table.base_url,
        dialect_name=table.dialect,
        dialect=dialect,
        auth=auth,
        credential=credential,
        key_life=key_life,
        key_margin=key_margin,
        problem=f"[{name}] has no credential: {problem}" if problem else None,
        headers=table.headers,
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        deadline=table.deadline,
        max_connections=table.max_connections,
        quiet=table.quiet,
    )


def _read(name: str, entry: Any) -> ApiTable:
    if not isinstance(entry, dict):
        raise ValueError(f"is {kind_of(entry)}; every API must be a table such as [salesly]")  # noqa: TRY004 - one kind of error carries the sentence
    if name in RESERVED:
        raise ValueError(f"is no name for an API: calls.{name} is something of its own")
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(
            "is no name for an API, since handlers write calls.<name>;"
            " allowed are 1 to 64 of a-z, 0-9 and _, a letter first, and no word of Python's"
        )
    try:
        return ApiTable.model_validate(entry)
    except ValidationError as error:
        raise ValueError(explain(error, SILENT)) from None


def _known(name: str, dialects: Mapping[str, Dialect]) -> Dialect:
    if name not in dialects:
        raise ValueError(f"dialect is {name!r}, which is not in the catalogue{suggest(name, dialects)}")
    return dialects[name]


def _check_headers(table: ApiTable, dialect: Dialect) -> None:
    key_header = (dialect.header or "").lower()
    if table.auth.name and table.auth.name.lower() == key_header:
        raise ValueError(f"auth.name is {dialect.header}, which carries the idempotency key")
    for name in table.headers:
        if name.lower() == key_header:
            raise ValueError(f"headers has {name}, which carries the idempotency key: every call has its own")
        if table.auth.name and name.lower() == table.auth.name.lower():
            raise ValueError(
                f"headers has {name}, which carries the credential: auth reads it from a variable"
            )


def _timeouts(table: ApiTable) -> tuple[timedelta, timedelta]:
    if table.deadline > LONGEST_DEADLINE:
        raise ValueError(
            f"deadline is {in_words(table.deadline)}; it must be at most {in_words(LONGEST_DEADLINE)}"
        )
    for name, written in (("connect_timeout", table.connect_timeout), ("read_timeout", table.read_timeout)):
        if written and written > table.deadline:
            raise ValueError(
                f"{name} is {in_words(written)}, longer than deadline ({in_words(table.deadline)}),"
                " which ends the request before"
            )
    connect, read = table.connect_timeout or CONNECT_TIMEOUT, table.read_timeout or READ_TIMEOUT
    return min(connect, table.deadline), min(read, table.deadline)


def _key_life(table: ApiTable, dialect: Dialect) -> timedelta:
    if not dialect.carries_keys and (table.key_life or table.key_margin):
        name = "key_life" if table.key_life else "key_margin"
        raise ValueError(f"{name} is there, but an API of the dialect {table.dialect!r} knows no keys")
    if table.key_life and table.key_life > dialect.life:
        raise ValueError(
            f"key_life is {in_words(table.key_life)}, but {dialect.title} may forget a key after"
            f" {in_words(dialect.life)}; it can only be shortened"
        )
    life, least = table.key_life or dialect.life, 2 * table.deadline
    if dialect.carries_keys and life < least:
        # Half of it is the widest margin, and a resend that leaves just before then may take a deadline.
        raise ValueError(
            f"key_life is {in_words(life)}, but two requests under one key may take"
            f" {in_words(table.deadline)} each; allowed is {in_words(least)} or more, or a shorter deadline"
        )
    return life


def _key_margin(table: ApiTable, life: timedelta) -> timedelta:
    """Return how long before its end a key is no longer trusted.

    A request that leaves just before then may run for its whole deadline. Half of the life is the most: a key
    must be good for something.
    """
    half = life / 2
    if table.key_margin is None:
        return min(half, max(LEAST_MARGIN, DEADLINES_IN_MARGIN * table.deadline))
    if table.key_margin > half:
        raise ValueError(
            f"key_margin is {in_words(table.key_margin)}, more than half of the key's life;"
            f" allowed is {in_words(half)} or less"
        )
    if table.key_margin < table.deadline:
        raise ValueError(
            f"key_margin is {in_words(table.key_margin)}, but a request may take {in_words(table.deadline)};"
            f" allowed is {in_words(table.deadline)} or more"
        )
    return table.key_margin


def _credential(auth: Auth, environ: Mapping[str, str]) -> tuple[str, str | None]:
    credential = environ.get(auth.variable, "").strip()
    if not credential:
        state = "empty" if auth.variable in environ else "not set"
        return "", f"the environment variable {auth.variable} is {state}"
    problem = auth.problem_with(credential)
    return ("", problem) if problem else (credential, None)
