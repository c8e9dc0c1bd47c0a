"""A delivery as it came: method, URL, headers, raw body."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

from receiver.ledger.payload import UnreadablePayloadError, is_form, parse_form, parse_payload

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
