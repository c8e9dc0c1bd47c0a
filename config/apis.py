"""The APIs that handlers call: one table each in `apis.toml`, checked at start-up against its dialect.

`load_apis` reads the file, `header_of` returns the header that carries an API's credential.
"""

import keyword
import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StrictInt, StrictStr, model_validator

from config.dialects import Dialect
from config.providers import HEADER_NAME
from config.toml import ConfigError, Duration, Table, in_words, load_tables, suggest, variable_of

APIS = Path(__file__).with_name("apis.toml")

CONNECT_TIMEOUT = timedelta(seconds=5)
READ_TIMEOUT = timedelta(seconds=20)

# For a whole request, however slowly its bytes arrive.
DEADLINE = timedelta(seconds=30)

# As long as a handler may run by default.
LONGEST_DEADLINE = timedelta(minutes=10)

# The default settle delay: how long a request whose answer was lost is left alone before a resend.
QUIET = timedelta(seconds=15)

# As many as a worker has threads for handlers.
MAX_CONNECTIONS = 16

# The default margin covers a request that is slow, its resend, and clocks that differ.
LEAST_MARGIN, DEADLINES_IN_MARGIN = timedelta(minutes=10), 4

# Attributes of `calls` itself, in a worker and in tests: no API can have these names.
RESERVED: Final = frozenset(
    {"again", "bench", "check_time", "derived", "made", "make", "read", "unjournaled_error", "value"}
)

# Keys whose values an error never repeats: a credential may stand there by mistake.
SILENT = frozenset({"auth", "base_url", "headers"})

# Headers in lower case that the client writes itself.
OURS = frozenset({"connection", "content-length", "expect", "host", "te", "transfer-encoding", "upgrade"})

# Headers in lower case that carry a secret: never written in the file.
SECRETS = frozenset({"authorization", "proxy-authorization", "cookie"})

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def check_base_url(url: str) -> str:
    """Return the address without its last slash; raise a ValueError, which never shows it, if it is wrong."""
    if not (url.isascii() and url.isprintable()) or {" ", "\\"} & set(url):
        raise ValueError("it holds blanks, backslashes or other characters that an address cannot have")
    try:
        parts = urlsplit(url)
        # urlsplit checks the port only when it is read.
        _ = parts.port
    except ValueError:
        raise ValueError("its host or port cannot be read") from None
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise ValueError("it must begin with https:// and a host, such as https://api.example.com/v1")
    if "@" in parts.netloc:
        raise ValueError("it holds a user or password before @; credentials belong into auth")
    if "?" in url or "#" in url:
        raise ValueError("it holds ? or #; paths are put after it, so it must end before them")
    if {"", ".", ".."} & set(parts.path.strip("/").split("/")) and parts.path.strip("/"):
        raise ValueError("its path holds an empty, . or .. segment")
    try:
        is_here = parts.hostname == "localhost" or ip_address(parts.hostname).is_loopback
    except ValueError:
        is_here = False
    if parts.scheme == "http" and not is_here:
        raise ValueError("it is plain http, which shows credentials to everyone on the way; use https")
    return url.rstrip("/")


def _check_name(name: str) -> str:
    if not HEADER_NAME.fullmatch(name):
        raise ValueError("found a string that is not a header's name")
    if name.lower() in OURS:
        raise ValueError(f"{name} is the client's own to write")
    return name


def _check_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    seen: set[str] = set()
    # Without regard to case, which HTTP ignores and a TOML table does not.
    for name, value in headers.items():
        if _check_name(name).lower() in SECRETS:
            raise ValueError(f"{name} carries a secret; auth reads it from a variable")
        if name.lower() in seen:
            raise ValueError(f"{name} is there twice")
        if not _fits_header(value):
            raise ValueError(f"{name} must have a value of printable ASCII characters")
        seen.add(name.lower())
    return headers


def _fits_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip() != ""


HeaderName = Annotated[StrictStr, AfterValidator(_check_name)]
Headers = Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_check_headers)]
BaseUrl = Annotated[StrictStr, AfterValidator(check_base_url)]


