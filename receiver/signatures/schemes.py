"""Schemes: a compiled table that verifies a delivery, and signs one."""

import hmac
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Protocol

from config.providers import (
    KeyTable,
    Locator,
    Locators,
    Part,
    Placeholder,
    SchemeTable,
    SignatureTable,
    TimestampTable,
    key_bytes,
    parse_locator,
    parse_locators,
)
from receiver.signatures.algorithms import Hmac, PlainHash, PublicKey, Signer
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import (
    DECODERS,
    Request,
    candidates,
    encode,
    from_base64,
    one_text,
    put,
    wire,
)
from receiver.signatures.timestamps import check_age, format_time

# The signed bytes of a delivery, from a template that is compiled once.


@dataclass(frozen=True, slots=True)
class Signing:
    """What a template draws on; `secret` is used by plain digests only."""

    request: Request
    timestamp: str = ""
    event_id: str = ""
    secret: bytes = b""


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


def compile_content(parts: Sequence[Part], options: Mapping[str, str]) -> Piece:
    """Compile a template's parts; the result raises InvalidSignature when a value is missing."""
    pieces = tuple(_compile_part(part, options) for part in parts)
    if len(pieces) == 1:
        return pieces[0]
    return lambda signing: b"".join([piece(signing) for piece in pieces])


def _compile_part(part: Part, options: Mapping[str, str]) -> Piece:
    if isinstance(part, str):
        return _constant(part)
    if part.kind == "config":
        return _constant(options[part.name])
    return _PLAIN[part.kind] if part.kind in _PLAIN else _located(part)


def _constant(text: str) -> Piece:
    raw = text.encode()
    return lambda _: raw


def _located(part: Placeholder) -> Piece:
    where = Locators((parse_locator(str(part)),))
    to_bytes = wire if part.kind == "header" else _utf8
    return lambda signing: to_bytes(one_text(where, signing.request, "missing_value"))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


# Finding the signatures of a delivery: one value, a list, or pairs such as `t=...,v1=...`.


MAX_ENTRIES = 100  # Stripe and its kind send one per live secret; what stands behind a hundred is not read

SEPARATORS = (",", " ", ";", ".", "|", "&")


@dataclass(frozen=True)
class Found:
    """Decoded signatures to try, and the other fields that stood beside them."""

    signatures: tuple[bytes, ...]
    fields: Mapping[str, str]


class SignatureFinder:
    """Compiled from a `SignatureTable`."""

    def __init__(self, table: SignatureTable) -> None:
        self.where = table.places
        self._decode = DECODERS[table.encoding or "hex"]
        self._encoding = table.encoding or "hex"
        self._prefix = table.prefix
        self._separator = re.compile(table.list_sep) if table.list_sep else None
        self._pair_sep = table.pair_sep
        self._field = table.field

    def find(self, request: Request) -> Found:
        """Read all signatures that are written as they should be; InvalidSignature when there is none.

        Entries of unknown versions and malformed ones are skipped: providers add versions without notice.
        """
        entries = self._entries(request)
        fields: dict[str, str] = {}
        if self._pair_sep:
            pairs = [self._pair(entry) for entry in entries]
            fields = dict(reversed(pairs))  # the first of equal names counts
            entries = [value for name, value in pairs if name == self._field]
        prefix = self._prefix
        decoded = (self._decode(entry[len(prefix) :]) for entry in entries if entry.startswith(prefix))
        signatures = tuple(raw for raw in decoded if raw)
        if not signatures:
            raise InvalidSignature("malformed_signature", str(self.where))
        return Found(signatures, fields)

    def _entries(self, request: Request) -> list[str]:
        groups = candidates(self.where, request)
        if not groups:
            raise InvalidSignature("missing_signature", str(self.where))
        if any(len(values) > 1 for values in groups):
            raise InvalidSignature("repeated_value", str(self.where))
        if self._separator is None:
            return [values[0] for values in groups]
        split = (self._separator.split(values[0], maxsplit=MAX_ENTRIES)[:MAX_ENTRIES] for values in groups)
        return [entry.strip(" \t") for entries in split for entry in entries]

    def _pair(self, entry: str) -> tuple[str, str]:
        name, _, value = entry.partition(self._pair_sep or "=")
        return name.strip(" \t"), value.strip(" \t")

    def write(self, signature: bytes, fields: Mapping[str, str]) -> str:
        """Write the text that `find` reads back: for signing."""
        text = self._prefix + encode(signature, self._encoding)
        if not self._pair_sep:
            return text
        pairs = [*fields.items(), (self._field or "", text)]
        return self._joiner().join(f"{name}{self._pair_sep}{value}" for name, value in pairs)

    def _joiner(self) -> str:
        if self._separator is None:
            return ","
        fitting = (text for text in SEPARATORS if self._separator.fullmatch(text))
        return next(fitting, ",")


