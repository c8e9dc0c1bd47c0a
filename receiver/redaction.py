"""Leaves out what a source's `redact` names: from its payload, and wherever its values turn up again.

A `Redactor` is made of one event's payload. It redacts that payload, data that handlers and APIs sent, and
whole read models; `shown_body` does the same to a body.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote, quote_plus

from config.sources import EVERY, JsonPath, Source
from receiver.ledger.reports import Original
from receiver.ledger.reports.models import ShapeT
from receiver.ledger.text import plain
from receiver.payload import UnreadablePayloadError, parse_payload

HIDDEN = "[redacted]"

# Characters; a shorter value would be found, and blanked, in ordinary words.
SHORTEST = 3

OURS = frozenset(
    {
        *("id", "event", "call", "parked_call", "shares", "promoted_to", "source", "api", "body_hash"),
        *("state", "outcome", "was", "what", "who", "worker", "method", "protection", "encoding", "key"),
        *("fingerprint", "changed_to", "address", "at", "first", "last", "minute", "from"),
        *("oldest_unfinished", "on_replay"),
    }
)
# Members of read models, and ends of members, that the ledger writes itself. A payload's `2026` or `done`
# must break neither a time nor a state: what is redacted has to be a valid read model again.
OUR_TIMES = ("_at", "_until")

# Members of read models that handlers and APIs fill.
QUOTING = frozenset({"reason", "error", "step", "url", "once", "body"})

# Characters that one library or another leaves as they are in a URL.
IN_URLS = ("", "/", "!$&'()*+,/:;=@")


class Redactor:
    """Hides values of one event. `readable` is false when its payload cannot be searched for them."""

    def __init__(self, paths: Sequence[JsonPath], body: bytes | None, content_type: str | None) -> None:
        self._paths = paths
        self.readable, self._values = True, tuple[str, ...]()
        if paths and body is not None:
            self.readable, payload = _parse(body, content_type)
            found = {text for path in paths for text in _texts(payload, path.steps)}
            written = {form for text in found for form in _forms(text)}
            self._values = _longest_first(written)
        self._blind = bool(paths) and (body is None or not self.readable)

    @property
    def active(self) -> bool:
        """Whether there is anything to leave out."""
        return bool(self._paths)

    def payload(self, value: Any) -> Any:
        """Return a parsed payload without what the paths name."""
        for path in self._paths:
            value = _without(value, path.steps)
        return self.data(value)

    def data(self, value: Any) -> Any:
        """Return JSON that others wrote, with the hidden values blanked in every text of it."""
        return _mapped(value, partial(_blanked, self._values), lambda _name: False)

    def redact(self, view: ShapeT) -> ShapeT:
        """Return a read model with the hidden values blanked, as `blank` does."""
        return type(view).model_validate(self.blank(view.as_json())) if self.active else view

    def blank(self, value: Any) -> Any:
        """Return JSON of the ledger with the hidden values blanked, but in what the ledger writes itself.

        Without a payload to find them in, as once it is erased, whatever may quote one is blanked whole.
        """
        hidden = _longest_first(_quotes(value)) if self._blind else self._values
        return _mapped(
            value, partial(_blanked, hidden), lambda name: name in OURS or name.endswith(OUR_TIMES)
        )


def shown_body(paths: Sequence[JsonPath], body: bytes, content_type: str | None) -> bytes:
    """Return a body as it may be shown: exact without paths, else its payload as JSON without the places."""
    if not paths:
        return body
    redactor = Redactor(paths, body, content_type)
    readable, payload = _parse(body, content_type)
    if not readable:
        return HIDDEN.encode()
    return plain(json.dumps(redactor.payload(payload), ensure_ascii=False)).encode()


def redactor_of(sources: Mapping[str, Source], received: Original) -> Redactor:
    """Return the redactor of a stored event; a source that is no longer configured hides nothing."""
    source = sources.get(received.source)
    return Redactor(source.redact if source else (), received.body, received.content_type)


def _mapped(value: Any, change: Callable[[str], str], keeps: Callable[[str], bool]) -> Any:
    match value:
        case str():
            return change(value)
        case dict():
            return {
                name: member if isinstance(member, str) and keeps(name) else _mapped(member, change, keeps)
                for name, member in value.items()
            }
        case list():
            return [_mapped(item, change, keeps) for item in value]
        case _:
            return value


def _blanked(values: Iterable[str], text: str) -> str:
    for value in values:
        text = text.replace(value, HIDDEN)
    return text


def _longest_first(texts: Iterable[str]) -> tuple[str, ...]:
    """Order texts so that one which holds another comes before it."""
    return tuple(sorted(set(texts), key=lambda text: (-len(text), text)))


def _quotes(value: Any) -> Iterator[str]:
    """Yield the texts of a read model that handlers and APIs wrote."""
    match value:
        case dict():
            for name, member in value.items():
                if name in QUOTING and isinstance(member, str) and len(member) >= SHORTEST:
                    yield member
                yield from _quotes(member)
        case list():
            for item in value:
                yield from _quotes(item)


def _forms(text: str) -> Iterator[str]:
    """Yield a value as it stands in texts, in JSON, in Python's errors and in URLs."""
    escaped = json.dumps(text)[1:-1]
    yield from (text, escaped, escaped.replace("/", r"\/"), json.dumps(text, ensure_ascii=False)[1:-1])
    yield repr(text)[1:-1]
    yield quote_plus(text, errors="replace")
    yield from (quote(text, safe=safe, errors="replace") for safe in IN_URLS)


def _parse(body: bytes, content_type: str | None) -> tuple[bool, Any]:
    try:
        return True, parse_payload(body, content_type)
    except UnreadablePayloadError:
        return False, None


def _without(value: Any, steps: Sequence[str]) -> Any:
    if not steps:
        return HIDDEN
    step, *rest = steps
    match value:
        case dict():
            return {
                name: _without(member, rest) if step in (EVERY, name) else member
                for name, member in value.items()
            }
        case list() if step == EVERY:
            return [_without(item, rest) for item in value]
        case _:
            return value


def _texts(value: Any, steps: Sequence[str]) -> Iterator[str]:
    """Yield the texts and long numbers at a path, those below it too."""
    match value:
        case dict():
            chosen = [part for name, part in value.items() if not steps or steps[0] in (EVERY, name)]
        case list() if not steps or steps[0] == EVERY:
            chosen = value
        case str() | int() | float() if not steps and not isinstance(value, bool):
            if len(str(value)) >= SHORTEST:
                yield str(value)
            return
        case _:
            return
    for part in chosen:
        yield from _texts(part, steps[1:])
