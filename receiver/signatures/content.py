"""The signed bytes of a delivery, from a template that is compiled once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from config.providers import Locators, Part, Placeholder, parse_locator
from receiver.signatures.decoding import wire
from receiver.signatures.reading import one_text
from receiver.signatures.request import Request


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