class Scheme(Protocol):
    """What every way of signing can do."""

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """Return when a secret fits; raise InvalidSignature, and nothing else, otherwise."""

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:
        """Return the request as the provider would send it; raise CannotSign or ValueError."""


class SignedScheme:
    """A signature over a template's bytes."""

    def __init__(
        self, table: SchemeTable, signer: Signer, finder: SignatureFinder, options: Mapping[str, str]
    ) -> None:
        self._signer = signer
        self._finder = finder
        self._content = compile_content(table.parts, options)
        self._require = Requirements(table.require)
        self._timestamp = table.timestamp
        self._nonce_field = table.nonce_field
        self._id = parse_locators(table.id) if table.id else None
        self._signs_time = Placeholder("timestamp") in table.placeholders
        self._uses_secret = table.type == "hash"
        self._located = tuple(
            parse_locator(str(part))
            for part in table.parts
            if isinstance(part, Placeholder) and _is_place(part)
        )

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:
        """See `Scheme`: requirements, then the signature, then its age."""
        found = self._finder.find(request)
        self._require.check(request)
        limit = tolerance or (self._timestamp.tolerance if self._timestamp else None)
        timestamp = self._time_text(request, found.fields, needed=limit is not None)
        event_id = one_text(self._id, request, "missing_value") if self._id else ""
        self._check_any(secrets, Signing(request, timestamp, event_id), found.signatures)
        if self._timestamp and limit:
            check_age(timestamp, self._timestamp.unit, now, limit)

    def _time_text(self, request: Request, fields: Mapping[str, str], *, needed: bool) -> str:
        if self._nonce_field:
            return _field(fields, self._nonce_field)
        if self._timestamp is None or not (needed or self._signs_time):
            return ""
        places = self._timestamp.places
        if places.places[0].kind == "sig":
            return _field(fields, places.places[0].name)
        return one_text(places, request, "missing_timestamp")

    def _check_any(self, secrets: Sequence[str], signing: Signing, signatures: tuple[bytes, ...]) -> None:
        usable = False
        content = b"" if self._uses_secret else self._content(signing)
        for secret in secrets:
            if self._uses_secret:
                content = self._content(self._with_secret(signing, secret))
            verdict = self._signer.verify(secret, content, signatures)
            if verdict:
                return
            usable = usable or verdict is not None
        raise InvalidSignature("bad_signature" if usable else "no_secret")

    @staticmethod
    def _with_secret(signing: Signing, secret: str) -> Signing:
        return replace(signing, secret=key_bytes(secret, "utf8") or b"")

    def sign(self, secret: str, request: Request, now: float, event_id: str) -> Request:
        """See `Scheme`; what the template needs beyond id and time is filled with the id."""
        request = self._require.meet(request)
        fields, timestamp = self._stamp(now, event_id)
        if self._timestamp and not fields:
            request = _put_time(self._timestamp, timestamp, request)
        for where in (self._id, *(Locators((place,)) for place in self._located)):
            if where is not None and not candidates(where, request):
                request = put(where.places[0], event_id, request)
        if self._id and event_id:
            request = put(self._id.places[0], event_id, request)
        signing = self._with_secret(Signing(request, timestamp, event_id), secret)
        text = self._finder.write(self._signer.sign(secret, self._content(signing)), fields)
        return put(self._finder.where.places[0], text, request)

    def _stamp(self, now: float, event_id: str) -> tuple[dict[str, str], str]:
        if self._nonce_field:
            nonce = sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            return {self._nonce_field: nonce}, nonce
        if self._timestamp is None:
            return {}, ""
        text = format_time(now, self._timestamp.unit)
        place = self._timestamp.places.places[0]
        return ({place.name: text} if place.kind == "sig" else {}), text


