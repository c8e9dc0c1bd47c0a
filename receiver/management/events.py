"""`/v1/events`: which there are, one's whole story, and what a person does to it."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import g

from config.sources import Source
from receiver.ledger.control import discard, promote, rerun, retry
from receiver.ledger.reports import conflicts, list_events, original, story
from receiver.ledger.store import Store
from receiver.ledger.text import readable
from receiver.management import shapes
from receiver.management.gate import who
from receiver.management.given import EventsQuery, Seen, SeenForSure
from receiver.management.nudging import Nudge, nudge_afterwards
from receiver.management.operations import PREFIX, Operation
from receiver.redaction import redacted, redacted_rows, shown_body

Answer = dict[str, Any]
EVENT = "/events/{event}"
BODY = EVENT + "/conflicts/{body_hash}"


class Events:
    """The views of events. Those that act do so in `g.ledger`, the transaction of the request's key."""

    def __init__(self, store: Store, nudge: Nudge, sources: Mapping[str, Source]) -> None:
        self._store, self._nudge, self._sources = store, nudge, sources

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        acted, seen = {200: shapes.EventInFull}, {"generation": 0}
        promoted = {200: shapes.Promoted, 201: shapes.Promoted}
        return [
            Operation("GET", "/events", self.list_events, {200: shapes.Events}, EventsQuery),
            Operation("GET", EVENT, self.show_event, {200: shapes.Story}),
            Operation("POST", f"{EVENT}/retry", self.retry_event, acted, Seen, seen),
            Operation("POST", f"{EVENT}/rerun", self.rerun_event, acted, SeenForSure, seen),
            Operation("POST", f"{EVENT}/discard", self.discard_event, acted, Seen, seen),
            Operation("GET", f"{EVENT}/conflicts", self.list_conflicts, {200: shapes.Conflicts}),
            Operation("POST", f"{BODY}/promote", self.promote_conflict, promoted),
        ]

    def list_events(self, given: EventsQuery) -> Answer:
        """List events, newest first.

        Ask again with `cursor` set to `next` until that is null: the pages together have every event once,
        and events that arrive meanwhile shift none of them.
        """
        page = list_events(self._store, given.as_filter(), limit=given.limit, cursor=given.cursor)
        return {"data": redacted_rows(self._sources, self._store, page.data), "next": page.next}

    def show_event(self, event: UUID) -> Answer:
        """Tell an event's whole story.

        When it came, duplicates, conflicts, attempts, what people did, and what happens next, when and why.
        """
        told: Answer = redacted(self._sources, self._store, event, story(self._store, event))
        return told

    def list_conflicts(self, event: UUID) -> Answer:
        """List the other bodies that came under the event's id.

        The first ten are kept, until the event's payload is erased.
        """
        source = self._sources.get(original(self._store, event).source)
        paths = source.redact if source else ()
        found = conflicts(self._store, event)
        shown = [readable(shown_body(paths, one["body"], one["content_type"])) for one in found["data"]]
        return {**found, "data": [one | body for one, body in zip(found["data"], shown, strict=True)]}

    def retry_event(self, event: UUID, given: Seen) -> Answer:
        """Run an event again in its generation.

        Its calls keep their idempotency keys, so nothing happens twice. Answers with the event as it is now.
        """
        return self._done(event, retry(g.ledger, event, who(), generation=given.generation).nudge)

    def rerun_event(self, event: UUID, given: SeenForSure) -> Answer:
        """Run an event again in a new generation.

        Its calls get new idempotency keys: every effect happens again, on purpose. It is refused unless the
        event is still in the generation that you saw.
        """
        return self._done(event, rerun(g.ledger, event, who(), generation=given.generation).nudge)

    def discard_event(self, event: UUID, given: Seen) -> Answer:
        """End an event for good.

        No handler runs, and no new delivery revives it.
        """
        return self._done(event, discard(g.ledger, event, who(), generation=given.generation).nudge)

    def promote_conflict(self, event: UUID, body_hash: str) -> tuple[Answer, int, dict[str, str]]:
        """Make a conflicting body an event of its own.

        Its id is the event's with the beginning of the body's hash. Asked again, it answers with the same
        event.
        """
        done = promote(g.ledger, event, body_hash, who())
        nudge_afterwards(self._nudge, done.event)
        answer = {"id": str(done.event), "event_id": done.event_id, "created": done.created}
        place = {"Location": f"{PREFIX}/events/{done.event}"}
        return answer, 201 if done.created else 200, place

    def _done(self, event: UUID, nudge: bool) -> Answer:  # noqa: FBT001 - private, and named at its end
        if nudge:
            nudge_afterwards(self._nudge, event)
        told: Answer = redacted(self._sources, g.ledger, event, story(g.ledger, event)["event"])
        return told
