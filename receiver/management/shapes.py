"""What `/v1` answers. Documentation and a test's measure: views return what the ledger's queries return."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from receiver.ledger.states import CallState, Move, SendOutcome, State
from receiver.management.base_shapes import Event, Shape
from receiver.management.call_shapes import ToldCall


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
