"""A provider as one file of this folder describes it.

The keys of a file:

scheme         how deliveries are signed, see scheme_tables.py; or a provider that signs the same way
code           instead of a scheme: a verifier in receiver/verifiers/. It signs the body unless `signs` says
               otherwise, takes the source's `options`, and shares no secret if `keyless`; `proof` lists
               headers that are never kept
verification   instead of a scheme: "none" where nothing proves the sender, which the source must confirm
event_id       where the event's id is; several places make one composite id, and a ? ends a place that may be
               missing
without_id     what names an event whose id is missing: "park" (default), "body_hash" or "none" (a new name)
dedup          instead of event_id: "body_hash", or "none" where equal bodies are distinct events
event_type     where its type is; several places are joined with a dot
batch          where the array of events is; item: reads in one of them, and item:# is its place in the array
batch_type     the content type of a batch, where single events come too
empty_body     events come as headers alone
handshake      requests that are not events, see HandshakeTable
success_body   the exact body of a success, where the provider insists; success_status its status
deadline       how long the provider waits for an answer
window         how long an event can still come again, retries and manual resends together
verified       true when the entry was read in the provider's own documentation or library
unread         facts that were not read anywhere: check them before you build on them

A place is header:, json:, item:, query: or form: and a name; a|b is the first that is there.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from typing import Annotated, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from config.providers.locators import HEADER_NAME, VALUE_KINDS, Locators, parse_locator, parse_locators
from config.providers.scheme_tables import SchemeTable, place_of, readable_by
from config.toml import ConfigError, Duration, Table

# The shortest retry horizon of any provider, with its margin.
SHORTEST_WINDOW = timedelta(days=1)

CODE_KEYS = frozenset({"signs", "keyless", "proof"})

# Kinds of places that are signed with the body.
IN_BODY = frozenset({"json", "item", "form"})

# Values of a handshake's `when` besides a text: any value, no value, the source's verify token.
ANY, ABSENT, VERIFY_TOKEN = "*", "", "{verify_token}"

PLACEHOLDERS = frozenset({"challenge", "proof", "verify_token"})

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")

Dedup = Literal["id", "composite", "body_hash", "none"]
WithoutId = Literal["park", "body_hash", "none"]
Fact = Literal["scheme", "event_id", "event_type", "batch", "handshake", "answer", "window"]
Signed = Literal["body", "url"]
Texts = TypeVar("Texts", bound=Collection[str])


def parse_part(text: str) -> Locators:
    """Read one part of an event's id; a `?` at its end leaves the part out where it is missing."""
    where = parse_locators(text.removesuffix("?"), VALUE_KINDS)
    return replace(where, optional=text.endswith("?"))


def _check_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    if parts and all(parse_part(part).optional for part in parts):
        raise ValueError("every part may be missing; at least one must be there always")
    return parts


def _check_header_names(names: Texts) -> Texts:
    for name in names:
        if not HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a header's name")
    return names


TextAsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
TableAsList = BeforeValidator(lambda value: [value] if isinstance(value, dict) else value)

ARE_PLACES = readable_by(partial(parse_locators, kinds=VALUE_KINDS), each=True)

Place = Annotated[StrictStr, place_of(VALUE_KINDS)]
Places = Annotated[tuple[StrictStr, ...], TextAsList, ARE_PLACES]
BatchPlace = Annotated[StrictStr, readable_by(partial(parse_locator, kinds=("json", "form"), root=True))]
IdParts = Annotated[tuple[StrictStr, ...], TextAsList, AfterValidator(_check_parts)]
HeaderNames = Annotated[tuple[StrictStr, ...], AfterValidator(_check_header_names)]


class TimeTable(Table):
    """Where the provider's own time of the event is."""

    at: Place = Field(alias="in")
    unit: Literal["s", "ms", "iso8601"]

    @cached_property
    def places(self) -> Locators:
        """The time's places."""
        return parse_locators(self.at, VALUE_KINDS)


class ProofTable(Table):
    """An HMAC of the challenge under the source's secret."""

    hash: Literal["sha256"]
    encoding: Literal["hex", "base64"]
    prefix: StrictStr = ""


