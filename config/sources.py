"""The sources of deliveries: one table each in `sources.toml`, checked at start-up against its provider.

`load_sources` reads the file, together with the secrets that it names in the environment.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr

from config.providers import HeaderNames, Provider, SchemeTable, describe_provider, is_usable
from config.toml import (
    Duration,
    Table,
    in_words,
    is_variable,
    kind_of,
    load_tables,
    split_list,
    suggest,
    variable_of,
)

SOURCES = Path(__file__).with_name("sources.toml")
MEBIBYTE = 1_048_576
LARGEST_BODY = 100 * MEBIBYTE
# A tombstone outlives every provider's manual resend, and one year's audit.
DEFAULT_RETENTION = timedelta(days=400)

DEFAULT_PAYLOAD_RETENTION = timedelta(days=30)

# Headers in lower case that are never stored.
NEVER_KEPT = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})

# Keys whose values an error never repeats: a secret may stand there by mistake.
SILENT = frozenset({"secrets_env", "secret", "secrets", "key", "options"})

# A step that leads into every member or element.
EVERY: Final = "*"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_STEP = re.compile(r"\.([^.\[\]*\s]+|\*)|\[\*\]")

OnReplay = Literal["run", "park"]


@dataclass(frozen=True)
class JsonPath:
    """A place, or several, in a payload that screens, logs and `/v1` leave out: `$.data.items[*].email`.

    `steps` lead from the top of the payload; `*` goes into every member or element.
    """

    steps: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(["$", *(f".{step}" for step in self.steps)])


def parse_json_path(text: str) -> JsonPath:
    """Read `$.data.items[*].email` or `$.data.*.email`; raise ValueError with a sentence."""
    steps, place = [], 1
    while text.startswith("$") and (match := _STEP.match(text, place)):
        steps.append(match[1] or EVERY)
        place = match.end()
    if not steps or place != len(text):
        raise ValueError(
            f"{text!r} is not a path; write $ and the keys after dots, such as $.data.object.email,"
            " and [*] for every element of an array"
        )
    return JsonPath(tuple(steps))


def _read_json_paths(value: Any) -> tuple[JsonPath, ...]:
    if not isinstance(value, list):
        raise ValueError(f"found {kind_of(value)}; it must be an array of paths such as $.data.object.email")  # noqa: TRY004 - pydantic makes sentences of ValueErrors alone
    return tuple(parse_json_path(str(path)) for path in value)


# One variable with secrets separated by commas, or several with one secret each.
Variables = str | tuple[str, ...]


def _read_variables(value: Any) -> Variables:
    names = [value] if isinstance(value, str) else value
    if isinstance(names, list) and names and all(map(is_variable, names)):
        return value if isinstance(value, str) else tuple(names)
    raise ValueError(
        f"found {kind_of(value)} that is no variable's name, nor a list of such names;"
        " write capitals, digits and _, never the secret itself"
    )


class SourceTable(Table):
    """A source as it is written."""

    provider: StrictStr
    secrets_env: Annotated[Variables | None, BeforeValidator(_read_variables)] = None
    verifier: StrictStr | None = None
    unverified: StrictBool = False
    tolerance: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = None
    retention: Duration = DEFAULT_RETENTION
    payload_retention: Duration | None = None
    max_body: Annotated[StrictInt, Field(ge=1, le=LARGEST_BODY)] = MEBIBYTE
    keep_headers: HeaderNames = ()
    on_replay: OnReplay = "run"
    redact: Annotated[tuple[JsonPath, ...], BeforeValidator(_read_json_paths)] = ()
    handshake: StrictBool = False
    verify_token_env: Annotated[str, variable_of("token")] | None = None
    options: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Source:
    """One endpoint, `/webhooks/<name>`.

    `tolerance` is in seconds and replaces the provider's; `max_body` is in bytes. Without a usable secret,
    where one is needed, `secrets` is empty and `problem` says why; `warnings` are about single secrets that
    cannot be used. `handshake` opts in to the provider's unsigned ones.
    """

    name: str
    provider: Provider
    secrets: tuple[str, ...] = field(repr=False)
    problem: str | None = None
    warnings: tuple[str, ...] = ()
    tolerance: int | None = None
    retention: timedelta = DEFAULT_RETENTION
    payload_retention: timedelta = DEFAULT_PAYLOAD_RETENTION
    max_body: int = MEBIBYTE
    keep_headers: tuple[str, ...] = ()
    on_replay: OnReplay = "run"
    handshake: bool = False
    verify_tokens: tuple[str, ...] = field(default=(), repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    secret_names: tuple[str, ...] = ()
    redact: tuple[JsonPath, ...] = ()

    @property
    def scheme(self) -> SchemeTable:
        """How its deliveries are signed; raise ConfigError where code verifies them."""
        return self.provider.required_scheme

    @property
    def replay_guard(self) -> OnReplay | None:
        """What happens to equal bytes under a new id; None where the id is signed, or the body is not."""
        return self.on_replay if can_be_replayed(self.provider) else None


def can_be_replayed(provider: Provider) -> bool:
    """Whether captured bytes verify again under another event id."""
    return provider.policy in ("id", "composite") and provider.signs_body and not provider.id_is_signed


def load_sources(
    path: Path, providers: Mapping[str, Provider], environ: Mapping[str, str]
) -> Mapping[str, Source]:
    """Load every source; raise ConfigError with one sentence for the first thing that is wrong."""

    def build(name: str, entry: dict[str, Any]) -> Source:
        if not _NAME.fullmatch(name):
            raise ValueError(
                "is no name for a source; allowed are 1 to 64 of a-z, 0-9, _ and -, a letter or digit first"
            )
        return _build(name, SourceTable.model_validate(entry), providers, environ)

    return load_tables(path, "source must be a table such as [stripe]", build, SILENT)


def _build(
    name: str, table: SourceTable, providers: Mapping[str, Provider], environ: Mapping[str, str]
) -> Source:
    if table.provider not in providers:
        hint = suggest(table.provider, providers, "firstseen providers")
        raise ValueError(f"provider is {table.provider!r}, which is not in the catalogue{hint}")
    provider, options = describe_provider(
        providers[table.provider], table.options, table.verifier, table.secrets_env
    )
    _check_proof(table, provider)
    _check_times(table, provider)
    _check_handshake(table, provider)
    _check_replay(table, provider)
    for header in table.keep_headers:
        if header.lower() in NEVER_KEPT | provider.signature_headers or "signature" in header.lower():
            raise ValueError(
                f"keep_headers has {header!r}; credentials, cookies and signatures are never kept"
            )
    separated = isinstance(table.secrets_env, str)
    secret_names = (table.secrets_env,) if isinstance(table.secrets_env, str) else table.secrets_env or ()
    secrets, warnings = _read_secrets(provider, secret_names, environ, separated=separated)
    # A missing secret stops no deployment: this source answers 503, and the provider sends again.
    problem = f"[{name}] has no secret: {'; '.join(warnings)}" if warnings and not secrets else None
    verify_tokens = split_list(environ.get(table.verify_token_env, "")) if table.verify_token_env else ()
    if table.verify_token_env and not verify_tokens:
        warnings.append(
            f"the environment variable {table.verify_token_env} holds no verify token,"
            " so the handshake gets no answer"
        )
    return Source(
        name=name,
        provider=provider,
        secrets=secrets,
        problem=problem,
        warnings=tuple(warnings),
        tolerance=table.tolerance,
        retention=table.retention,
        payload_retention=table.payload_retention or min(DEFAULT_PAYLOAD_RETENTION, table.retention),
        max_body=table.max_body,
        keep_headers=table.keep_headers,
        on_replay=table.on_replay,
        handshake=table.handshake,
        verify_tokens=verify_tokens,
        options=options,
        secret_names=secret_names,
        redact=table.redact,
    )


def _check_proof(table: SourceTable, provider: Provider) -> None:
    """Refuse a source without the secret that it needs, or with a secret that is never used."""
    if table.unverified and provider.verification is None:
        raise ValueError(f"unverified is true, but {provider.name} can be verified; leave it out")
    if provider.verification is not None and not table.unverified:
        raise ValueError(
            f"unverified is missing: {provider.name} signs nothing, so whoever knows the address can post"
            " events; write unverified = true if your handler asks the provider before it believes one"
        )
    if provider.needs_secret and table.secrets_env is None:
        raise ValueError("secrets_env is missing; name the variable that holds the secret")
    if not provider.needs_secret and table.secrets_env is not None:
        raise ValueError(f"secrets_env is set, but {provider.name} shares no secret; leave it out")


def _check_times(table: SourceTable, provider: Provider) -> None:
    if table.tolerance and not provider.has_tolerable_time:
        raise ValueError(
            f"tolerance is {table.tolerance}, but {provider.name} signs no timestamp; leave it out"
        )
    if table.retention < provider.window:
        raise ValueError(
            f"retention is {in_words(table.retention)}, but {provider.name} can send an event again for"
            f" {in_words(provider.window)} ({provider.window_reason});"
            f" allowed is {in_words(provider.window)} or more"
        )
    if table.tolerance and timedelta(seconds=table.tolerance) > table.retention:
        raise ValueError(
            f"tolerance is {table.tolerance} seconds, longer than retention: old deliveries could return"
        )
    if table.payload_retention and table.payload_retention > table.retention:
        raise ValueError(
            f"payload_retention is {in_words(table.payload_retention)}, longer than retention:"
            f" allowed is {in_words(table.retention)} or less"
        )


def _check_handshake(table: SourceTable, provider: Provider) -> None:
    if table.handshake and not provider.has_unsigned_handshake:
        raise ValueError(f"handshake is true, but {provider.name} has no unsigned handshake; leave it out")
    if table.handshake and provider.needs_verify_token and table.verify_token_env is None:
        raise ValueError(
            f"verify_token_env is missing; {provider.name}'s handshake holds a token that you chose there"
        )
    if table.verify_token_env and not (table.handshake and provider.needs_verify_token):
        raise ValueError(
            "verify_token_env is for handshake = true with a provider that sends a verify token; leave it out"
        )


def _check_replay(table: SourceTable, provider: Provider) -> None:
    # A guard that does nothing would only seem to protect.
    if table.on_replay == "run" or can_be_replayed(provider):
        return
    if not provider.signs_body:
        reason = f"{provider.name} does not sign the body"
    elif provider.id_is_signed:
        reason = f"the event's id is inside the bytes that {provider.name} signs"
    else:
        reason = f"equal deliveries of {provider.name} are events of their own"
    raise ValueError(f"on_replay is 'park', but {reason}; only 'run' is allowed")


def _read_secrets(
    provider: Provider, variables: tuple[str, ...], environ: Mapping[str, str], *, separated: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Return the usable secrets, each once, and a sentence for each that is missing or cannot be used.

    A variable holds several secrets with commas between them if they are `separated`, one otherwise.
    """
    # A dictionary keeps the order: deliveries are verified with the first secret first.
    found: dict[str, None] = {}
    warnings = []
    for variable in variables:
        whole = environ.get(variable, "").strip()
        secrets = split_list(whole) if separated else (whole,) if whole else ()
        if not secrets:
            warnings.append(
                f"the environment variable {variable} is {'empty' if variable in environ else 'not set'}"
            )
        for number, secret in enumerate(secrets, 1):
            if is_usable(secret, provider.scheme):
                found[secret] = None
            else:
                warnings.append(
                    f"secret {number} in {variable} is not written as {provider.name}'s secrets are"
                )
    return tuple(found), warnings
