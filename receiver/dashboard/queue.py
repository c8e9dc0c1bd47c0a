"""`/queue`: parked and dead events, one after another, with everything a decision needs."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from flask import render_template, request

from receiver.dashboard.choosing import call_choices, deciding_call, event_choices, why
from receiver.dashboard.parts import DashboardParts
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports import list_events, pending, story
from receiver.ledger.states import State
from receiver.redaction import redacted

PAGE = 20
"""Events at once: each is told with its calls, and a person reads one after the other."""

Told = dict[str, Any]


class Queue:
    """The view of what waits for a person."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store, self._sources = parts.store, parts.sources

    def queue(self) -> str:
        """List what is parked, or dead, newest first."""
        state = State.DEAD if request.args.get("state") == State.DEAD else State.PARKED
        page = list_events(
            self._store, EventFilter(state=state), limit=PAGE, cursor=request.args.get("cursor")
        )
        states = pending(self._store)["states"].values()
        counts = {one: sum(of.get(one, 0) for of in states) for one in (State.PARKED, State.DEAD)}
        items = [self._item(UUID(event["id"])) for event in page.data]
        return render_template("queue.html", state=state, items=items, counts=counts, next=page.next)

    def _item(self, event: UUID) -> Told:
        told = redacted(self._sources, self._store, event, story(self._store, event))
        call = deciding_call(told)
        return {
            "event": told["event"],
            "why": why(told),
            "attempts": told["attempts"][-1:],
            "call": call,
            "choices": call_choices(call, datetime.now(UTC)) if call else [],
            "event_choices": event_choices(told["event"]),
        }
