"""How the pages show things: an event's timeline, payloads, and the templates' filters.

`timeline` makes one list of an event's story. `payload_view` and `content_view` make parsed, redacted JSON of
bytes. `FILTERS` write times, spans and numbers.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from markupsafe import Markup, escape

from config.nesting import load_json
from receiver.describe import duration, exact, past
from receiver.ledger.reports.models import Attempt, Content, Story, ToldCall
from receiver.ledger.states import SendOutcome
from receiver.ledger.text import plain, rfc3339
from receiver.payload import UnreadablePayloadError, parse_payload
from receiver.redaction import Redactor

# How an attempt ended: the tone of its moment, and words after its number.
OUTCOMES: Mapping[str | None, tuple[str, str]] = {
    None: ("processing", "runs now"),
    "finish": ("done", "came through"),
    "retry later": ("waiting", "failed, runs again later"),
    "call later": ("waiting", "waits for a call; this costs no attempt"),
    "park": ("parked", "parked the event for a person"),
    "give up": ("dead", "failed for good"),
    "ignore": ("ignored", "found no handler"),
    "release": ("waiting", "was given back by a worker that stopped"),
    "expire": ("waiting", "ended when its worker vanished"),
}

# What came back to a send: the tone of its moment, and words after its call.
SENT: Mapping[SendOutcome | None, tuple[str, str]] = {
    None: ("open", "no answer yet"),
    SendOutcome.SUCCEEDED: ("done", "succeeded"),
    SendOutcome.REPLAYED: ("done", "had happened before; its answer was replayed"),
    SendOutcome.LOCKED: ("waiting", "another copy still runs there"),
    SendOutcome.LATER: ("waiting", "was told to come later"),
    SendOutcome.UNKNOWN: ("parked", "nobody knows whether it happened"),
    SendOutcome.MISMATCH: ("parked", "its key belongs to another request"),
    SendOutcome.REJECTED: ("dead", "was refused, so it did not happen"),
}

REJECTION_REASONS = {
    "no_secret": "this source has no secret yet",
    "too_large": "the body is larger than max_body",
    "stalled": "the request was not whole within FIRSTSEEN_UPLOAD_TIMEOUT",
    "repeated_header": "a header that has one value stood more than once",
    "no_room": "too many bodies arrived at once",
}

# Characters of a payload on a page; the raw download has all of it.
PAYLOAD_SHOWN = 200_000

KILO = 1_000

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))

_TOKEN = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null)\b|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')


@dataclass(frozen=True)
class Moment:
    """One entry of an event's timeline. `tone` is its colour, `link` the call that it is about."""

    at: datetime
    tone: str
    title: str
    detail: str | None = None
    error: str | None = None
    link: UUID | None = None


def timeline(story: Story) -> list[Moment]:
    """Return an event's story as one list of moments, oldest first."""
    moments = [
        *_deliveries(story),
        *_attempts(story.attempts),
        *_sends(story.calls),
    ]
    for action in story.actions:
        title = f"{action.who} {past(action.what)}"
        moments.append(Moment(action.at, "person", title, f"It was {action.was}."))
    if story.nudges.last:
        times = "once" if story.nudges.count == 1 else f"{story.nudges.count} times"
        moments.append(
            Moment(story.nudges.last, "attempt", f"Workers were woken {times} for it", "The last time.")
        )
    return sorted(moments, key=lambda moment: moment.at)


def _deliveries(story: Story) -> Iterator[Moment]:
    event = story.event
    where = f"From {event.address}." if event.address else ""
    doubt = " Equal bytes came under another id before." if event.suspected_replay else ""
    yield Moment(event.received_at, "received", "First seen", f"{where}{doubt}".strip() or None)
    for again in story.duplicates.latest:
        detail = f"From {again.address}." if again.address else None
        yield Moment(again.at, "duplicate", "Came again, answered as a duplicate", detail)
    hidden = story.duplicates.count - len(story.duplicates.latest)
    if hidden > 0 and story.duplicates.first:
        title = f"Came again {hidden} times"
        yield Moment(story.duplicates.first, "duplicate", title, "Only the last 20 are kept.")
    for conflict in story.conflicts:
        detail = "The other body is kept below."
        yield Moment(conflict.at, "parked", "Came again with another body", detail)


