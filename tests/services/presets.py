"""Declared providers for tests: secrets of their format, and deliveries that each of them signs."""

import inspect
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, wraps
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from config.providers import PUBLIC_KEY, Locator, Provider, SchemeTable, generate_secret, load_providers
from receiver.signatures import Request, Scheme, compile_scheme
from receiver.signatures.request import put

DECLARED: tuple[Provider, ...] = tuple(p for p in load_providers().values() if p.scheme is not None)
"""Every provider that has a scheme."""

T = TypeVar("T")


def over(cases: Sequence[T]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Turn a check into one test that tries all cases and reports each one that fails.

    A test per case would cost a hundred times more than most checks. The check's first argument is a case,
    the others are fixtures.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(check)
        _, *fixtures = signature.parameters.values()

        @wraps(check, updated=())
        def test(**given: Any) -> None:
            failed = []
            for case in cases:
                try:
                    check(case, **given)
                except Exception as error:  # noqa: BLE001 - all of them are raised together
                    error.add_note(f"It is about {getattr(case, 'name', case)}.")
                    failed.append(error)
            if failed:
                raise ExceptionGroup(f"{len(failed)} of {len(cases)} fail", failed)

        test.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return test

    return decorate


BODY = b'{"id":"evt_1","type":"invoice.paid","data":{"amount":1999},"value":[{"id":"n1"}]}'
URL = "https://receiver.example/webhooks/x?a=1"


def options(provider: Provider) -> dict[str, str]:
    """Return a value for each option that a source of this provider must give."""
    return dict.fromkeys(provider.option_names, "given")


@cache
def compiled(name: str) -> Scheme:
    """Compile a provider's scheme."""
    provider = load_providers()[name]
    return compile_scheme(provider.required_scheme, options(provider))


def signed_headers(
    scheme: Scheme, secret: str, body: bytes, now: float, event_id: str, *, url: str = URL
) -> dict[str, str]:
    """Return the headers that sign a body; fail if signing changes the body."""
    request = scheme.sign(secret, Request("POST", url, (), body), now, event_id)
    assert (request.url, request.body) == (url, body)
    return dict(request.headers)


def make_keys(provider: Provider) -> tuple[str, str]:
    """Return a secret to verify with and one to sign with; they differ for public keys only."""
    scheme = provider.required_scheme
    if scheme.type in PUBLIC_KEY:
        return _pair(scheme)
    secret = generate_secret(provider)
    return secret, secret


def _pair(scheme: SchemeTable) -> tuple[str, str]:
    assert scheme.key is not None
    encoding = scheme.key.encoding
    private = _private(scheme.type)
    if encoding.startswith("ed25519-"):
        raw = (
            private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw),
            private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()),
        )
        public, signing = (b.hex() if encoding == "ed25519-hex" else b64encode(b).decode() for b in raw)
        return public, signing
    how = Encoding.PEM if encoding == "pem" else Encoding.DER
    written = (
        private.public_key().public_bytes(how, PublicFormat.SubjectPublicKeyInfo),
        private.private_bytes(how, PrivateFormat.PKCS8, NoEncryption()),
    )
    public, signing = (b.decode() if how is Encoding.PEM else b64encode(b).decode() for b in written)
    return public, signing


def _private(kind: str) -> ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "ecdsa":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(65_537, 2_048)


def with_values(request: Request, place: Locator, values: Iterable[str]) -> Request:
    """Return the request with the values at a place replaced by these: none, one or several."""
    if place.kind == "header":
        others = tuple(pair for pair in request.headers if pair[0].lower() != place.name.lower())
        return replace(request, headers=(*others, *((place.name, value) for value in values)))
    if place.kind == "query":
        base, _, query = request.url.partition("?")
        pairs = [pair for pair in parse_qsl(query, keep_blank_values=True) if pair[0] != place.name]
        return replace(request, url=f"{base}?{urlencode([*pairs, *((place.name, v) for v in values)])}")
    given = list(values)
    return put(place, given[0] if given else "", request)


def flips(text: str) -> Iterable[tuple[int, str]]:
    """Yield the text with one bit of one character changed, for each character, except changes of case."""
    for position, character in enumerate(text):
        flipped = chr(ord(character) ^ 1)
        if flipped.lower() != character.lower():
            yield position, text[:position] + flipped + text[position + 1 :]


def signing_places(scheme: SchemeTable) -> list[Locator]:
    """Return the places that this scheme reads: signature, time, id, and those that its content names."""
    own = scheme.schemes[0] if scheme.schemes else scheme
    places = [table.places.places[0] for table in (own.signature, own.timestamp) if table]
    texts = [own.id or "", *own.require, *(str(part) for part in own.placeholders)]
    found = [Locator(*pair) for text in texts if (pair := re.split(r"[|]", text)[0].split(":", 1))[1:]]  # type: ignore[arg-type]
    kinds = {"header", "json", "query", "form"}
    return list(dict.fromkeys(place for place in [*places, *found] if place.kind in kinds))
