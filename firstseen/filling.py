"""The values of a sample event, put where its provider has them."""

import json
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

from config.providers import Locator, Locators, Provider
from receiver.extraction import POSITION
from receiver.ledger.payload import FORM
from receiver.signatures import CannotSign, Request
from receiver.signatures.clock import format_time
from receiver.signatures.editing import put


class Filling:
    """Where one provider's samples have id, type and time; of alternatives, the first."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._types = [self._place(where) for where in provider.type_places]
        self._time = self._place(provider.created_at.places) if provider.created_at else None
        parts = [where for where in provider.id_places if where != POSITION]
        self._ids = [self._place(where) for where in parts if not where.optional]
        self._free = [place for place in self._ids if place not in (*self._types, self._time)]
        self._free = self._free or [self._place(where) for where in parts if where.optional][:1]

    def _place(self, where: Locators) -> Locator:
        place = where.places[0]
        if place.kind != "item":
            return place
        return Locator("json", ".".join([*self._element, place.name]))

    @property
    def _element(self) -> list[str]:
        # Where a batch has its array, a sample has one element: entry.*.changes becomes entry.0.changes.0.
        path = "" if self._field else (self._provider.batch or "").removeprefix("json:").replace("*", "0")
        return [*filter(None, path.split(".")), "0"] if self._provider.batch else []

    @property
    def _field(self) -> str:
        # The field of a form that holds the array, where that is not in a JSON body.
        kind, _, name = (self._provider.batch or "").partition(":")
        return name if kind == "form" else ""

    def packed(self, request: Request) -> Request:
        """Put the array into its field, where this provider sends its batches in forms."""
        if not self._field:
            return request
        body = urlencode({self._field: request.body}).encode()
        return replace(request, headers=(("Content-Type", FORM),), body=body)

    @property
    def is_form(self) -> bool:
        """Whether this provider sends forms."""
        return any(place.kind == "form" for place in (*self._types, *self._ids))

    def body(self, payload: Any) -> bytes:
        """Write a payload as one delivery of it: alone, as the one element of a batch, or not at all."""
        if self.is_form or self._provider.empty_body:
            return b""
        for step in reversed(self._element):
            payload = [payload] if step == "0" else {step: payload}
        return json.dumps(payload, separators=(",", ":")).encode()

    @property
    def has_ids_in_headers(self) -> bool:
        """Whether an id can be given without changing the body."""
        return all(place.kind == "header" for place in self._ids)

    def type(self, wanted: str, request: Request, *, headers_only: bool = False) -> Request:
        """Put a type, in as many parts as the provider has."""
        parts = wanted.split(".", len(self._types) - 1) if self._types else []
        for place, part in zip(self._types, parts, strict=False):
            if place.kind == "header" or not headers_only:
                request = put(place, part, request)
        return request

    def time(self, now: float, request: Request) -> Request:
        """Put the event's time, where the provider has it."""
        if self._time is None or self._provider.created_at is None:
            return request
        unit = self._provider.created_at.unit
        text = format_time(now, unit)
        number = self._time.kind == "json" and unit != "iso8601"
        return put(self._time, int(text) if number else text, request)

    def new_id(self, event_id: str, request: Request) -> Request:
        """Put an id that was made up into the parts of it that are neither type nor time."""
        for place in self._free:
            request = put(place, event_id, request)
        return request

    def given_id(self, event_id: str, request: Request) -> Request:
        """Put an id that was asked for; raise CannotSign where the provider's events have none."""
        if not self._ids:
            raise CannotSign(f"{self._provider.name}'s events have no ids of their own, so none can be given")
        parts = event_id.split("+") if len(self._ids) > 1 else [event_id]
        if len(parts) != len(self._ids):
            return self.new_id(event_id, request)
        for place, part in zip(self._ids, parts, strict=True):
            request = put(place, part, request)
        return request
