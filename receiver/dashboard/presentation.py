"""An event's story as one list of moments, oldest first."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from receiver.describe import duration, exact, parse
from receiver.ledger.text import plain

Told = dict[str, Any]

OUTCOMES = {
    "finish": ("done", "came through"),
    "retry later": ("waiting", "failed, runs again later"),
    "call later": ("waiting", "waits for a call; this costs no attempt"),
    "park": ("parked", "parked the event for a person"),
    "give up": ("dead", "failed for good"),
    "ignore": ("ignored", "found no handler"),
    "release": ("waiting", "was given back by a worker that stopped"),
    "expire": ("waiting", "ended when its worker vanished"),
}

ACTIONS = {
    "retry": "retried it",
    "rerun": "started a new generation",
    "discard": "discarded it",
    "promote": "made a conflicting body an event of its own",
    "happened": "said that the call happened",
    "resend-as-new": "had the call sent as new",
    "use-stored": "had the stored bytes sent",
    "give-up": "gave the call up",
}

SENT = {
    None: ("open", "no answer yet"),
    "succeeded": ("done", "succeeded"),
    "replayed": ("done", "had happened before; its answer was replayed"),
    "locked": ("waiting", "another copy still runs there"),
    "later": ("waiting", "was told to come later"),
    "unknown": ("parked", "nobody knows whether it happened"),
    "mismatch": ("parked", "its key belongs to another request"),
    "rejected": ("dead", "was refused, so it did not happen"),
}


def timeline(told: Told) -> list[Told]:
    """Return moments `{at, tone, title, detail, error, link}` of a story as `story` tells it."""
    moments = [
        _first(told["event"]),
        *_duplicates(told["duplicates"]),
        *_conflicts(told["conflicts"]),
        *_attempts(told["attempts"]),
        *_sends(told["calls"]),
        *_actions(told["actions"]),
        *_nudges(told["nudges"]),
    ]
    return sorted(moments, key=lambda moment: moment["at"])


def _moment(at: str, tone: str, title: str, detail: str | None = None, **more: Any) -> Told:
    return {"at": at, "tone": tone, "title": title, "detail": detail, "error": None, "link": None, **more}


def _first(event: Told) -> Told:
    where = f"From {event['address']}." if event["address"] else None
    doubt = " Equal bytes came under another id before." if event["suspected_replay"] else ""
    return _moment(event["received_at"], "received", "First seen", f"{where or ''}{doubt}".strip() or None)


def _duplicates(found: Told) -> Iterator[Told]:
    for one in found["latest"]:
        where = f"From {one['address']}." if one["address"] else None
        yield _moment(one["at"], "duplicate", "Came again, answered as a duplicate", where)
    hidden = found["count"] - len(found["latest"])
    if hidden > 0:
        yield _moment(found["first"], "duplicate", f"Came again {hidden} times", "Only the last 20 are kept.")


def _conflicts(found: list[Told]) -> Iterator[Told]:
    for one in found:
        yield _moment(one["at"], "parked", "Came again with another body", "The other body is kept below.")


def _attempts(found: list[Told]) -> Iterator[Told]:
    for one in found:
        name = f"Attempt {one['generation']}.{one['number']}"
        tone, words = OUTCOMES.get(one["outcome"], ("processing", "runs now"))
        if one["ended_at"]:
            yield _moment(one["started_at"], "attempt", f"{name} started", f"By {one['worker']}.")
            told = {"detail": one["reason"], "error": one["error"]}
            yield {**_moment(one["ended_at"], tone, f"{name} {words}"), **told}
        else:
            yield _moment(one["started_at"], tone, f"{name} {words}", f"By {one['worker']}.")


def _sends(calls: list[Told]) -> Iterator[Told]:
    for call in calls:
        for send in call["sends"]:
            tone, words = SENT.get(send["outcome"], ("open", str(send["outcome"])))
            status = f" ({send['status']})" if send["status"] else ""
            title = f"Call {call['step']!r} to {call['api']}: {words}{status}"
            yield _moment(send["at"], tone, title, send["reason"], link=call["id"])


def _actions(found: list[Told]) -> Iterator[Told]:
    for one in found:
        did = ACTIONS.get(one["what"], one["what"])
        yield _moment(one["at"], "person", f"{one['who']} {did}", f"It was {one['was']}.")


def _nudges(found: Told) -> Iterator[Told]:
    if found["last"]:
        times = "once" if found["count"] == 1 else f"{found['count']} times"
        yield _moment(found["last"], "attempt", f"Workers were woken {times} for it", "The last time.")


# Words and forms that the pages share: times, spans, counts, JSON for people.


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
