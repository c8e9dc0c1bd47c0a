"""`/events`: which there are, found by filter, a page at a time."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from flask import redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from receiver.dashboard.parts import DashboardParts
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports import list_events
from receiver.ledger.states import State
from receiver.management.given import read_time
from receiver.problems import Problem
from receiver.redaction import redacted_rows

PAGE = 50
FIELDS = ("source", "state", "type", "event_id", "since", "until")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?")


class Events:
    """The view of many events."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store, self._sources = parts.store, parts.sources

    def list_events(self) -> str | AnyResponse:
        """List events, newest first; the ledger's own id leads to its event."""
        wanted = request.args.get("event_id", "").strip()
        if _UUID.fullmatch(wanted):
            return redirect(url_for("dashboard.show_event", event=UUID(wanted)))
        which = read_filter(request.args)
        page = list_events(self._store, which, limit=PAGE, cursor=request.args.get("cursor"))
        given = {name: request.args[name] for name in FIELDS if request.args.get(name)}
        rows = redacted_rows(self._sources, self._store, page.data)
        return render_template(
            "events.html",
            rows=rows,
            next=page.next,
            given=given,
            states=list(State),
            sources=sorted(self._sources),
        )


def read_filter(given: Mapping[str, str]) -> EventFilter:
    """Read what a form's fields ask for; a field that is empty asks nothing. Raises Problem."""
    texts = {name: given.get(name, "").strip() or None for name in ("source", "type", "event_id")}
    return EventFilter(**texts, state=_state(given), since=_time(given, "since"), until=_time(given, "until"))


def _state(given: Mapping[str, str]) -> State | None:
    name = given.get("state", "")
    if name and name not in list(State):
        raise Problem(422, "invalid-request", f"There is no such state; there are {', '.join(State)}.")
    return State(name) if name else None


def _time(given: Mapping[str, str], name: str) -> datetime | None:
    text = given.get(name, "").strip()
    if not text:
        return None
    try:
        # A browser's field for times knows no zone: the page says that it is UTC.
        moment: Any = read_time(_whole(text) if _LOCAL.fullmatch(text) else text)
    except ValueError as error:
        raise Problem(422, "invalid-request", f"{name} cannot be read: {error}.") from None
    read: datetime = moment
    return read.astimezone(UTC)


def _whole(text: str) -> str:
    return f"{text}Z" if text.count(":") > 1 else f"{text}:00Z"
