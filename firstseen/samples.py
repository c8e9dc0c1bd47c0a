"""Sample deliveries: a realistic payload, signed as the source's provider would sign it."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from config.locators import Locator, Locators
from config.sources import Source
from receiver.extraction import compile_extractor
from receiver.signatures import CannotSign, Request, compile_scheme, sign_request
from receiver.signatures.clock import format_time
from receiver.signatures.editing import put

PAYLOADS = Path(__file__).with_name("samples.json")
ANY_OTHER = ""  # the payload of providers that have none of their own
URL = "http://localhost:8000/webhooks/"


@dataclass(frozen=True)
class Sample:
    """A signed delivery, ready to be posted to `url`; some schemes put their signature into it."""

    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    event_id: str
    url: str
    method: str = "POST"


def sample(source: Source, *, type: str | None, event_id: str | None, now: float, url: str = "") -> Sample:  # noqa: A002 - the event's type, as everywhere
    """Make a delivery of a type (default: the provider's usual one) under an id (default: a new one).

    Raise CannotSign with a sentence when the source has no secret, or its scheme cannot be signed by us.
    """
    described = _described(source)
    wanted, made_id = type or described["type"], event_id or _new_id(described["id"])
    payload = _payload(described, wanted)
    provider = source.provider
    if provider.batch:
        raise CannotSign(f"{provider.name} sends batches, of which there is no sample yet: give a file")
    request = _request(source, json.dumps(payload, separators=(",", ":")).encode(), described, url)
    request = _put_type(provider.type_places, wanted, request)
    request = _put_time(source, now, request)
    return _signed(source, _put_id(provider.id_places, made_id, request), now, made_id)


def signed_file(  # noqa: PLR0913 - a file, and what to call it
    source: Source,
    body: bytes,
    *,
    type: str | None,  # noqa: A002 - the event's type, as everywhere
    event_id: str | None,
    now: float,
    url: str = "",
) -> Sample:
    """Sign the bytes of a file as they are; type and id go into headers where the provider has them there.

    Raise CannotSign with a sentence, also when the id or type asked for would have to change the bytes.
    """
    described = _described(source)
    places = source.provider.id_places
    made_id = event_id or _new_id(described["id"])
    request = _request(source, body, described, url)
    if event_id or all(where.places[0].kind == "header" for where in places):
        request = _put_id(places, made_id, request)
    kinds = None if type else frozenset({"header"})
    request = _put_type(source.provider.type_places, type or described["type"], request, kinds)
    signed = _signed(source, request, now, made_id)
    if signed.body != body:
        raise CannotSign("the file's bytes would have to change for this id, type or signature")
    return signed


def _described(source: Source) -> dict[str, Any]:
    known = _payloads()
    return known.get(source.provider.name, known[ANY_OTHER])


@cache
def _payloads() -> dict[str, dict[str, Any]]:
    payloads: dict[str, dict[str, Any]] = json.loads(PAYLOADS.read_text(encoding="utf-8"))
    return payloads


def _payload(described: Mapping[str, Any], wanted: str) -> Any:
    """Return the payload of a type, or one whose type has as many parts: a `ping` has no action."""
    payloads: dict[str, Any] = described["payloads"]
    alike = (payload for name, payload in payloads.items() if name.count(".") == wanted.count("."))
    return payloads.get(wanted) or next(alike, payloads[described["type"]])


def _new_id(shape: str) -> str:
    return shape.format(secrets.token_hex(12), uuid=uuid4())


def _request(source: Source, body: bytes, described: Mapping[str, Any], url: str) -> Request:
    headers = {"Content-Type": "application/json", **described.get("headers", {})}
    return Request("POST", url or URL + source.name, tuple(headers.items()), body)


def _put_type(
    places: tuple[Locators, ...], wanted: str, request: Request, kinds: frozenset[str] | None = None
) -> Request:
    parts = wanted.split(".", len(places) - 1) if places else []
    for where, part in zip(places, parts, strict=False):
        if kinds is None or where.places[0].kind in kinds:
            request = put(where.places[0], part, request)
    return request


def _put_id(places: tuple[Locators, ...], event_id: str, request: Request) -> Request:
    parts = event_id.split("+") if len(places) > 1 else [event_id]
    if len(parts) != len(places):
        parts = [event_id] * len(places)
    for where, part in zip(places, parts, strict=True):
        request = put(where.places[0], part, request)
    return request


def _put_time(source: Source, now: float, request: Request) -> Request:
    table = source.provider.created_at
    if table is None:
        return request
    place: Locator = table.places.places[0]
    text = format_time(now, table.unit)
    number = place.kind == "json" and table.unit != "iso8601"
    return put(place, int(text) if number else text, request)


def _signed(source: Source, request: Request, now: float, event_id: str) -> Sample:
    if not source.secrets:
        raise CannotSign(source.problem or f"[{source.name}] has no secret")
    scheme = compile_scheme(source.scheme, source.options)
    try:
        signed = sign_request(scheme, source.secrets[0], request, now=now, event_id=event_id)
    except CannotSign:
        raise
    except ValueError as error:
        raise CannotSign(str(error)) from None
    found = compile_extractor(source).items(signed)
    return Sample(dict(signed.headers), signed.body, found[0].event_id if found else event_id, signed.url)
