"""Read models: the one shape of everything that people see of the ledger.

The readers of this package return them, the service redacts them, `/v1`, the dashboard and the command line
render them, and OpenAPI documents them: docstrings are its descriptions, and names, without `View`, those of
its components. Members stand in the order in which `--json` prints them.
"""

import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from sqlalchemy import Row

from receiver.ledger.errors import BadCursor
from receiver.ledger.states import CallState, Move, Protection, SendOutcome, State
from receiver.ledger.text import rfc3339

# Rows of one page at most: more is a second page, so that one reader cannot hold a connection for long.
PAGE_MAX = 500

# An aware time; RFC 3339 in JSON, with a Z and as many digits as the ledger has.
Timestamp = Annotated[
    datetime,
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"format": "date-time", "type": "string"}),
]


def schema_name(model: type[BaseModel]) -> str:
    """Return a model's name in the OpenAPI document: without the `View` that tells it from a namesake."""
    return model.__name__.removesuffix("View")


class Shape(BaseModel):
    """An object with these members and no others."""

    model_config = ConfigDict(extra="forbid", model_title_generator=schema_name)

    def as_json(self) -> dict[str, Any]:
        """Return it ready for JSON: times as RFC 3339, ids and states as text."""
        return self.model_dump(mode="json", by_alias=True)


ShapeT = TypeVar("ShapeT", bound=Shape)


def read_cursor(cursor: str) -> UUID:
    """Return the last id of the page before; raises BadCursor."""
    try:
        return UUID(bytes=base64.urlsafe_b64decode(cursor.encode() + b"=="))
    except (binascii.Error, ValueError):
        raise BadCursor from None


def next_cursor(rows: Sequence[Row[Any]], size: int) -> str | None:
    """Return the cursor of the page after the first `size` rows; None when there are no more rows."""
    if len(rows) <= size:
        return None
    return base64.urlsafe_b64encode(rows[size - 1].id.bytes).decode().rstrip("=")


class EventView(Shape):
    """An event as lists show it."""

    id: UUID
    source: str
    event_id: str
    type: str
    state: State
    attempts: int
    generation: int
    received_at: Timestamp
    due_at: Timestamp
    reason: str | None
    duplicates: int
    conflicts: int


class EventsView(Shape):
    """A page of events, newest first; `next` is the next page's cursor, or null on the last one."""

    data: list[EventView]
    next: str | None


class EventInFull(EventView):
    """An event with all that its row tells; `size` is in bytes, null once its payload is erased.

    `calls_changed` says that its handler asked for other bytes in a call that had succeeded; `parked_call` is
    the call that it is parked for.
    """

    created_at: Timestamp | None
    finished_at: Timestamp | None
    revived_at: Timestamp | None
    lease_until: Timestamp | None
    crashes: int
    discarded: bool
    suspected_replay: bool
    calls_changed: bool
    address: str | None
    content_type: str | None
    body_hash: str
    parked_call: UUID | None
    size: int | None


class Duplicate(Shape):
    """One more delivery of the event."""

    at: Timestamp
    address: str | None


class Duplicates(Shape):
    """How often the event came again, and the last 20 times."""

    count: int
    first: Timestamp | None
    last: Timestamp | None
    latest: list[Duplicate]


class Conflict(Shape):
    """Another body under the event's id; `size` is in bytes."""

    body_hash: str
    at: Timestamp
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
    started_at: Timestamp
    ended_at: Timestamp | None
    outcome: str | None
    reason: str | None
    error: str | None
    worker: str


class Action(Shape):
    """What a person or a rule did; `was` is the state before, `call` the call that it was said of."""

    what: str
    who: str
    at: Timestamp
    was: str
    generation: int
    call: UUID | None


class Nudges(Shape):
    """How often the broker was told since the event became due."""

    count: int
    last: Timestamp | None


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
    fingerprint: str
    changed_to: str | None
    use_stored: bool
    shares: UUID | None
    outcome: SendOutcome | None
    reason: str | None
    status: int | None
    created_at: Timestamp
    first_sent_at: Timestamp | None
    expires_at: Timestamp | None
    due_at: Timestamp | None
    quiet_until: Timestamp | None
    ended_at: Timestamp | None
    send_count: int


class OwnedCall(Call):
    """A call with the names of its event."""

    source: str
    event_id: str


class CallsView(Shape):
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
    at: Timestamp
    sending_until: Timestamp
    ended_at: Timestamp | None
    outcome: SendOutcome | None
    status: int | None
    open: bool
    reason: str | None


class Stored(Shape):
    """A stored answer from outside; `size` is in bytes."""

    size: int
    content_type: str | None


class ToldCall(Call):
    """A call with its latest sends, as its event's story tells it."""

    answer: Stored | None
    sends: list[Send]


class Content(Shape):
    """What went out or came back: as text where it is UTF-8, else in base64."""

    content_type: str | None
    size: int
    encoding: Literal["utf-8", "base64"]
    body: str


class CallAction(Shape):
    """What a person said of the call; `was` is the state of its event before."""

    what: str
    who: str
    at: Timestamp
    was: str


class CallStory(Shape):
    """All about one call; `next` says what happens next, or what each resolution would do."""

    call: OwnedCall
    event: EventView
    request: Content | None
    answer: Content | None
    sends: list[Send]
    actions: list[CallAction]
    next: str


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


class PromotedView(Shape):
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
    at: Timestamp
    finished_at: Timestamp | None
    total: int
    done: int
    skipped: int
    open: int


class SourceView(Shape):
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

    data: list[SourceView]
    next: None


class FiguresView(Shape):
    """One source's figures; rejections are those of the last 30 days, by reason."""

    source: str
    accepted: int
    duplicates: int
    conflicts: int
    states: dict[State, int]
    oldest_unfinished: Timestamp | None
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

    data: list[FiguresView]
    calls: list[CallFigures]
    next: None


class RejectionCount(Shape):
    """How many deliveries were refused for one reason in one minute."""

    source: str
    reason: str
    minute: Timestamp
    count: int


class Rejection(Shape):
    """One refused delivery."""

    source: str
    reason: str
    at: Timestamp
    address: str | None


class Rejections(Shape):
    """Counts, at most 1,000, and the last 100 refused deliveries of each source; newest first."""

    data: list[RejectionCount]
    latest: list[Rejection]
    next: None


class Oldest(Shape):
    """The oldest event that ends by itself, and for how many seconds the ledger has had it."""

    id: UUID
    source: str
    event_id: str
    type: str
    state: State
    received_at: Timestamp
    seconds: float


class Due(Shape):
    """How many events wait for a worker, the longest for so many seconds."""

    count: int
    seconds: float


class Pending(Shape):
    """What is on its way and what waits for a person; `states` counts by source and state."""

    at: Timestamp
    states: dict[str, dict[State, int]]
    oldest: Oldest | None
    due: Due


class Throughput(Shape):
    """Counts of each minute, oldest first, from the minute `from` on."""

    start: Timestamp = Field(alias="from")
    minutes: int
    accepted: list[int]
    duplicates: list[int]
    done: list[int]


class Flow(Shape):
    """What one source got and did in a span of minutes."""

    accepted: int = 0
    duplicates: int = 0
    done: int = 0
    rejections: dict[str, int] = {}


class WorkerHeartbeat(Shape):
    """A worker process and its latest sign of life."""

    name: str
    started_at: Timestamp
    seen_at: Timestamp
    silent_seconds: float


class ProblemView(Shape):
    """Why not (RFC 9457). `type` is stable; `detail` says what happened and what to do."""

    type: str
    title: str
    status: int
    detail: str
