"""Schemes: how a provider signs, compiled once from its table; each verifies a delivery and signs one.

`compile_scheme` returns a `Scheme`. A `SignedScheme` finds the signatures (`SignatureFinder`), builds the
signed bytes from the table's template (`compile_content`), checks them under each secret, then their age.
"""

import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

from config import providers
from receiver.signatures.algorithms import Hmac, PlainHash, PublicKey, Signer
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import (
    DECODERS,
    Request,
    encode,
    from_base64,
    put,
    required_text,
    texts_by_place,
    wire,
)
from receiver.signatures.timestamps import check_age, format_time

# Signatures of one delivery that are read: Stripe and its kind send one for each live secret.
MAX_ENTRIES = 100

# What joins two entries when signing: the first of these that the table's `list_sep` splits at.
SEPARATORS = (",", " ", ";", ".", "|", "&")


class Scheme(Protocol):
    """What every way of signing can do. `now` is Unix time, `tolerance` seconds that replace the table's."""

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """Return when a secret fits; raise InvalidSignature, and nothing else, otherwise."""

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:
        """Return the request as the provider would send it; raise CannotSign or ValueError with a sentence.

        Some schemes put their values into the body or the URL. For public keys the secret is the private key.
        """


def compile_scheme(table: providers.SchemeTable, options: Mapping[str, str] | None = None) -> Scheme:
    """Compile a validated table; `options` hold the values of `{config:...}` (KeyError when one is missing).

    Raise ConfigError when a public-key scheme finds no `cryptography`.
    """
    if table.type == "any_of":
        return AnyOf([compile_scheme(scheme, options) for scheme in table.schemes])
    if table.signature is None:  # the table's own rules refuse this
        raise ValueError("a scheme without a signature")
    match table.type:
        case "token":
            return TokenScheme(table.signature.places, table.signature.prefix, table.require)
        case "basic":
            return BasicScheme(table.signature.places, "", table.require)
        case "hmac":
            signer: Signer = Hmac(table.hash or "sha256", table.key or providers.KeyTable())
        case "hash":
            signer = PlainHash(table.hash or "sha256")
        case _:
            signer = PublicKey(table.type, table.hash, table.key or providers.KeyTable(encoding="pem"))
    return SignedScheme(table, signer, SignatureFinder(table.signature), options or {})


@dataclass(frozen=True, slots=True)
class Signing:
    """The values that a template takes; `secret` is used by plain digests only."""

    request: Request
    timestamp: str = ""
    event_id: str = ""
    secret: bytes = b""

    def with_secret(self, secret: str) -> "Signing":
        """Return the same with a secret."""
        return replace(self, secret=providers.key_bytes(secret, "utf8") or b"")


class SignedScheme:
    """A signature over a template's bytes."""

    def __init__(
        self,
        table: providers.SchemeTable,
        signer: Signer,
        finder: "SignatureFinder",
        options: Mapping[str, str],
    ) -> None:
        self._signer, self._finder = signer, finder
        self._content = compile_content(table.parts, options)
        self._require = Requirements(table.require)
        self._timestamp, self._nonce_field = table.timestamp, table.nonce_field
        self._id = providers.parse_locators(table.id) if table.id else None
        self._signs_time = providers.Placeholder("timestamp") in table.placeholders
        self._uses_secret = table.type == "hash"
        self._signed_places = tuple(
            providers.parse_locator(str(part))
            for part in table.parts
            if isinstance(part, providers.Placeholder) and part.kind in {"json", "header", "query", "form"}
        )

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """See `Scheme`: requirements, then the signature, then its age."""
        found = self._finder.find(request)
        self._require.check(request)
        limit = tolerance or (self._timestamp.tolerance if self._timestamp else None)
        timestamp = self._signed_time(request, found.fields, needed=limit is not None)
        event_id = required_text(self._id, request, "missing_value") if self._id else ""
        self._check_any(secrets, Signing(request, timestamp, event_id), found.signatures)
        # Last, so that only a genuine delivery is called stale: the sender's clock and not its secret is off.
        if self._timestamp and limit:
            check_age(timestamp, self._timestamp.unit, now, limit)

    def _signed_time(self, request: Request, fields: Mapping[str, str], *, needed: bool) -> str:
        """Return the text of `{timestamp}`: a field of the signature, or a place of its own."""
        if self._nonce_field:
            field = self._nonce_field
        elif self._timestamp is None or not (needed or self._signs_time):
            return ""
        else:
            places = self._timestamp.places
            if places.places[0].kind != "sig":
                return required_text(places, request, "missing_timestamp")
            field = places.places[0].name
        if not fields.get(field):
            raise InvalidSignature("missing_timestamp", f"{field} in the signature")
        return fields[field]

    def _check_any(self, secrets: Sequence[str], signing: Signing, signatures: tuple[bytes, ...]) -> None:
        usable = False
        # Once for all secrets, unless the secret is a part of it.
        content = b"" if self._uses_secret else self._content(signing)
        for secret in secrets:
            if self._uses_secret:
                content = self._content(signing.with_secret(secret))
            verdict = self._signer.verify(secret, content, signatures)
            if verdict:
                return
            usable = usable or verdict is not None
        raise InvalidSignature("bad_signature" if usable else "no_secret")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:
        """See `Scheme`; places in the template that the request leaves empty are filled with the id."""
        request = self._require.meet(request)
        fields: dict[str, str] = {}
        timestamp = ""
        if self._nonce_field:
            # Of the id, so that one event is signed the same way each time.
            timestamp = sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            fields = {self._nonce_field: timestamp}
        elif self._timestamp is not None:
            timestamp = format_time(now, self._timestamp.unit)
            place = self._timestamp.places.places[0]
            if place.kind == "sig":
                fields = {place.name: timestamp}
            else:
                number = place.kind == "json" and self._timestamp.unit != "iso8601"
                request = put(place, int(timestamp) if number else timestamp, request)
        for where in (self._id, *(providers.Locators((place,)) for place in self._signed_places)):
            if where is not None and not texts_by_place(where, request):
                request = put(where.places[0], event_id, request)
        if self._id and event_id:
            request = put(self._id.places[0], event_id, request)
        content = self._content(Signing(request, timestamp, event_id).with_secret(secret))
        text = self._finder.write(self._signer.sign(secret, content), fields)
        return put(self._finder.where.places[0], text, request)


