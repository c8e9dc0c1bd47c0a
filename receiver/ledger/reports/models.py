"""What `/v1` answers. Documentation and a test's measure: views return what the ledger's queries return."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row

from receiver.ledger.errors import BadCursor
from receiver.ledger.states import CallState, Move, Protection, SendOutcome, State
from receiver.ledger.text import rfc3339

# What several shapes of `/v1` are made of.


class Shape(BaseModel):
    """An object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class Event(Shape):
    """An event as lists show it."""

    id: UUID
    source: str
    event_id: str
    type: str
    state: State
    attempts: int
    generation: int
    received_at: datetime
    due_at: datetime
    reason: str | None
    duplicates: int
    conflicts: int


# What `/v1` answers about outbound calls.


class Call(Shape):
    """One outbound call of an event's generation; `successor` counts those whose place it took.

    `changed_to` is the fingerprint of other bytes that the handler asked for later. `shares` is the call of
    another event, with the same `once`, whose answer this one gets.
    """

    id: UUID
    event: UUID
    generation: int
    position: int
    step: str
    successor: int
    state: CallState
    api: str
    method: str
    url: str
    protection: Protection
    key: str | None
    once: str | None
    shares: UUID | None
    fingerprint: str
    changed_to: str | None
    use_stored: bool
    outcome: SendOutcome | None
    reason: str | None
    status: int | None
    send_count: int
    created_at: datetime
    first_sent_at: datetime | None
    expires_at: datetime | None
    due_at: datetime | None
    quiet_until: datetime | None
    ended_at: datetime | None


class OwnedCall(Call):
    """A call with the names of its event."""

    source: str
    event_id: str


class Calls(Shape):
    """A page of calls, newest first; `next` is the next page's cursor, or null on the last one."""

    data: list[OwnedCall]
    next: str | None


class Send(Shape):
    """One time that a call went out; while `open` it may have been executed without a word of it here.

    `claim` is that of the attempt that sent it, and `attempt` its number.
    """

    number: int
    claim: int
    attempt: int | None
    at: datetime
    sending_until: datetime
    ended_at: datetime | None
    outcome: SendOutcome | None
    status: int | None
    open: bool
    reason: str | None


class Stored(Shape):
    """A stored answer from outside; `size` is in bytes."""

    size: int
    content_type: str | None


class Content(Stored):
    """What went out or came back: as text where it is UTF-8, else in base64."""

    encoding: Literal["utf-8", "base64"]
    body: str


class ToldCall(Call):
    """A call with its latest sends, as its event's story tells it."""

    answer: Stored | None
    sends: list[Send]


class CallAction(Shape):
    """What a person said of the call; `was` is the state of its event before."""

    what: str
    who: str
    at: datetime
    was: str


class CallStory(Shape):
    """All about one call; `next` says what happens next, or what each resolution would do."""

    call: OwnedCall
    event: Event
    request: Content | None
    answer: Content | None
    sends: list[Send]
    actions: list[CallAction]
    next: str


class Problem(Shape):
    """Why not (RFC 9457). `type` is stable; `detail` says what happened and what to do."""

    type: str
    title: str
    status: int
    detail: str


class Events(Shape):
    """A page of events, newest first; `next` is the next page's cursor, or null on the last one."""

    data: list[Event]
    next: str | None


class EventInFull(Event):
    """An event with all that its row tells; `size` is in bytes, null once its payload is erased.

    `calls_changed` says that its handler asked for other bytes in a call that had succeeded; `parked_call` is
    the call that it is parked for.
    """

    created_at: datetime | None
    finished_at: datetime | None
    revived_at: datetime | None
    lease_until: datetime | None
    crashes: int
    discarded: bool
    suspected_replay: bool
    calls_changed: bool
    parked_call: UUID | None
    address: str | None
    content_type: str | None
    body_hash: str
    size: int | None


class Duplicate(Shape):
    """One more delivery of the event."""

    at: datetime
    address: str | None


class Duplicates(Shape):
    """How often the event came again, and the last 20 times."""

    count: int
    first: datetime | None
    last: datetime | None
    latest: list[Duplicate]


class Conflict(Shape):
    """Another body under the event's id; `size` is in bytes."""

    body_hash: str
    at: datetime
    size: int
    content_type: str | None
    promoted_to: UUID | None


class ConflictInFull(Conflict):
    """Another body with its bytes: as text where they are UTF-8, else in base64."""

    headers: dict[str, str]
    encoding: Literal["utf-8", "base64"]
    body: str


class Conflicts(Shape):
    """The bodies that are kept beside an event, newest first; ten at most."""

    data: list[ConflictInFull]
    next: None


