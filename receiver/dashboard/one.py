"""`/events/<id>`: one event's whole story, its payload, and what may be done to it."""

import hashlib
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from flask import Response, make_response, render_template, request

from config.nesting import load_json
from receiver.dashboard.choosing import call_choices, deciding_call, event_choices, why
from receiver.dashboard.parts import Parts
from receiver.dashboard.timeline import timeline
from receiver.dashboard.words import written
from receiver.ledger import State, original, story
from receiver.ledger.calls.story import call_story
from receiver.ledger.conflicts import conflicts
from receiver.ledger.payload import UnreadablePayloadError, parse_payload
from receiver.problems import Problem
from receiver.redaction import Redactor, redactor_of

SHOWN = 200_000
"""Characters of a payload on a page; the raw download has all of it."""

MOVING = (State.RECEIVED, State.PROCESSING, State.WAITING)
"""States in which a page looks again for news."""

Told = dict[str, Any]


class OneEvent:
    """The views of one event and of its calls."""

    def __init__(self, parts: Parts) -> None:
        self._store, self._sources = parts.store, parts.sources

    def show_event(self, event: UUID) -> str:
        """Tell everything about an event."""
        kept = original(self._store, event)
        hides = redactor_of(self._sources, kept)
        others = conflicts(self._store, event)["data"] if request.args.get("bodies") else []
        payload = _payload(hides, kept.body, kept.content_type)
        told = self._told(event)
        bodies = [{**one, "payload": self._other(kept.source, one)} for one in others]
        headers = hides.data(dict(kept.headers))
        return render_template(
            "event.html", **told, payload=payload, headers=headers, bodies=bodies, redacts=hides.active
        )

    def show_story(self, event: UUID) -> Response:
        """Tell what changes about an event; 204 while it is what the page shows already."""
        told = self._told(event)
        if request.args.get("seen") == told["seen"]:
            return Response(status=204)
        return make_response(render_template("_story.html", **told))

    def show_call(self, call: UUID) -> str:
        """Tell everything about one call."""
        told = call_story(self._store, call)
        event = UUID(told["call"]["event"])
        hides = redactor_of(self._sources, original(self._store, event))
        told = hides.told(told)
        parked = deciding_call(story(self._store, event))
        choices = call_choices(parked, datetime.now(UTC)) if parked and parked["id"] == str(call) else []
        shown = {name: _content(hides, told[name]) for name in ("request", "answer")}
        return render_template("call.html", told=told, choices=choices, **shown)

    def download(self, event: UUID) -> Response:
        """Give the body as it came, byte for byte: nothing is left out of it."""
        kept = original(self._store, event)
        if kept.body is None:
            raise Problem(410, "erased", "Its payload was erased after payload_retention; nothing is left.")
        return _attachment(kept.body, f"{event}.bin")

    def _told(self, event: UUID) -> Told:
        told = redactor_of(self._sources, original(self._store, event)).told(story(self._store, event))
        call = deciding_call(told)
        return {
            "told": told,
            "event": told["event"],
            "moments": timeline(told),
            "choices": event_choices(told["event"]),
            "call": call,
            "call_choices": call_choices(call, datetime.now(UTC)) if call else [],
            "why": why(told),
            "moving": told["event"]["state"] in MOVING,
            "seen": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16],
        }

    def _other(self, source: str, one: Told) -> Told:
        found = self._sources.get(source)
        hides = Redactor(found.redact if found else (), one["body"], one["content_type"])
        return _payload(hides, one["body"], one["content_type"])


def _attachment(body: bytes, name: str) -> Response:
    answer = Response(body, content_type="application/octet-stream")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


def _payload(hides: Redactor, body: bytes | None, content_type: str | None) -> Told:
    """Return `{kind, value}`: `json` parsed and redacted, `text`, or why there is nothing to see."""
    if body is None:
        return {"kind": "none", "value": "It was erased after payload_retention."}
    try:
        return _json(hides.payload(parse_payload(body, content_type)))
    except UnreadablePayloadError as error:
        if hides.active:
            hidden = f"It is not shown: its source leaves places out, and {error}. The raw download has it."
            return {"kind": "none", "value": hidden}
        return {"kind": "text", "value": body.decode("utf-8", "backslashreplace")[:SHOWN]}


def _json(value: Any) -> Told:
    text, whole = written(value, SHOWN)
    return {"kind": "json" if whole else "text", "value": text}


def _content(hides: Redactor, content: Told | None) -> Told | None:
    if content is None:
        return None
    shown = {"kind": "text", "value": content["body"][:SHOWN]}
    if content["encoding"] == "utf-8" and len(content["body"]) <= SHOWN:
        with suppress(ValueError):
            # Parsed, an escape becomes a character: what is hidden may turn up anew.
            shown = _json(hides.data(load_json(content["body"])))
    return {**content, "payload": shown}