class HandshakeTable(Table):
    """A request that asks whether the endpoint is ours, recognised by `when`, and the answer that it wants.

    `signed` ones are answered once their signature is verified; the others only in sources that opt in.
    `answer` is a text, or a table that is sent as JSON; it and `headers` may hold `{challenge}`, `{proof}`
    and `{verify_token}`. Of several handshakes the first that fits is answered.
    """

    method: Literal["GET", "POST", "HEAD", "OPTIONS"]
    signed: StrictBool
    when: Annotated[Mapping[StrictStr, StrictStr], ARE_PLACES] = {}
    challenge: Place | None = None
    proof: ProofTable | None = None
    answer: StrictStr | Mapping[StrictStr, StrictStr | StrictInt] = ""
    headers: Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_check_header_names)] = {}
    status: Annotated[StrictInt, Field(ge=200, le=299)] = 200

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if unknown := self.placeholders - PLACEHOLDERS:
            raise ValueError(
                f"{{{min(unknown)}}} is not a placeholder; known are {', '.join(sorted(PLACEHOLDERS))}"
            )
        if (self.challenge is not None) != bool(self.placeholders & {"challenge", "proof"}):
            raise ValueError("challenge and an answer with {challenge} or {proof} go together")
        if (self.proof is not None) != ("proof" in self.placeholders):
            raise ValueError("proof and an answer with {proof} go together")
        # Answered before any signature is looked at, it must not fit what could be an event.
        if not self.signed and self.method == "POST" and not (self.when or self.challenge):
            raise ValueError("an unsigned POST needs when or a challenge, or it would swallow events")
        return self

    @property
    def placeholders(self) -> frozenset[str]:
        """What the answer takes from the request or the source."""
        answers = [self.answer] if isinstance(self.answer, str) else map(str, self.answer.values())
        texts = (*answers, *self.headers.values())
        return frozenset(name for text in texts for name in _PLACEHOLDER.findall(text))

    @property
    def needs_verify_token(self) -> bool:
        """Whether the source must say its verify token."""
        return VERIFY_TOKEN in self.when.values() or "verify_token" in self.placeholders


