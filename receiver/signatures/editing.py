"""Putting values where a locator reads them: for signing."""

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from config.locators import Locator
from receiver.signatures.request import Request


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
        field = urlencode({place.name: value}).encode()
        return replace(request, body=b"&".join(filter(None, [request.body, field])))
    return replace(request, body=_put_json(request, place, value))


def _put_json(request: Request, place: Locator, value: str | int) -> bytes:
    payload = request.payload.value
    if not isinstance(payload, dict | list):
        raise CannotSign(f"the body is not JSON, so nothing can be put at {place}")
    payload = json.loads(json.dumps(payload))  # a copy: the request's own stays as it is
    *steps, last = place.path
    target: Any = payload
    for step in steps:
        target = _step_into(target, step, place)
    if isinstance(target, list):
        target[_index(target, last, place)] = value
    else:
        target[last] = value
    return json.dumps(payload, separators=(",", ":")).encode()


def _step_into(target: Any, step: str, place: Locator) -> Any:
    child = target[_index(target, step, place)] if isinstance(target, list) else target.setdefault(step, {})
    if not isinstance(child, dict | list):
        raise CannotSign(f"the body holds another value on the way to {place}")
    return child


def _index(target: list[Any], step: str, place: Locator) -> int:
    if not step.isdecimal() or int(step) >= len(target):
        raise CannotSign(f"the body has no array element for {place}")
    return int(step)
