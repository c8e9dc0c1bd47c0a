"""Sample deliveries: a realistic payload, signed as the source's provider would sign it."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from config.providers import PUBLIC_KEY
from config.sources import Source
from firstseen.filling import Filling
from receiver.extraction import compile_extractor
from receiver.ledger.payload import FORM
from receiver.signatures import CannotSign, Request, sign_request
from receiver.verifiers.building import build_scheme
from receiver.verifiers.fetching import FetchedKeys

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


def sample(  # noqa: PLR0913 - an event, and where it goes
    source: Source,
    *,
    type: str | None,  # noqa: A002 - the event's type, as everywhere
    event_id: str | None,
    now: float,
    url: str = "",
    key: str = "",
) -> Sample:
    """Make a delivery of a type (default: the provider's usual one) under an id (default: a new one).

    `key` is the private key, for providers that sign with one. Raise CannotSign with a sentence when the
    source has no secret, or its provider's deliveries cannot be signed by us.
    """
    described, filling = _described(source), Filling(source.provider)
    wanted, made_id = type or described["type"], event_id or _new_id(described["id"])
    request = _request(source, filling.body(_payload(described, wanted)), described, url)
    if filling.is_form:
        request = replace(request, headers=(("Content-Type", FORM),))
    request = filling.time(now, filling.type(wanted, request))
    request = filling.given_id(event_id, request) if event_id else filling.new_id(made_id, request)
    return _signed(source, filling.packed(request), now, made_id, key)


def signed_file(  # noqa: PLR0913 - a file, and what to call it
    source: Source,
    body: bytes,
    *,
    type: str | None,  # noqa: A002 - the event's type, as everywhere
    event_id: str | None,
    now: float,
    url: str = "",
    key: str = "",
) -> Sample:
    """Sign the bytes of a file as they are; type and id go into headers where the provider has them there.

    Raise CannotSign with a sentence, also when the id or type asked for would have to change the bytes.
    """
    described, filling = _described(source), Filling(source.provider)
    made_id = event_id or _new_id(described["id"])
    request = _request(source, body, described, url)
    if event_id:
        request = filling.given_id(event_id, request)
    elif filling.has_ids_in_headers:
        request = filling.new_id(made_id, request)
    request = filling.type(type or described["type"], request, headers_only=type is None)
    signed = _signed(source, request, now, made_id, key)
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


def _signed(source: Source, request: Request, now: float, event_id: str, key: str) -> Sample:
    table, secret = source.provider.scheme, key or next(iter(source.secrets), "")
    if source.provider.needs_secret and not secret:
        raise CannotSign(source.problem or f"[{source.name}] has no secret")
    if table and table.type in PUBLIC_KEY and not key:
        raise CannotSign(
            f"{source.provider.name} signs with a private key of its own; make a pair, put its public key"
            " into the source's variable, and name the private key's file with --key"
        )
    scheme = build_scheme(source, FetchedKeys())
    try:
        signed = sign_request(scheme, secret, request, now=now, event_id=event_id)
    except CannotSign:
        raise
    except ValueError as error:
        raise CannotSign(str(error)) from None
    found = compile_extractor(source).items(signed)
    return Sample(dict(signed.headers), signed.body, found[0].event_id if found else event_id, signed.url)