def _attempts(attempts: Iterable[Attempt]) -> Iterator[Moment]:
    for attempt in attempts:
        name = f"Attempt {attempt.generation}.{attempt.number}"
        tone, words = OUTCOMES.get(attempt.outcome, OUTCOMES[None])
        by = f"By {attempt.worker}."
        if attempt.ended_at:
            yield Moment(attempt.started_at, "attempt", f"{name} started", by)
            yield Moment(attempt.ended_at, tone, f"{name} {words}", attempt.reason, attempt.error)
        else:
            yield Moment(attempt.started_at, tone, f"{name} {words}", by)


def _sends(calls: Iterable[ToldCall]) -> Iterator[Moment]:
    for call in calls:
        for send in call.sends:
            tone, words = SENT[send.outcome]
            status = f" ({send.status})" if send.status else ""
            title = f"Call {call.step!r} to {call.api}: {words}{status}"
            yield Moment(send.at, tone, title, send.reason, link=call.id)


def rejection_reason(reason: str) -> str:
    """Write a rejection's reason for people."""
    return REJECTION_REASONS.get(reason, reason.replace("_", " "))


def payload_view(redactor: Redactor, body: bytes | None, content_type: str | None) -> dict[str, str]:
    """Return `{kind, value}`: `json` parsed and redacted, `text`, or `none` with the reason."""
    if body is None:
        return {"kind": "none", "value": "It was erased after payload_retention."}
    try:
        return _json_view(redactor.payload(parse_payload(body, content_type)))
    except UnreadablePayloadError as error:
        if redactor.active:
            hidden = f"It is not shown: its source leaves places out, and {error}. The raw download has it."
            return {"kind": "none", "value": hidden}
        return {"kind": "text", "value": body.decode("utf-8", "backslashreplace")[:PAYLOAD_SHOWN]}


def content_view(redactor: Redactor, content: Content | None) -> dict[str, Any] | None:
    """Return what went out or came back with its `payload` as `payload_view` shows one."""
    if content is None:
        return None
    shown = {"kind": "text", "value": content.body[:PAYLOAD_SHOWN]}
    if content.encoding == "utf-8" and len(content.body) <= PAYLOAD_SHOWN:
        with suppress(ValueError):
            # Parsed, an escape becomes a character: what is hidden may turn up anew.
            shown = _json_view(redactor.data(load_json(content.body)))
    return {**dict(content), "payload": shown}


def _json_view(value: Any) -> dict[str, str]:
    text, whole = indented(value, PAYLOAD_SHOWN)
    return {"kind": "json" if whole else "text", "value": text}


def span(seconds: float | None) -> str:
    """Write a span in its largest unit: `3 min`."""
    whole = int(seconds or 0)
    size, unit = next((pair for pair in _UNITS if whole >= pair[0]), _UNITS[-1])
    return f"{whole // size} {unit}"


def when(at: datetime | None, now: datetime | None = None) -> Markup:
    """Return a time as an element that says how long ago it was, and exactly in its title."""
    if at is None:
        return Markup('<span class="quiet">-</span>')
    away = (at - (now or datetime.now(UTC))).total_seconds()
    relative = "now" if abs(away) < 1 else f"in {span(away)}" if away > 0 else f"{span(-away)} ago"
    shown = Markup('<time datetime="{}" title="{}" data-relative>{}</time>')
    return shown.format(rfc3339(at), exact(at), relative)


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


def indented(value: Any, most: int) -> tuple[str, bool]:
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
        string, colon, word = match[1], match[2] or "", match[3]
        kind = ("key" if colon else "string") if string else "word" if word else "number"
        token = Markup('<span class="j-{}">{}</span>{}').format(kind, string or match[0], colon)
        parts += [escape(text[place : match.start()]), token]
        place = match.end()
    return Markup("").join([*parts, escape(text[place:])])


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
