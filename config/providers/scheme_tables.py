"""How a provider signs, as data: `SchemeTable` and its parts, which `receiver.signatures` compiles.

The rules of the tables refuse a scheme that would verify less than it seems to.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StrictInt, StrictStr, model_validator

from config.providers.locators import Kind, Locator, Locators, parse_locator, parse_locators
from config.toml import Table

Hash = Literal["sha1", "sha256", "sha384", "sha512"]

SchemeType = Literal["hmac", "hash", "ed25519", "ecdsa", "rsa", "token", "basic", "any_of"]

# Where a single signed value can stand.
SIGNED_KINDS: tuple[Kind, ...] = ("header", "json", "query", "form")

URL_KINDS = frozenset({"url", "url_no_query", "path_query"})

# Types that sign nothing: the secret itself is sent.
SHARED: frozenset[SchemeType] = frozenset({"token", "basic"})

# Types whose secret is the provider's public key, with the encodings that it may have.
PUBLIC_KEY: Mapping[SchemeType, frozenset[str]] = {
    "ed25519": frozenset({"ed25519-hex", "ed25519-base64", "spki-base64", "pem"}),
    "ecdsa": frozenset({"spki-base64", "pem"}),
    "rsa": frozenset({"spki-base64", "pem"}),
}

# The keys that a type must have.
NEEDS: Mapping[SchemeType, frozenset[str]] = {
    "hmac": frozenset({"signature", "content", "hash"}),
    "hash": frozenset({"signature", "content", "hash"}),
    "ed25519": frozenset({"signature", "content", "key"}),
    "ecdsa": frozenset({"signature", "content", "hash", "key"}),
    "rsa": frozenset({"signature", "content", "hash", "key"}),
    "token": frozenset({"signature"}),
    "basic": frozenset({"signature"}),
    "any_of": frozenset({"schemes"}),
}

# The keys that a type may have besides: any other would be ignored, and seem to protect something.
MAY: Mapping[SchemeType, frozenset[str]] = {
    "hmac": frozenset({"key", "timestamp", "id", "require", "nonce_field"}),
    "hash": frozenset({"timestamp", "id", "require", "nonce_field"}),
    "ed25519": frozenset({"timestamp", "id", "require", "nonce_field"}),
    "ecdsa": frozenset({"timestamp", "id", "require", "nonce_field"}),
    "rsa": frozenset({"timestamp", "id", "require", "nonce_field"}),
    "token": frozenset({"require"}),
    "basic": frozenset({"require"}),
    "any_of": frozenset(),
}

PLAIN_PLACEHOLDERS = frozenset(
    {"body", "body_sha256_hex", "timestamp", "id", "url", "url_no_query", "path_query", "method", "secret"}
)

NAMED_PLACEHOLDERS = frozenset({"json", "header", "query", "form", "config"})

_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Placeholder:
    """A value of the delivery; `name` is empty except for json, header, query, form and config."""

    kind: str
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


# A piece of the signed bytes: a fixed text, or a value of the delivery.
Part = str | Placeholder


def parse_template(text: str) -> tuple[Part, ...]:
    """Split a template such as `{timestamp}.{body}`; raise ValueError with a sentence."""
    parts: list[Part] = []
    for number, piece in enumerate(_BRACES.split(text)):
        # Every second piece stood between braces.
        if number % 2:
            kind, _, name = piece.partition(":")
            if piece not in PLAIN_PLACEHOLDERS and not (kind in NAMED_PLACEHOLDERS and name):
                plain = (f"{{{name}}}" for name in sorted(PLAIN_PLACEHOLDERS))
                named = (f"{{{name}:...}}" for name in sorted(NAMED_PLACEHOLDERS))
                raise ValueError(
                    f"{{{piece}}} is not a placeholder; allowed are {', '.join([*plain, *named])}"
                )
            parts.append(Placeholder(kind, name))
        elif "{" in piece or "}" in piece:
            raise ValueError(f"{piece!r} has a brace without its other half")
        elif piece:
            parts.append(piece)
    return tuple(parts)


def _check_pattern(text: str) -> str:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    if pattern.match(""):
        raise ValueError(f"{text!r} matches nothing at all; write the characters between two signatures")
    return text


def readable_by(parse: Callable[[str], object], *, each: bool = False) -> AfterValidator:
    """Return a validator of texts, or of the texts in collections (`each`), that `parse` must accept."""

    def check(value: Any) -> Any:
        for text in value if each else (value,):
            parse(text)
        return value

    return AfterValidator(check)


def place_of(kinds: tuple[Kind, ...]) -> AfterValidator:
    """Return a validator of texts that are places of these kinds."""
    return readable_by(partial(parse_locators, kinds=kinds))


SignedPlace = Annotated[StrictStr, place_of(SIGNED_KINDS)]
ARE_SIGNED_PLACES = readable_by(partial(parse_locator, kinds=SIGNED_KINDS), each=True)


class SignatureTable(Table):
    """Where the signature stands and how it is written."""

    at: SignedPlace = Field(alias="in")
    encoding: Literal["hex", "base64", "base64url"] | None = None
    prefix: StrictStr = ""
    list_sep: Annotated[StrictStr, AfterValidator(_check_pattern)] | None = None
    pair_sep: Annotated[StrictStr, Field(min_length=1)] | None = None
    field: Annotated[StrictStr, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.pair_sep is None) != (self.field is None):
            raise ValueError("pair_sep and field go together: field names the pairs that are signatures")
        return self

    @cached_property
    def places(self) -> Locators:
        """The signature's places."""
        return parse_locators(self.at)


