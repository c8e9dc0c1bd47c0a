"""A delivery as it came, and how values are read out of it and put into it.

Signatures, handshakes and event ids all read located values with the functions below, so that one delivery
means the same to each of them. Decoders are strict: text that is not exactly hex or canonical base64 is None.
"""

import binascii
import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any
from urllib.parse import parse_qsl, urlencode

from config.providers import Locator, Locators
from receiver.payload import UnreadablePayloadError, is_form, parse_form, parse_payload
from receiver.signatures.errors import InvalidSignature

# A webhook's URL has a handful; a query of more is read as none.
MAX_QUERY_FIELDS = 1_000

# No array in a body of bounded size has a million elements, and `int` of a long text is slow.
INDEX_DIGITS = 6


@dataclass(frozen=True)
class Parsed:
    """The payload, or a sentence why there is none."""

    value: Any = None
    problem: str | None = None


@dataclass(frozen=True)
class Request:
    """One POST: `url` in full, `headers` as received (latin-1 text, repeated ones visible), `body` raw."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header_values(self, name: str) -> tuple[str, ...]:
        """Every value of a header, in order; the name in any case.

        A name with underscores is found under hyphens too, as WSGI cannot tell them apart and some providers
        (Walmart) have them. Never the other way round: a sender's `X_Id` does not pass for `X-Id`.
        """
        name = name.lower()
        found = self._headers_by_name.get(name)
        if found is None and "_" in name:
            found = self._headers_by_name.get(name.replace("_", "-"))
        return found or ()

    def header(self, name: str) -> str | None:
        """Return a header, or None; one that stands more than once is joined by commas (RFC 9110, 5.3)."""
        values = self.header_values(name)
        return ", ".join(values) if values else None

    @cached_property
    def _headers_by_name(self) -> dict[str, tuple[str, ...]]:
        return _collect((name.lower(), value) for name, value in self.headers)

    @cached_property
    def payload(self) -> Parsed:
        """The body, parsed once by its content type."""
        try:
            return Parsed(parse_payload(self.body, self.header("content-type")))
        except UnreadablePayloadError as error:
            return Parsed(problem=str(error))

    @cached_property
    def form(self) -> dict[str, Any]:
        """The fields of a form; empty for anything else."""
        if not is_form(self.header("content-type")):
            return {}
        try:
            return parse_form(self.body)
        except UnreadablePayloadError:
            return {}

    @cached_property
    def query(self) -> dict[str, tuple[str, ...]]:
        """The query's fields, each with all its values."""
        query = self.url.partition("#")[0].partition("?")[2]
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
        except ValueError:
            return {}
        return _collect(pairs)

    @cached_property
    def path_query(self) -> str:
        """The URL from its path on: `/hook?x=1`."""
        rest = self.url.partition("#")[0].partition("://")[2]
        slash = rest.find("/")
        return rest[slash:] if slash >= 0 else "/"


def _collect(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in found.items()}


def dig(value: Any, path: tuple[str, ...]) -> Any:
    """Follow keys and array indexes into parsed JSON; None when a step is not there."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and step.isascii() and len(step) <= INDEX_DIGITS:
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value


def as_text(value: Any) -> str | None:
    """Text of a JSON string or integer; None for what cannot name anything (floats lose digits)."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def texts(place: Locator, request: Request, item: Any = None) -> tuple[str, ...]:
    """Every non-empty text at a place; more than one when a header or a field is repeated.

    `item` is the element of a batch that `item:` reads.
    """
    if place.kind == "header":
        found: tuple[str | None, ...] = request.header_values(place.name)
    elif place.kind == "query":
        found = request.query.get(place.name, ())
    elif place.kind == "form":
        field = request.form.get(place.name, ())
        found = (field,) if isinstance(field, str) else tuple(field)
    else:
        found = (as_text(dig(item if place.kind == "item" else request.payload.value, place.path)),)
    return tuple([text for text in found if text])


def texts_by_place(where: Locators, request: Request, item: Any = None) -> tuple[tuple[str, ...], ...]:
    """Return the texts of the first place that has any, or of every such place when all are asked for."""
    found = []
    for place in where.places:
        if values := texts(place, request, item):
            found.append(values)
            if not where.several:
                break
    return tuple(found)


