"""Schemes: a compiled table that verifies a delivery, and signs one."""

import hmac
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Protocol

from config.providers import (
    Locator,
    Locators,
    Placeholder,
    SchemeTable,
    TimestampTable,
    key_bytes,
    parse_locator,
    parse_locators,
)
from receiver.signatures.clock import check_age, format_time
from receiver.signatures.content import Signing, compile_content
from receiver.signatures.decoding import from_base64, wire
from receiver.signatures.editing import put
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.finding import SignatureFinder
from receiver.signatures.keys import Signer
from receiver.signatures.reading import candidates, one_text
from receiver.signatures.request import Request


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
