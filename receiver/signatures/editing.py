"""Putting values where a locator reads them: for signing."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any
from urllib.parse import urlencode

from config.providers import Locator
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