class Auth(Table):
    """How the credential travels, and the variable that holds it; `name` is for `type = "header"`."""

    type: Literal["bearer", "basic", "header"]
    variable: Annotated[StrictStr, variable_of("credential itself")] = Field(alias="value_env")
    name: HeaderName | None = None

    @model_validator(mode="after")
    def _names_its_header(self) -> Self:
        if (self.type == "header") != (self.name is not None):
            raise ValueError("name goes with type 'header', and only with it")
        return self

    @property
    def header(self) -> str:
        """The name of the header that carries it."""
        return self.name or "Authorization"

    def problem_with(self, credential: str) -> str | None:
        """Say in a clause why this credential cannot be sent, or None; it is never shown."""
        if self.type == "basic":
            return None if ":" in credential else f"{self.variable} is not written as user:password"
        # A token has no blanks (RFC 6750, section 2.1); most often a whole header was pasted.
        blank = self.type == "bearer" and " " in credential
        if blank or not _fits_header(credential):
            return f"{self.variable} holds characters that {self.header} cannot carry"
        return None

    def value(self, credential: str) -> str:
        """Return the header's value. `basic` sends UTF-8 (RFC 7617)."""
        match self.type:
            case "bearer":
                return f"Bearer {credential}"
            case "basic":
                # The exact bytes of the environment, UTF-8 or not.
                return f"Basic {b64encode(credential.encode('utf-8', 'surrogateescape')).decode()}"
            case "header":
                return credential


class ApiTable(Table):
    """An API as it is written."""

    base_url: BaseUrl
    dialect: StrictStr
    auth: Auth
    headers: Headers = Field(default_factory=dict)
    connect_timeout: Duration | None = None
    read_timeout: Duration | None = None
    deadline: Duration = DEADLINE
    max_connections: Annotated[StrictInt, Field(ge=1, le=1_000)] = MAX_CONNECTIONS
    quiet: Duration = QUIET
    key_life: Duration | None = None
    key_margin: Duration | None = None


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

    def build(name: str, entry: dict[str, Any]) -> Api:
        if name in RESERVED:
            raise ValueError(f"is no name for an API: calls.{name} is something of its own")
        if not _NAME.fullmatch(name) or keyword.iskeyword(name):
            raise ValueError(
                "is no name for an API, since handlers write calls.<name>;"
                " allowed are 1 to 64 of a-z, 0-9 and _, a letter first, and no word of Python's"
            )
        return _build(name, ApiTable.model_validate(entry), dialects, environ)

    return load_tables(path, "API must be a table such as [salesly]", build, SILENT)


def _build(name: str, table: ApiTable, dialects: Mapping[str, Dialect], environ: Mapping[str, str]) -> Api:
    if table.dialect not in dialects:
        hint = suggest(table.dialect, dialects)
        raise ValueError(f"dialect is {table.dialect!r}, which is not in the catalogue{hint}")
    dialect = dialects[table.dialect]
    _check_headers_against(table, dialect)
    key_life, key_margin = _key_times(table, dialect)
    connect_timeout, read_timeout = _timeouts(table)
    auth = table.auth
    # A credential that is missing stops no deployment: only calls of this API are refused.
    credential = environ.get(auth.variable, "").strip()
    if credential:
        problem = auth.problem_with(credential)
    else:
        state = "empty" if auth.variable in environ else "not set"
        problem = f"the environment variable {auth.variable} is {state}"
    return Api(
        name=name,
        base_url=table.base_url,
        dialect_name=table.dialect,
        dialect=dialect,
        auth=auth,
        credential="" if problem else credential,
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


def _check_headers_against(table: ApiTable, dialect: Dialect) -> None:
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
    # Only the defaults can be longer than the deadline here: a configured timeout was refused above.
    connect, read = table.connect_timeout or CONNECT_TIMEOUT, table.read_timeout or READ_TIMEOUT
    return min(connect, table.deadline), min(read, table.deadline)


def _key_times(table: ApiTable, dialect: Dialect) -> tuple[timedelta, timedelta]:
    """Return how long a key lives, and how long before its end it is no longer trusted."""
    if not dialect.carries_keys and (table.key_life or table.key_margin):
        name = "key_life" if table.key_life else "key_margin"
        raise ValueError(f"{name} is there, but an API of the dialect {table.dialect!r} knows no keys")
    if table.key_life and table.key_life > dialect.life:
        raise ValueError(
            f"key_life is {in_words(table.key_life)}, but {dialect.title} may forget a key after"
            f" {in_words(dialect.life)}; it can only be shortened"
        )
    life, least = table.key_life or dialect.life, 2 * table.deadline
    # Half of the life is the widest margin, or a key would be good for nothing.
    half = life / 2
    if dialect.carries_keys and life < least:
        # A resend that leaves just before the margin begins may take a whole deadline.
        raise ValueError(
            f"key_life is {in_words(life)}, but two requests under one key may take"
            f" {in_words(table.deadline)} each; allowed is {in_words(least)} or more, or a shorter deadline"
        )
    if table.key_margin is None:
        return life, min(half, max(LEAST_MARGIN, DEADLINES_IN_MARGIN * table.deadline))
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
    return life, table.key_margin