def single_text(where: Locators, request: Request, item: Any = None) -> str | None:
    """Return the text that is there exactly once; None for a repeated one."""
    for values in texts_by_place(where, request, item):
        return values[0] if len(values) == 1 else None
    return None


def required_text(where: Locators, request: Request, missing: str) -> str:
    """Return the one text at a locator; InvalidSignature with the reason `missing` or `repeated_value`."""
    for values in texts_by_place(where, request):
        if len(values) > 1:
            raise InvalidSignature("repeated_value", str(where))
        return values[0]
    if request.payload.problem and any(place.kind == "json" for place in where.places):
        raise InvalidSignature("unreadable_body", request.payload.problem)
    raise InvalidSignature(missing, str(where))


def compile_reader(where: Locators) -> Callable[[Request, Any], str | None]:
    """Return `single_text` for one locator. Most are a single place in the body and need no search."""
    place, path = where.places[0], where.places[0].path
    if where.several or len(where.places) > 1 or place.kind not in ("json", "item"):
        return lambda request, item: single_text(where, request, item)
    if place.kind == "item":
        return lambda _, item: as_text(dig(item, path)) or None
    return lambda request, _: as_text(dig(request.payload.value, path)) or None


def wire(text: str) -> bytes:
    """Return the bytes behind a header's latin-1 text; UTF-8 where a tool put other characters."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def from_hex(text: str) -> bytes | None:
    """Decode hex in any case, or None."""
    try:
        return binascii.unhexlify(text)
    except ValueError:  # binascii.Error, and str that is not ASCII
        return None


def from_base64(text: str) -> bytes | None:
    """Decode padded, canonical base64, or None."""
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        return None
    return raw if b64encode(raw).decode() == text else None


def from_base64url(text: str) -> bytes | None:
    """Decode canonical URL-safe base64, padded or not, or None."""
    bare = text.rstrip("=")
    try:
        raw = b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    padded = urlsafe_b64encode(raw).decode()
    return raw if text in (padded, padded.rstrip("=")) else None


DECODERS: Mapping[str, Callable[[str], bytes | None]] = {
    "hex": from_hex,
    "base64": from_base64,
    "base64url": from_base64url,
}


def encode(raw: bytes, encoding: str) -> str:
    """Write a signature the way `DECODERS` read it."""
    if encoding == "hex":
        return raw.hex()
    return (urlsafe_b64encode(raw).rstrip(b"=") if encoding == "base64url" else b64encode(raw)).decode()


class CannotSign(ValueError):
    """This scheme cannot sign such a request; the message is a sentence."""


def put(place: Locator, value: str | int, request: Request) -> Request:
    """Return the request with a value where a locator reads it: for signing.

    Raise CannotSign when the body has no such place.
    """
    if place.kind == "header":
        others = tuple(pair for pair in request.headers if pair[0].lower() != place.name.lower())
        return replace(request, headers=(*others, (place.name, str(value))))
    if place.kind == "query":
        mark = "&" if "?" in request.url else "?"
        return replace(request, url=f"{request.url}{mark}{urlencode({place.name: value})}")
    if place.kind == "form":
        name = urlencode({place.name: ""}).encode()
        fields = (field for field in request.body.split(b"&") if field and not field.startswith(name))
        return replace(request, body=b"&".join([*fields, urlencode({place.name: value}).encode()]))
    return replace(request, body=_put_json(request, place, value))


def _put_json(request: Request, place: Locator, value: str | int) -> bytes:
    if not isinstance(request.payload.value, dict | list):
        raise CannotSign(f"the body is not JSON, so nothing can be put at {place}")
    # A copy: the payload that the request has parsed stays as it is.
    payload = json.loads(json.dumps(request.payload.value))
    target: Any = payload
    for step, following in zip_longest(place.path, place.path[1:]):
        empty: Any = [] if following and following.isdecimal() else {}
        key: Any = step
        if isinstance(target, list):
            if not step.isdecimal() or int(step) > len(target):
                raise CannotSign(f"the body has no array element for {place}")
            key = int(step)
            if key == len(target):
                target.append(empty)
        if following is None:
            target[key] = value
            break
        if isinstance(target, dict):
            target.setdefault(key, empty)
        target = target[key]
        if not isinstance(target, dict | list):
            raise CannotSign(f"the body holds another value on the way to {place}")
    return json.dumps(payload, separators=(",", ":")).encode()
