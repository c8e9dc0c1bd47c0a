"""Events out of a verified request: one, or one for each item of a batch; and handshakes."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from config.locators import Locators, parse_locator, parse_locators
from config.provider_parts import VALUE_KINDS, HandshakeTable, TimeTable
from config.providers import Provider
from config.sources import Source
from receiver.ledger.ids import uuid7
from receiver.signatures import Request
from receiver.signatures.reading import as_text, dig, texts

TEXT_MAX = 255
"""Characters of an id or a type that the ledger stores as they are; longer ones are hashed, not cut."""

ITEMS_MAX = 10_000
"""Items of one batch; a larger one is kept whole, for a person."""

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Item:
    """One event of a request: its exact body, or a batch's item as JSON. `problem` says why it has no id."""

    event_id: str
    type: str
    body: bytes = field(repr=False)
    created_at: datetime | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Handshake:
    """The answer to a request that proves the endpoint is ours; nothing of it is recorded."""

    status: int
    content_type: str
    body: str


class Extractor:
    """One source's way of finding events, compiled at start-up."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._batch = parse_locator(provider.batch, ("json", "form"), root=True) if provider.batch else None

    def items(self, request: Request) -> list[Item]:
        """Return the events of a verified request; never raises, and drops nothing."""
        if request.payload.problem and self._reads_payload:
            return [
                self._unidentified(
                    request, request.body, f"Its body does not parse: {request.payload.problem}."
                )
            ]
        if self._batch is None:
            return [self._item(request, request.body, None)]
        found = dig(request.payload.value, self._batch.path)
        if not isinstance(found, list) or len(found) > ITEMS_MAX:
            return [
                self._unidentified(
                    request, request.body, "It is not the list of events that this provider sends."
                )
            ]
        return [self._item(request, _compact(item), item) for item in found]

    def handshake(self, request: Request) -> Handshake | None:
        """Return the answer to a handshake, or None for everything else."""
        table = self._provider.handshake
        if table is None or table.method != request.method or not self._asked(table, request):
            return None
        if table.challenge is None:
            return Handshake(table.status, "text/plain", "")
        challenge = _first(parse_locators(table.challenge, VALUE_KINDS), request, None)
        if challenge is None:
            return None
        if table.answer == "text":
            return Handshake(table.status, "text/plain; charset=utf-8", challenge)
        answer = {table.answer.removeprefix("json:"): challenge}
        return Handshake(table.status, "application/json", json.dumps(answer))

    @property
    def _reads_payload(self) -> bool:
        provider = self._provider
        places = (place for where in (*provider.id_places, *provider.type_places) for place in where.places)
        return self._batch is not None or any(place.kind in ("json", "item") for place in places)

    def _asked(self, table: HandshakeTable, request: Request) -> bool:
        return all(
            _first(parse_locators(where, VALUE_KINDS), request, None) == value
            for where, value in table.when.items()
        )

    def _item(self, request: Request, body: bytes, item: Any) -> Item:
        parts = [_first(where, request, item) for where in self._provider.id_places]
        match self._provider.policy:
            case "body_hash":
                event_id: str | None = _hash(body)
            case "none":
                event_id = str(uuid7())
            case _:
                event_id = ":".join(part for part in parts if part) if parts and all(parts) else None
        if event_id is None:
            return self._unidentified(request, body, "It has no event id where this provider puts it.", item)
        return Item(storable(event_id), self._type(request, item), body, self._time(request, item))

    def _unidentified(self, request: Request, body: bytes, problem: str, item: Any = None) -> Item:
        return Item(_hash(body), self._type(request, item), body, self._time(request, item), problem)

    def _type(self, request: Request, item: Any) -> str:
        parts = [_first(where, request, item) for where in self._provider.type_places]
        return storable(".".join(part for part in parts if part) or UNKNOWN)

    def _time(self, request: Request, item: Any) -> datetime | None:
        table = self._provider.created_at
        return None if table is None else _read_time(table, _first(table.places, request, item))


def compile_extractor(source: Source) -> Extractor:
    """Compile a source's extractor."""
    return Extractor(source.provider)


def storable(text: str) -> str:
    """Return a text as it is, or hashed where no column could hold it: U+0000, surrogates, length."""
    fits = (
        len(text) <= TEXT_MAX and "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)
    )
    return text if fits else _hash(text.encode("utf-8", "surrogatepass"))


def _first(where: Locators, request: Request, item: Any) -> str | None:
    found: Iterable[str | None] = (text for place in where.places for text in _texts(place, request, item))
    return next((text for text in found if text), None)


def _texts(place: Any, request: Request, item: Any) -> tuple[str | None, ...]:
    return (as_text(dig(item, place.path)),) if place.kind == "item" else texts(place, request)


def _read_time(table: TimeTable, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        if table.unit == "iso8601":
            found = datetime.fromisoformat(text)
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
        return datetime.fromtimestamp(float(text) / (1000 if table.unit == "ms" else 1), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _compact(item: Mapping[str, Any] | Any) -> bytes:
    return json.dumps(item, separators=(",", ":")).encode()


def _hash(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
