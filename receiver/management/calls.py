"""`/v1/calls`: what handlers asked of other APIs, and what a person says of it."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from flask import g

from config.sources import Source
from receiver.ledger.control import resolve
from receiver.ledger.reports import call_story, list_calls
from receiver.ledger.store import Store
from receiver.management.call_shapes import Calls as CallsPage
from receiver.management.call_shapes import CallStory
from receiver.management.gate import who
from receiver.management.given import CallsQuery, ResolveBody
from receiver.management.nudging import Nudge, nudge_afterwards
from receiver.management.operations import Operation
from receiver.redaction import redacted, redacted_calls

Answer = dict[str, Any]
CALL = "/calls/{call}"


class Calls:
    """The views of outbound calls."""

    def __init__(self, store: Store, nudge: Nudge, sources: Mapping[str, Source]) -> None:
        self._store, self._nudge, self._sources = store, nudge, sources

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        said = {"how": "happened", "response": {"status": 201, "body": '{"id": 7}'}}
        told = {200: CallStory}
        return [
            Operation("GET", "/calls", self.list_calls, {200: CallsPage}, CallsQuery),
            Operation("GET", CALL, self.show_call, told),
            Operation("POST", f"{CALL}/resolve", self.resolve_call, told, ResolveBody, said),
        ]

    def list_calls(self, given: CallsQuery) -> Answer:
        """List outbound calls, newest first.

        `state=parked` are those that wait for a person. Ask again with `cursor` set to `next` until that is
        null.
        """
        page = list_calls(self._store, given.as_filter(), limit=given.limit, cursor=given.cursor)
        return {"data": redacted_calls(self._sources, self._store, page.data), "next": page.next}

    def show_call(self, call: UUID) -> Answer:
        """Tell all about one call.

        Its event, request, sends and answer, what people said of it, and what happens next; where a person
        must decide, what each decision does.
        """
        return self._told(self._store, call)

    def resolve_call(self, call: UUID, given: ResolveBody) -> Answer:
        """Say what became of a call, or shall, when its event is parked.

        `happened`: the handler goes on with the response that you give. `resend-as-new`: a successor goes out
        under a new key, once nothing of the old one can be under way. `use-stored`: the stored bytes go out,
        though the handler asks for others now. `give-up`: the event ends. Call and event change together; a
        call that somebody else has resolved, or an event that moved on, refuses it.
        """
        response = given.response.as_response() if given.response else None
        acted = resolve(g.ledger, call, given.how, who(), response=response)
        if acted.nudge:
            nudge_afterwards(self._nudge, acted.event)
        return self._told(g.ledger, call)

    def _told(self, store: Store, call: UUID) -> Answer:
        told = call_story(store, call)
        shown: Answer = redacted(self._sources, store, UUID(told["call"]["event"]), told)
        return shown
