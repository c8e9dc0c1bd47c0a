"""What a verified delivery says: its events' ids, types, times and bodies."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from config.locators import Locator, Locators, parse_locator
from config.sources import Source
from receiver.ledger.ids import uuid7
from receiver.ledger.payload import UnreadablePayloadError, parse_json
from receiver.signatures.clock import parse_time
from receiver.signatures.reading import as_text, candidates, dig
from receiver.signatures.request import Request

UNKNOWN_TYPE = "unknown"
LONGEST = 255  # characters that the ledger's columns for ids and types hold
MOST_ITEMS = 10_000  # of one batch; a larger one is kept whole, for a person
POSITION = Locators((Locator("item", "#"),))  # where in its batch an item stands, for items without ids
EVERY = "*"  # a step of a batch's place that goes into each element of an array


@dataclass(frozen=True)
class Item:
    """One event of a delivery.

    `body` is the raw body, or one element of a batch as JSON, and `content_type` is that of `body`. With a
    `problem`, a sentence for the person who finds it parked, `event_id` is the body's hash.
    """

    event_id: str
    type: str
    body: bytes = field(repr=False)
    created_at: datetime | None = None
    problem: str | None = None
    content_type: str | None = None


class Extractor:
    """Compiled from a source; never raises, for any bytes."""

    def __init__(self, source: Source, new_id: Callable[[], str]) -> None:
        provider = source.provider
        self._policy = provider.policy
        self._id_places = [
            (where, None if where == POSITION else reader(where)) for where in provider.id_places
        ]
        self._type_places = [reader(where) for where in provider.type_places]
        self._time = provider.created_at
        self._read_time = reader(provider.created_at.places) if provider.created_at else None
        self._without_id = provider.without_id
        self._batch = parse_locator(provider.batch, ("json", "form"), root=True) if provider.batch else None
        self._batch_type = provider.batch_type
        self._empty_body = provider.empty_body
        self._new_id = new_id

    def items(self, request: Request) -> list[Item]:
        """Return the delivery's events in order; an empty batch has none."""
        content_type = request.header("content-type")
        if request.payload.problem and (request.body or not self._empty_body):
            return [self._whole(request, f"Its body does not parse: {request.payload.problem}.")]
        if self._batch is None or not self._is_batch_type(content_type):
            return [self._item(request, request.payload.value, request.body, content_type)]
        try:
            elements = self._elements(request)
            bodies = [
                json.dumps(element, separators=(",", ":"), allow_nan=False).encode() for element in elements
            ]
        except ValueError as error:
            return [self._whole(request, f"It is not the list of events that this provider sends: {error}.")]
        pairs = enumerate(zip(elements, bodies, strict=True))
        return [self._item(request, el, body, "application/json", number) for number, (el, body) in pairs]

    def _is_batch_type(self, content_type: str | None) -> bool:
        given = (content_type or "").partition(";")[0].strip().lower()
        return self._batch_type in ("", given)

    def _elements(self, request: Request) -> list[Any]:
        place = self._batch
        if place is None:
            return []
        if place.kind == "form":
            text = request.form.get(place.name)
            arrays: list[Any] = [parse_json(text.encode()) if isinstance(text, str) else None]
        else:
            arrays = _spread([request.payload.value], place.path)
        if not all(isinstance(array, list) for array in arrays):
            raise UnreadablePayloadError(f"there is no array at {place}")
        if sum(map(len, arrays)) > MOST_ITEMS:
            raise UnreadablePayloadError(f"it has more than {MOST_ITEMS} items")
        return [element for array in arrays for element in array]

    def _item(
        self, request: Request, element: Any, body: bytes, content_type: str | None, number: int = 0
    ) -> Item:
        event_id = self._event_id(request, element, body, number)
        return Item(
            event_id=event_id or hashed(body),
            type=self._type(request, element),
            body=body,
            created_at=self._moment(request, element),
            problem=None if event_id else f"It has no event id at {self._id_names()}.",
            content_type=content_type,
        )

    def _whole(self, request: Request, problem: str) -> Item:
        item = self._item(request, None, request.body, request.header("content-type"))
        return replace(item, event_id=hashed(request.body), problem=problem)

    def _event_id(self, request: Request, element: Any, body: bytes, number: int) -> str | None:
        if self._policy == "none":
            return self._new_id()
        if self._policy == "body_hash":
            return hashed(body)
        parts = [
            (where, str(number) if read is None else read(request, element))
            for where, read in self._id_places
        ]
        if all(text or where.optional for where, text in parts):
            return storable("+".join(text for _, text in parts if text))
        if self._without_id == "park":
            return None
        return hashed(body) if self._without_id == "body_hash" else self._new_id()

    def _type(self, request: Request, element: Any) -> str:
        parts = [part for read in self._type_places if (part := read(request, element))]
        return storable(".".join(parts) or UNKNOWN_TYPE)

    def _moment(self, request: Request, element: Any) -> datetime | None:
        text = self._read_time(request, element) if self._read_time else None
        seconds = parse_time(text, self._time.unit) if self._time and text else None
        try:
            return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
        except (ValueError, OverflowError, OSError):
            return None

    def _id_names(self) -> str:
        return " and ".join(str(where) for where, _ in self._id_places)


def compile_extractor(source: Source, new_id: Callable[[], str] = lambda: str(uuid7())) -> Extractor:
    """Compile a source's locators; `new_id` names the events of providers that have no ids."""
    return Extractor(source, new_id)


def storable(text: str) -> str:
    """Return a text that every database keeps as it is; what none would is hashed, not cut."""
    if len(text) <= LONGEST and "\0" not in text and (text.isascii() or not _has_surrogate(text)):
        return text
    return hashed(text.encode("utf-8", "surrogatepass"))


def hashed(raw: bytes) -> str:
    """Name bytes by their SHA-256: `sha256:<hex>`."""
    return f"sha256:{sha256(raw).hexdigest()}"


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


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


def _spread(values: Sequence[Any], path: Sequence[str]) -> list[Any]:
    found = list(values)
    for step in path:
        if step == EVERY:
            found = [
                element for value in found for element in (value if isinstance(value, list) else [value])
            ]
        else:
            found = [dig(value, (step,)) for value in found]
    return found