class Provider(Table):
    """One entry of the catalogue; the module's docstring explains the keys.

    An entry verifies by exactly one of `scheme`, `code`, `custom` (each source brings its own scheme) and
    `verification = "none"`.
    """

    name: StrictStr
    title: StrictStr
    custom: StrictBool = False
    code: Annotated[StrictStr, Field(min_length=1)] | None = None
    options: tuple[StrictStr, ...] = ()
    signs: tuple[Signed, ...] = ("body",)
    keyless: StrictBool = False
    proof: HeaderNames = ()
    verification: Literal["none"] | None = None
    scheme: SchemeTable | None = None
    secret_prefix: StrictStr = ""
    dedup: Dedup | None = None
    event_id: IdParts = ()
    without_id: WithoutId = "park"
    event_type: Places = ()
    created_at: TimeTable | None = None
    batch: BatchPlace | None = None
    batch_type: StrictStr = ""
    empty_body: StrictBool = False
    keep_headers: HeaderNames = ()
    success_status: Annotated[StrictInt, Field(ge=200, le=299)] = 200
    success_body: StrictStr | None = None
    empty_rejection: StrictBool = False
    deadline: Duration | None = None
    handshake: Annotated[tuple[HandshakeTable, ...], TableAsList] = ()
    window: Duration
    window_reason: Annotated[StrictStr, Field(min_length=1)]
    note: StrictStr = ""
    docs: StrictStr = ""
    verified: StrictBool = False
    unread: tuple[Fact, ...] = ()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        ways = (self.scheme is not None, self.code is not None, self.custom, self.verification is not None)
        if ways.count(True) != 1:
            raise ValueError('an entry has exactly one of scheme, code, custom = true, verification = "none"')
        if self.options and self.code is None:
            raise ValueError("options are for code; a scheme's are the names of its {config:...}")
        unused = self.model_fields_set & CODE_KEYS
        if unused and self.code is None:
            raise ValueError(f"{min(unused)} is for code; a scheme says the same by itself")
        # A custom entry says nothing of events: each source does.
        if not self.custom:
            self._check_event_ids()
            if self.window < SHORTEST_WINDOW:
                raise ValueError("window is shorter than 1d, and every provider can send again for that long")
            if self.longest_tolerance and self.window < self.longest_tolerance:
                raise ValueError(
                    "window is shorter than the scheme's tolerance: an old delivery could be replayed"
                )
        return self

    def _check_event_ids(self) -> None:
        if not self.event_id and self.dedup not in ("body_hash", "none"):
            raise ValueError(
                'event_id is missing; name where the event\'s id is, or say dedup = "body_hash" or "none"'
            )
        if self.without_id != "park" and not self.event_id:
            raise ValueError("without_id is for an event_id that may be missing, and there is no event_id")
        if self.event_id and self.dedup not in (None, self.policy):
            raise ValueError(f"dedup is {self.dedup!r}, but event_id makes it {self.policy!r}: leave it out")
        kinds = {place.kind for where in self.id_places for place in where.places}
        if self.batch is None and self.batch_type:
            raise ValueError("batch_type says when a body is a batch, but the entry has no batch")
        if self.batch is None and "item" in kinds:
            raise ValueError("event_id reads item:, but the entry has no batch to take items from")
        if self.batch is not None and kinds and "item" not in kinds:
            raise ValueError("event_id must read item: in a batch, or all of its events would share one id")

    @property
    def longest_tolerance(self) -> timedelta:
        """How old a signed delivery may be at most; zero when there is no limit, or code knows it."""
        schemes = (self.scheme, *self.scheme.schemes) if self.scheme else ()
        seconds = [scheme.timestamp.tolerance or 0 for scheme in schemes if scheme.timestamp]
        return timedelta(seconds=max(seconds, default=0))

    @property
    def required_scheme(self) -> SchemeTable:
        """The scheme; raise ConfigError for an entry that has none of its own."""
        if self.code is not None:
            raise ConfigError(f"{self.name} is verified by code, not by a scheme")
        if self.verification is not None:
            raise ConfigError(f"{self.name} signs nothing, so it has no scheme")
        if self.scheme is None:
            raise ConfigError(f"{self.name} has no scheme of its own: a source must bring one in its options")
        return self.scheme

    @property
    def option_names(self) -> frozenset[str]:
        """The options that a source must give."""
        return self.scheme.config_names if self.scheme else frozenset(self.options)

    @property
    def signature_headers(self) -> frozenset[str]:
        """Names, in lower case, of the headers that hold a signature or a token, as an entry knows them."""
        names = frozenset(name.lower() for name in self.proof)
        return self.scheme.signature_headers if self.scheme else names

    @property
    def has_tolerable_time(self) -> bool:
        """Whether a source's own tolerance means anything."""
        return self.scheme is not None and self.scheme.has_tolerable_time

    @cached_property
    def id_places(self) -> tuple[Locators, ...]:
        """Where the parts of the event's id are."""
        return tuple(parse_part(part) for part in self.event_id)

    @cached_property
    def type_places(self) -> tuple[Locators, ...]:
        """Where the parts of the event's type are."""
        return tuple(parse_locators(place, VALUE_KINDS) for place in self.event_type)

    @property
    def policy(self) -> Dedup:
        """What makes two deliveries one event."""
        if self.event_id:
            return "composite" if len(self.event_id) > 1 else "id"
        return self.dedup or "body_hash"

    @property
    def is_batch(self) -> bool:
        """Whether one delivery carries several events."""
        return self.batch is not None

    @property
    def success_type(self) -> str:
        """The content type of `success_body`: JSON where it is JSON."""
        return "application/json" if (self.success_body or "")[:1] == "{" else "text/plain; charset=utf-8"

    @property
    def has_unsigned_handshake(self) -> bool:
        """Whether a source may opt in to a handshake that proves nothing of its sender."""
        return any(not handshake.signed for handshake in self.handshake)

    @property
    def needs_verify_token(self) -> bool:
        """Whether a handshake holds a token that the source must know."""
        return any(handshake.needs_verify_token for handshake in self.handshake)

    @property
    def needs_secret(self) -> bool:
        """Whether a source must share a secret with the provider."""
        return not self.keyless and self.verification is None

    @cached_property
    def signs_body(self) -> bool:
        """Whether the body is in the signed bytes; never with a token or Basic."""
        if self.scheme is None and not self.custom:
            return self.code is not None and "body" in self.signs
        return self.required_scheme.signs_body

    @cached_property
    def signs_url(self) -> bool:
        """Whether the URL is in the signed bytes, so that it must be the one that the provider called."""
        if self.scheme is None:
            return self.code is not None and "url" in self.signs
        return self.scheme.signs_url

    @cached_property
    def id_is_signed(self) -> bool:
        """Whether changing the event's id breaks the signature."""
        if self.policy == "body_hash":
            return self.signs_body
        if self.scheme is not None:
            return bool(self.id_places) and all(map(self.scheme.signs, self.id_places))
        kinds = {place.kind for where in self.id_places for place in where.places}
        return bool(self.id_places) and self.signs_body and kinds <= IN_BODY
