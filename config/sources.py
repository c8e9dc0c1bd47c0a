"""What this deployment receives: one table per source, checked at start-up against its provider."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr, ValidationError

from config.durations import WrittenDuration, in_words
from config.errors import ConfigError
from config.providers import HeaderNames, Provider, SchemeTable, describe_provider
from config.redaction import JsonPath, JsonPaths
from config.source_secrets import (
    Variable,
    Variables,
    check_proof,
    missing_token,
    read_list,
    read_secrets,
    variables,
)
from config.tables import Table, explain, kind_of, read_toml, suggest

SOURCES = Path(__file__).with_name("sources.toml")
MEBIBYTE = 1_048_576
LARGEST_BODY = 100 * MEBIBYTE
DEFAULT_RETENTION = timedelta(
    days=400
)  # a tombstone outlives every provider's manual resend, and one year's audit
DEFAULT_PAYLOAD_RETENTION = timedelta(days=30)
NEVER_KEPT = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
SILENT = frozenset({"secrets_env", "secret", "secrets", "key", "options"})
"""Keys whose values an error never repeats: a secret may stand there by mistake."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

OnReplay = Literal["run", "park"]


class SourceTable(Table):
    """A source as it is written."""

    provider: StrictStr
    secrets_env: Variables | None = None
    verifier: StrictStr | None = None
    unverified: StrictBool = False
    tolerance: Annotated[StrictInt, Field(ge=1, le=31_536_000)] | None = None
    retention: WrittenDuration = DEFAULT_RETENTION
    payload_retention: WrittenDuration | None = None
    max_body: Annotated[StrictInt, Field(ge=1, le=LARGEST_BODY)] = MEBIBYTE
    keep_headers: HeaderNames = ()
    on_replay: OnReplay = "run"
    redact: JsonPaths = ()
    handshake: StrictBool = False
    verify_token_env: Variable | None = None
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
        """What equal bytes under a new id meet; None where ids are signed, or nothing is."""
        return self.on_replay if can_be_replayed(self.provider) else None


def can_be_replayed(provider: Provider) -> bool:
    """Whether captured bytes verify again under another event id."""
    return provider.policy in ("id", "composite") and provider.signs_body and not provider.id_is_signed


def load_sources(
    path: Path, providers: Mapping[str, Provider], environ: Mapping[str, str]
) -> Mapping[str, Source]:
    """Load every source; raise ConfigError with one sentence for the first thing that is wrong."""
    return {name: _load(path, name, entry, providers, environ) for name, entry in read_toml(path).items()}


def _load(
    path: Path, name: str, entry: Any, providers: Mapping[str, Provider], environ: Mapping[str, str]
) -> Source:
    try:
        table = _read(name, entry)
        known = _known(table.provider, providers)
        provider, options = describe_provider(known, table.options, table.verifier, table.secrets_env)
        check_proof(provider, table.secrets_env, unverified=table.unverified)
        _check_against(table, provider)
        secrets, warnings = read_secrets(provider, table.secrets_env, environ)
        payload_retention = table.payload_retention or min(DEFAULT_PAYLOAD_RETENTION, table.retention)
    except ValueError as error:
        raise ConfigError(f"{path}: [{name}] {error}") from None
    return Source(
        name=name,
        provider=provider,
        secrets=secrets,
        problem=f"[{name}] has no secret: {'; '.join(warnings)}" if warnings and not secrets else None,
        warnings=(*warnings, *missing_token(table.verify_token_env, environ)),
        tolerance=table.tolerance,
        retention=table.retention,
        payload_retention=payload_retention,
        max_body=table.max_body,
        keep_headers=table.keep_headers,
        on_replay=table.on_replay,
        handshake=table.handshake,
        verify_tokens=read_list(table.verify_token_env, environ),
        options=options,
        secret_names=variables(table.secrets_env),
        redact=table.redact,
    )


def _read(name: str, entry: Any) -> SourceTable:
    if not isinstance(entry, dict):
        raise ValueError(f"is {kind_of(entry)}; every source must be a table such as [stripe]")  # noqa: TRY004 - one kind of error carries the sentence
    if not _NAME.fullmatch(name):
        raise ValueError(
            "is no name for a source; allowed are 1 to 64 of a-z, 0-9, _ and -, a letter or digit first"
        )
    try:
        return SourceTable.model_validate(entry)
    except ValidationError as error:
        raise ValueError(explain(error, SILENT)) from None


def _known(name: str, providers: Mapping[str, Provider]) -> Provider:
    if name not in providers:
        hint = suggest(name, providers, "firstseen providers")
        raise ValueError(f"provider is {name!r}, which is not in the catalogue{hint}")
    return providers[name]


def _check_against(table: SourceTable, provider: Provider) -> None:
    _check_times(table, provider)
    _check_handshake(table, provider)
    if table.on_replay == "park" and not can_be_replayed(provider):
        raise ValueError(f"on_replay is 'park', but {_why_no_replay(provider)}; only 'run' is allowed")
    signatures = provider.signature_headers
    for header in table.keep_headers:
        if header.lower() in NEVER_KEPT | signatures or "signature" in header.lower():
            raise ValueError(
                f"keep_headers has {header!r}; credentials, cookies and signatures are never kept"
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


def _why_no_replay(provider: Provider) -> str:
    if not provider.signs_body:
        return f"{provider.name} does not sign the body"
    if provider.id_is_signed:
        return f"the event's id is inside the bytes that {provider.name} signs"
    return f"equal deliveries of {provider.name} are events of their own"