class TokenScheme:
    """A shared secret sent as it is: proof of the sender, not of the bytes."""

    def __init__(self, where: Locators, prefix: str, require: Mapping[str, str]) -> None:
        self._where, self._prefix, self._require = where, prefix, Requirements(require)

    def verify(self, secrets: Sequence[str], request: Request, now: float, tolerance: int | None) -> None:  # noqa: ARG002
        """See `Scheme`; compared in constant time."""
        text = one_text(self._where, request, "missing_signature")
        self._require.check(request)
        token = self._token(text)
        usable = [raw for secret in secrets if (raw := key_bytes(secret, "utf8"))]
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
        self._needed = tuple((parse_locator(place), value) for place, value in table.items())

    def check(self, request: Request) -> None:
        """Raise InvalidSignature when one is missing or different."""
        for place, value in self._needed:
            if one_text(Locators((place,)), request, "unmet_requirement") != value:
                raise InvalidSignature("unmet_requirement", str(place))

    def meet(self, request: Request) -> Request:
        """Put them."""
        for place, value in self._needed:
            request = put(place, value, request)
        return request


def _field(fields: Mapping[str, str], name: str) -> str:
    if not fields.get(name):
        raise InvalidSignature("missing_timestamp", f"{name} in the signature")
    return fields[name]


def _is_place(part: Placeholder) -> bool:
    return part.kind in {"json", "header", "query", "form"}


def _put_time(table: TimestampTable, text: str, request: Request) -> Request:
    place: Locator = table.places.places[0]
    number = place.kind == "json" and table.unit != "iso8601"
    return put(place, int(text) if number else text, request)


# From a table to a scheme, once at start-up.


Options = Mapping[str, str]


def compile_scheme(table: SchemeTable, options: Options | None = None) -> Scheme:
    """Compile a validated table; `options` hold the values of `{config:...}` (KeyError when one is missing).

    Raise ConfigError when a public-key scheme finds no `cryptography`.
    """
    return _COMPILERS[table.type](table, options or {})


def _signed(table: SchemeTable, options: Options) -> Scheme:
    return SignedScheme(table, _signer(table), SignatureFinder(_signature(table)), options)


def _signer(table: SchemeTable) -> Signer:
    hash_name = table.hash or "sha256"
    if table.type == "hmac":
        return Hmac(hash_name, table.key or KeyTable())
    if table.type == "hash":
        return PlainHash(hash_name)
    return PublicKey(table.type, table.hash, table.key or KeyTable(encoding="pem"))


def _token(table: SchemeTable, _: Options) -> Scheme:
    signature = _signature(table)
    return TokenScheme(signature.places, signature.prefix, table.require)


def _basic(table: SchemeTable, _: Options) -> Scheme:
    return BasicScheme(_signature(table).places, "", table.require)


def _any_of(table: SchemeTable, options: Options) -> Scheme:
    return AnyOf([compile_scheme(scheme, options) for scheme in table.schemes])


def _signature(table: SchemeTable) -> SignatureTable:
    if table.signature is None:  # the table's own rules refuse this
        raise ValueError("a scheme without a signature")
    return table.signature


_COMPILERS: Mapping[str, Callable[[SchemeTable, Options], Scheme]] = {
    "hmac": _signed,
    "hash": _signed,
    "ed25519": _signed,
    "ecdsa": _signed,
    "rsa": _signed,
    "token": _token,
    "basic": _basic,
    "any_of": _any_of,
}
