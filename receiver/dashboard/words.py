"""Words and forms that the pages share: times, spans, counts, JSON for people."""

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup, escape

from config.durations import in_words
from receiver.ledger import Move
from receiver.ledger.texts import plain

CHOICES = {
    Move.RETRY: (
        "Runs the handler again in the same generation. Calls that succeeded are not sent again;"
        " the others go out under the keys they have."
    ),
    Move.RERUN: (
        "Starts the next generation with new keys: every effect happens again, those that happened"
        " before too."
    ),
    Move.DISCARD: "Ends it for good: no handler runs, and no later delivery brings it back.",
}
STATES = {
    "received": "Recorded; no worker has claimed it yet.",
    "processing": "A worker runs its handler now.",
    "waiting": "Runs again by itself when it is due.",
    "done": "Its handler came through, and every call is final.",
    "parked": "Stands still until a person decides.",
    "dead": "Failed for good, or was discarded.",
    "ignored": "No handler takes its type.",
}
KILO = 1_000
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')


def span(seconds: float | None) -> str:
    """Write a span in its largest unit: `3 min`."""
    whole = int(seconds or 0)
    size, unit = next((pair for pair in _UNITS if whole >= pair[0]), _UNITS[-1])
    return f"{whole // size} {unit}"


def when(text: str | None, now: datetime | None = None) -> Markup:
    """Return a time, RFC 3339, as an element that says how long ago it was, and exactly in its title."""
    if not text:
        return Markup('<span class="quiet">-</span>')
    away = (parse(text) - (now or datetime.now(UTC))).total_seconds()
    relative = "now" if abs(away) < 1 else f"in {span(away)}" if away > 0 else f"{span(-away)} ago"
    shown = Markup('<time datetime="{}" title="{}" data-relative>{}</time>')
    return shown.format(text, exact(text), relative)


def exact(text: str | None) -> str:
    """Write a time for people, to the second, in UTC."""
    return parse(text).strftime("%Y-%m-%d %H:%M:%S UTC") if text else ""


def parse(text: str) -> datetime:
    """Read RFC 3339 as the ledger writes it."""
    return datetime.fromisoformat(text)


def number(count: int) -> str:
    """Write a count with thin spaces between thousands."""
    return f"{count:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def plural(count: int, word: str) -> str:
    """Write a count with its word."""
    return f"{number(count)} {word}{'' if count == 1 else 's'}"


def size(count: int | None) -> str:
    """Write a number of bytes."""
    if count is None:
        return "erased"
    return f"{count} B" if count < KILO else f"{count / KILO:,.1f} kB"


def duration(value: timedelta) -> str:
    """Write a configured duration with a blank before its unit: `30 d`."""
    return re.sub(r"(?<=\d)(?=[a-z])", " ", in_words(value))


def written(value: Any, most: int) -> tuple[str, bool]:
    """Return parsed JSON indented, so many characters of it, and whether that is all.

    It is cut while it is written: indented, a deep array is a thousand times longer than what came.
    """
    parts, size = list[str](), 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(value):
        parts.append(part)
        size += len(part)
        if size > most:
            break
    return plain("".join(parts)[:most]), size <= most


def pretty(text: str) -> Markup:
    """Return indented JSON with its tokens marked for colours."""
    parts, place = [], 0
    for match in _TOKEN.finditer(text):
        parts += [escape(text[place : match.start()]), _token(match)]
        place = match.end()
    return Markup("").join([*parts, escape(text[place:])])


def _token(match: re.Match[str]) -> Markup:
    string, colon, word = match[1], match[2] or "", match[3]
    kind = ("key" if colon else "string") if string else "word" if word else "number"
    return Markup('<span class="j-{}">{}</span>{}').format(kind, string or match[0], colon)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "when": when,
    "exact": exact,
    "span": span,
    "number": number,
    "plural": plural,
    "size": size,
    "duration": duration,
    "pretty": pretty,
}