class TimestampTable(Table):
    """Where the time of signing stands; `tolerance` in seconds to either side, None for no limit."""

    at: Annotated[StrictStr, place_of((*SIGNED_KINDS, "sig"))] = Field(alias="in")
    unit: Literal["s", "ms", "iso8601"]
    tolerance: Annotated[StrictInt, Field(ge=1)] | None = None

    @cached_property
    def places(self) -> Locators:
        """The timestamp's places."""
        return parse_locators(self.at)


class KeyTable(Table):
    """How a secret's text becomes key bytes."""

    encoding: Literal["utf8", "base64", "hex", "ed25519-hex", "ed25519-base64", "spki-base64", "pem"] = "utf8"
    strip_prefix: StrictStr = ""


class SchemeTable(Table):
    """One scheme: what is signed, with what, and where the signature is."""

    type: SchemeType
    hash: Hash | None = None
    key: KeyTable | None = None
    signature: SignatureTable | None = None
    timestamp: TimestampTable | None = None
    id: SignedPlace | None = None
    content: Annotated[StrictStr, readable_by(parse_template)] | None = None
    require: Annotated[Mapping[StrictStr, StrictStr], ARE_SIGNED_PLACES] = {}
    nonce_field: Annotated[StrictStr, Field(min_length=1)] | None = None
    schemes: tuple["SchemeTable", ...] = ()

    @model_validator(mode="after")
    def _rules(self) -> Self:
        present = self.model_fields_set - {"type"}
        if missing := NEEDS[self.type] - present:
            raise ValueError(f"a scheme of type {self.type!r} needs {_names(missing)}")
        if unused := present - NEEDS[self.type] - MAY[self.type]:
            raise ValueError(f"a scheme of type {self.type!r} has no use for {_names(unused)}")
        if self.type == "any_of" and (not self.schemes or any(s.type == "any_of" for s in self.schemes)):
            raise ValueError("any_of needs at least one scheme, and none of them may be an any_of itself")
        if self.type not in SHARED | {"any_of"}:
            self._check_signed()
            self._check_time()
        return self

    def _check_signed(self) -> None:
        names = {str(part) for part in self.placeholders}
        if not names - {"secret"}:
            raise ValueError(
                "content takes nothing from the delivery, so every delivery has the same signature"
            )
        if (self.type == "hash") != ("secret" in names):
            raise ValueError("{secret} belongs into the content of a scheme of type 'hash', and only there")
        if ("id" in names) != (self.id is not None):
            raise ValueError("{id} in the content and the key id go together (the event's id is event_id)")
        if self.signature is None or self.signature.encoding is None:
            raise ValueError("signature.encoding is missing; allowed are hex, base64 and base64url")
        # A header is no part of the bytes unless the content names it.
        if any(p.kind != "header" and self._signs_place(p) for p in self.signature.places.places):
            raise ValueError("the signature cannot stand inside the bytes that it signs")
        encodings = PUBLIC_KEY.get(self.type, {"utf8", "base64", "hex"})
        if self.key is not None and self.key.encoding not in encodings:
            raise ValueError(f"key.encoding is {self.key.encoding!r}; allowed are {_names(encodings)}")

    def _check_time(self) -> None:
        uses = Placeholder("timestamp") in self.placeholders
        if uses and (self.timestamp is None) == (self.nonce_field is None):
            raise ValueError("{timestamp} in the content needs either the key timestamp or nonce_field")
        if self.nonce_field is not None and not uses:
            raise ValueError("nonce_field names the value of {timestamp}, which the content does not have")
        places = self.timestamp.places.places if self.timestamp else ()
        in_fields = self.nonce_field is not None or any(place.kind == "sig" for place in places)
        if in_fields and (self.signature is None or self.signature.pair_sep is None):
            raise ValueError("a field of the signature header needs signature.pair_sep")
        # Anybody could write a fresh time beside an old signature.
        if self.timestamp and self.timestamp.tolerance and not self.timestamp_is_signed:
            raise ValueError("timestamp.tolerance protects nothing: the timestamp is not in the signed bytes")

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The content, split."""
        return parse_template(self.content or "")

    @cached_property
    def placeholders(self) -> frozenset[Placeholder]:
        """What the content takes from the delivery."""
        return frozenset(part for part in self.parts if isinstance(part, Placeholder))

    @cached_property
    def signs_body(self) -> bool:
        """Whether the whole body is in the signed bytes."""
        if self.schemes:
            return all(scheme.signs_body for scheme in self.schemes)
        return bool(self.placeholders & {Placeholder("body"), Placeholder("body_sha256_hex")})

    @cached_property
    def signs_url(self) -> bool:
        """Whether the URL, or a part of it, is in the signed bytes."""
        kinds = {part.kind for part in self.placeholders}
        return bool(kinds & URL_KINDS) or any(scheme.signs_url for scheme in self.schemes)

    @cached_property
    def timestamp_is_signed(self) -> bool:
        """Whether moving the timestamp breaks the signature."""
        if self.timestamp is None:
            return False
        return Placeholder("timestamp") in self.placeholders or self.signs(self.timestamp.places)

    @cached_property
    def has_tolerable_time(self) -> bool:
        """Whether a tolerance means anything: somewhere a timestamp is signed."""
        return self.timestamp_is_signed or any(scheme.timestamp_is_signed for scheme in self.schemes)

    def signs(self, where: Locators) -> bool:
        """Whether every alternative of a locator reads signed bytes only."""
        if self.schemes:
            return all(scheme.signs(where) for scheme in self.schemes)
        if self.id is not None and parse_locators(self.id) == where:
            return True
        return all(self._signs_place(place) for place in where.places)

    def _signs_place(self, place: Locator) -> bool:
        kinds = {part.kind for part in self.placeholders}
        if place.kind in {"json", "item", "form"} and self.signs_body:
            return True
        if place.kind == "query" and kinds & {"url", "path_query"}:
            return True
        # Single values that the content takes, such as `{header:X-Id}`.
        return any(
            place.same_place(Locator(place.kind, part.name))
            for part in self.placeholders
            if part.kind == place.kind
        )

    @cached_property
    def config_names(self) -> frozenset[str]:
        """The options that a source must give: the names of `{config:...}`."""
        own = {part.name for part in self.placeholders if part.kind == "config"}
        return frozenset(own.union(*(scheme.config_names for scheme in self.schemes)))

    @cached_property
    def signature_headers(self) -> frozenset[str]:
        """Names, in lower case, of the headers that hold a signature or a token."""
        places = self.signature.places.places if self.signature else ()
        own = {place.name.lower() for place in places if place.kind == "header"}
        return frozenset(own.union(*(scheme.signature_headers for scheme in self.schemes)))


def _names(keys: Collection[str]) -> str:
    return ", ".join(sorted(keys))
