"""A delivery as it came: method, URL, headers, raw body."""

import binascii
import json
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, urlencode

from config.providers import Locator, Locators
from receiver.payload import UnreadablePayloadError, is_form, parse_form, parse_payload
from receiver.signatures.errors import InvalidSignature

MAX_QUERY_FIELDS = 1_000  # a webhook's URL has a handful; more are read as none


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
        """Every value of a header, in order; the name in any case, hyphens and underscores alike."""
        return self._index.get(_normal(name), ())

    def header(self, name: str) -> str | None:
        """Return the first value of a header, or None."""
        values = self.header_values(name)
        return values[0] if values else None

    @cached_property
    def _index(self) -> dict[str, tuple[str, ...]]:
        return _collect((_normal(name), value) for name, value in self.headers)

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


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")  # WSGI cannot tell them apart, and Walmart has underscores


def _collect(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    index: dict[str, list[str]] = {}
    for name, value in pairs:
        index.setdefault(name, []).append(value)
    return {name: tuple(values) for name, values in index.items()}


# Reading located values out of a delivery, the same way for signatures and for event ids.


_INDEX_DIGITS = 6  # no array in a body of bounded size has a million elements


def dig(value: Any, path: tuple[str, ...]) -> Any:
    """Follow keys and array indexes into parsed JSON; None when a step is not there."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and step.isascii() and len(step) <= _INDEX_DIGITS:
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


def candidates(where: Locators, request: Request, item: Any = None) -> tuple[tuple[str, ...], ...]:
    """Return the texts of the first place that has any, or of every such place when all are asked for."""
    found = []
    for place in where.places:
        if values := texts(place, request, item):
            found.append(values)
            if not where.several:
                break
    return tuple(found)


def one_text(where: Locators, request: Request, missing: str) -> str:
    """Return the one text at a locator; InvalidSignature with the reason `missing` or `repeated_value`."""
    for values in candidates(where, request):
        if len(values) > 1:
            raise InvalidSignature("repeated_value", str(where))
        return values[0]
    if request.payload.problem and any(place.kind == "json" for place in where.places):
        raise InvalidSignature("unreadable_body", request.payload.problem)
    raise InvalidSignature(missing, str(where))


# Strict decoders: text that is not exactly hex or canonical base64 is nothing.


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


# Putting values where a locator reads them: for signing.


class CannotSign(ValueError):
    """This scheme cannot sign such a request; the message is a sentence."""


def put(place: Locator, value: str | int, request: Request) -> Request:
    """Return the request with a value at a place; raise CannotSign when the body has no such place."""
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
    payload = request.payload.value
    if not isinstance(payload, dict | list):
        raise CannotSign(f"the body is not JSON, so nothing can be put at {place}")
    payload = json.loads(json.dumps(payload))  # a copy: the request's own stays as it is
    target: Any = payload
    for step, following in pairwise(place.path):
        target = _step_into(target, step, [] if following.isdecimal() else {}, place)
    last = place.path[-1]
    if isinstance(target, list):
        _grow(target, last, None, place)
        target[int(last)] = value
    else:
        target[last] = value
    return json.dumps(payload, separators=(",", ":")).encode()


def _step_into(target: Any, step: str, empty: Any, place: Locator) -> Any:
    if isinstance(target, list):
        _grow(target, step, empty, place)
        child = target[int(step)]
    else:
        child = target.setdefault(step, empty)
    if not isinstance(child, dict | list):
        raise CannotSign(f"the body holds another value on the way to {place}")
    return child


def _grow(target: list[Any], step: str, empty: Any, place: Locator) -> None:
    if not step.isdecimal() or int(step) > len(target):
        raise CannotSign(f"the body has no array element for {place}")
    if int(step) == len(target):
        target.append(empty)


# What a verified delivery says: its events' ids, types, times and bodies.


def reader(where: Locators) -> Callable[[Request, Any], str | None]:
    """Compile what `one` does: most places are a single one in the body, and need no search."""
    place, path = where.places[0], where.places[0].path
    if where.several or len(where.places) > 1 or place.kind not in ("json", "item"):
        return lambda request, item: one(where, request, item)
    if place.kind == "item":
        return lambda _, item: as_text(dig(item, path)) or None
    return lambda request, _: as_text(dig(request.payload.value, path)) or None


def one(where: Locators, request: Request, item: Any = None) -> str | None:
    """Return the text that is there exactly once; a repeated one is no answer."""
    for values in candidates(where, request, item):
        return values[0] if len(values) == 1 else None
    return None
