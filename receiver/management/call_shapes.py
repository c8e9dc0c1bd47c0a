"""What `/v1` answers about outbound calls."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from receiver.ledger.states import CallState, Protection, SendOutcome
from receiver.management.base_shapes import Event, Shape


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