class TokenScheme:
    """A shared secret sent as it is: proof of the sender, not of the bytes."""

    def __init__(self, where: providers.Locators, prefix: str, require: Mapping[str, str]) -> None:
        self._where, self._prefix, self._require = where, prefix, Requirements(require)

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Scheme`; compared in constant time."""
        text = required_text(self._where, request, "missing_signature")
        self._require.check(request)
        token = self._token(text)
        usable = [raw for secret in secrets if (raw := providers.key_bytes(secret, "utf8"))]
        if not usable:
            raise InvalidSignature("no_secret")
        if not any(hmac.compare_digest(token, secret) for secret in usable):
            raise InvalidSignature("bad_signature")

    def _token(self, text: str) -> bytes:
        if not text.startswith(self._prefix):
            raise InvalidSignature("malformed_signature", str(self._where))
        return wire(text[len(self._prefix) :])

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """See `Scheme`."""
        return put(self._where.places[0], self._prefix + secret, self._require.meet(request))


class BasicScheme(TokenScheme):
    """HTTP Basic (RFC 7617); the secret is `user:password`, the password may hold colons."""

    def _token(self, text: str) -> bytes:
        word, _, encoded = text.partition(" ")
        pair = from_base64(encoded.strip(" "))
        if word.lower() != "basic" or not pair:
            raise InvalidSignature("malformed_signature", str(self._where))
        return pair

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:  # noqa: ARG002
        """See `Scheme`."""
        pair = b64encode(secret.encode()).decode()
        return put(self._where.places[0], f"Basic {pair}", self._require.meet(request))


class AnyOf:
    """Alternatives; a wrong signature is never made good by a mere token."""

    def __init__(self, schemes: Sequence[Scheme]) -> None:
        self._schemes = tuple(schemes)

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """See `Scheme`; the verdict is that of the first alternative that the delivery tried to meet."""
        verdict: InvalidSignature | None = None
        for scheme in self._schemes:
            # A token proves nothing about the bytes: it must not let in what a wrong signature just refused.
            if verdict and verdict.reason != "missing_signature" and isinstance(scheme, TokenScheme):
                continue
            try:
                return scheme.verify(secrets, request, now, tolerance)
            except InvalidSignature as error:
                if verdict is None or verdict.reason == "missing_signature":
                    verdict = error
        raise verdict or InvalidSignature("no_secret")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:
        """See `Scheme`; signs by the first alternative."""
        return self._schemes[0].sign(secret, request, now, event_id)


class Requirements:
    """Values that a delivery must carry, such as the signature's version."""

    def __init__(self, table: Mapping[str, str]) -> None:
        self._needed = tuple((providers.parse_locator(place), value) for place, value in table.items())

    def check(self, request: Request) -> None:
        """Raise InvalidSignature when one is missing or different."""
        for place, value in self._needed:
            if required_text(providers.Locators((place,)), request, "unmet_requirement") != value:
                raise InvalidSignature("unmet_requirement", str(place))

    def meet(self, request: Request) -> Request:
        """Return the request with these values."""
        for place, value in self._needed:
            request = put(place, value, request)
        return request


# Builds a part of the signed bytes; raises InvalidSignature when its value is missing.
Piece = Callable[[Signing], bytes]

_PLAIN: Mapping[str, Piece] = {
    "body": lambda signing: signing.request.body,
    "body_sha256_hex": lambda signing: sha256(signing.request.body).hexdigest().encode(),
    "timestamp": lambda signing: wire(signing.timestamp),
    "id": lambda signing: wire(signing.event_id),
    "method": lambda signing: wire(signing.request.method),
    "url": lambda signing: wire(signing.request.url),
    "url_no_query": lambda signing: wire(signing.request.url.partition("#")[0].partition("?")[0]),
    "path_query": lambda signing: wire(signing.request.path_query),
    "secret": lambda signing: signing.secret,
}


def compile_content(parts: Sequence[providers.Part], options: Mapping[str, str]) -> Piece:
    """Compile a template's parts into one function that returns the signed bytes."""
    pieces = tuple(_compile_part(part, options) for part in parts)
    if len(pieces) == 1:
        return pieces[0]
    return lambda signing: b"".join([piece(signing) for piece in pieces])


def _compile_part(part: providers.Part, options: Mapping[str, str]) -> Piece:
    if isinstance(part, str) or part.kind == "config":
        constant = (part if isinstance(part, str) else options[part.name]).encode()
        return lambda _: constant
    if part.kind in _PLAIN:
        return _PLAIN[part.kind]
    where = providers.Locators((providers.parse_locator(str(part)),))
    if part.kind == "header":
        return lambda signing: wire(required_text(where, signing.request, "missing_value"))
    # Parsed text: back to the UTF-8 in which it came.
    return lambda signing: required_text(where, signing.request, "missing_value").encode(
        "utf-8", "surrogatepass"
    )


@dataclass(frozen=True)
class FoundSignatures:
    """Decoded signatures to try, and the other fields that stood beside them."""

    signatures: tuple[bytes, ...]
    fields: Mapping[str, str]


class SignatureFinder:
    """Finds the signatures of a delivery: one value, a list, or pairs such as `t=...,v1=...`."""

    def __init__(self, table: providers.SignatureTable) -> None:
        self.where = table.places
        self._encoding = table.encoding or "hex"
        self._decode = DECODERS[self._encoding]
        self._prefix = table.prefix
        self._separator = re.compile(table.list_sep) if table.list_sep else None
        self._pair_sep, self._field = table.pair_sep, table.field

    def find(self, request: Request) -> FoundSignatures:
        """Read all signatures that are written as they should be; InvalidSignature when there is none.

        Entries of unknown versions and malformed ones are skipped: providers add versions without notice.
        """
        groups = texts_by_place(self.where, request)
        if not groups:
            raise InvalidSignature("missing_signature", str(self.where))
        if any(len(values) > 1 for values in groups):
            raise InvalidSignature("repeated_value", str(self.where))
        entries = [values[0] for values in groups]
        if self._separator is not None:
            split = (self._separator.split(text, maxsplit=MAX_ENTRIES)[:MAX_ENTRIES] for text in entries)
            entries = [entry.strip(" \t") for found in split for entry in found]
        fields: dict[str, str] = {}
        if self._pair_sep:
            parts = (entry.partition(self._pair_sep) for entry in entries)
            pairs = [(name.strip(" \t"), value.strip(" \t")) for name, _, value in parts]
            fields = dict(reversed(pairs))  # the first of equal names counts
            entries = [value for name, value in pairs if name == self._field]
        prefix = self._prefix
        decoded = (self._decode(entry[len(prefix) :]) for entry in entries if entry.startswith(prefix))
        signatures = tuple(raw for raw in decoded if raw)
        if not signatures:
            raise InvalidSignature("malformed_signature", str(self.where))
        return FoundSignatures(signatures, fields)

    def write(self, signature: bytes, fields: Mapping[str, str]) -> str:
        """Write the text that `find` reads back: for signing."""
        text = self._prefix + encode(signature, self._encoding)
        if not self._pair_sep:
            return text
        joiner = ","
        if self._separator is not None:
            joiner = next((text for text in SEPARATORS if self._separator.fullmatch(text)), joiner)
        pairs = [*fields.items(), (self._field or "", text)]
        return joiner.join(f"{name}{self._pair_sep}{value}" for name, value in pairs)