class Attempt(Shape):
    """One run of a handler; `outcome` is null while it runs, and its sends have the same `claim`."""

    number: int
    generation: int
    claim: int
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    reason: str | None
    error: str | None
    worker: str


class Action(Shape):
    """What a person or a rule did; `was` is the state before, `call` the call that it was said of."""

    what: str
    who: str
    at: datetime
    was: str
    generation: int
    call: UUID | None


class Nudges(Shape):
    """How often the broker was told since the event became due."""

    count: int
    last: datetime | None


class Story(Shape):
    """The whole chain of an event; `next` says what happens next, when and why."""

    event: EventInFull
    duplicates: Duplicates
    conflicts: list[Conflict]
    attempts: list[Attempt]
    actions: list[Action]
    nudges: Nudges
    calls: list[ToldCall]
    next: str


class Promoted(Shape):
    """The event that a conflicting body became; `created` is false when it had become one before."""

    id: UUID
    event_id: str
    created: bool


class Counted(Shape):
    """What a bulk run would act on now."""

    what: Move
    filter: dict[str, str]
    dry_run: Literal[True]
    total: int


class Progress(Shape):
    """How far a bulk run is: `skipped` events had moved on before their turn, `open` ones wait for it."""

    id: UUID
    what: Move
    who: str
    filter: dict[str, str]
    at: datetime
    finished_at: datetime | None
    total: int
    done: int
    skipped: int
    open: int


class Source(Shape):
    """One source as it is configured; `secrets` counts them, and `problem` says why none can be used."""

    name: str
    provider: str
    path: str
    secrets: int
    problem: str | None
    warnings: list[str]
    retention_seconds: int
    payload_retention_seconds: int
    max_body: int
    on_replay: Literal["run", "park"]


class Sources(Shape):
    """All sources."""

    data: list[Source]
    next: None


class Figures(Shape):
    """One source's figures; rejections are those of the last 30 days, by reason."""

    source: str
    accepted: int
    duplicates: int
    conflicts: int
    states: dict[State, int]
    oldest_unfinished: datetime | None
    oldest_unfinished_seconds: float | None
    rejections: dict[str, int]


class CallFigures(Shape):
    """One API's figures: its calls by state, and by what they were told last."""

    api: str
    count: int
    states: dict[CallState, int]
    outcomes: dict[SendOutcome, int]


class Stats(Shape):
    """The figures of each source that has events or rejections, and of each API that was called."""

    data: list[Figures]
    calls: list[CallFigures]
    next: None


class RejectionCount(Shape):
    """How many deliveries were refused for one reason in one minute."""

    source: str
    reason: str
    minute: datetime
    count: int


class Rejection(Shape):
    """One refused delivery."""

    source: str
    reason: str
    at: datetime
    address: str | None


class Rejections(Shape):
    """Counts, at most 1,000, and the last 100 refused deliveries of each source; newest first."""

    data: list[RejectionCount]
    latest: list[Rejection]
    next: None


# Reading the ledger: which events there are. The command line, /v1 and the dashboard all ask here.


PAGE_MAX = 500
"""Events of one page at most: more is a second page, so that one reader cannot hold a connection for long."""

TEXTS = ("source", "event_id", "type", "state")

TIMES = ("received_at", "due_at")

SHOWN = ("id", *TEXTS, "attempts", "generation", *TIMES, "reason", "duplicates", "conflicts")


@dataclass(frozen=True)
class Page:
    """Some events, newest first, as JSON-ready dictionaries, and where the next page starts."""

    data: list[dict[str, Any]]
    next: str | None

    def as_json(self) -> dict[str, Any]:
        """Return the shape of every list: `{"data": [...], "next": cursor or null}`."""
        return {"data": self.data, "next": self.next}


def paged(rows: Sequence[Row[Any]], size: int, shown: Callable[[Row[Any]], dict[str, Any]]) -> Page:
    """Return the first `size` rows as a page; one row more says that there is a next one."""
    more = _write_cursor(rows[size - 1].id) if len(rows) > size else None
    return Page([shown(row) for row in rows[:size]], more)


def event_json(row: Row[Any]) -> dict[str, Any]:
    """Return an event as lists show it: the columns of SHOWN, ids and times as text."""
    shown = {name: getattr(row, name) for name in SHOWN}
    return {**shown, "id": str(row.id), **{name: rfc3339(shown[name]) for name in TIMES}}


def _write_cursor(last: UUID) -> str:
    return base64.urlsafe_b64encode(last.bytes).decode().rstrip("=")


def read_cursor(cursor: str) -> UUID:
    """Return the last id of the page before; raises BadCursor."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor.encode() + b"=="))
    except (binascii.Error, ValueError):
        raise BadCursor from None
