"""Reading located values out of a delivery, the same way for signatures and for event ids."""

from typing import Any

from config.providers import Locator, Locators
from receiver.signatures.errors import InvalidSignature
from receiver.signatures.request import Request

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
