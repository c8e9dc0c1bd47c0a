"""Request models: the queries and bodies of `/v1`, and the filters that pages and command line read as well.

`Which` and `WhichCalls` are the one parser of filters: `/v1` reads them as queries and bodies, the pages from
forms, the command line from options. A member that is not named here is refused, not ignored. Docstrings and
descriptions are those of the OpenAPI document, and class names its components'.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    model_validator,
)

from receiver.ledger.calls import StoredResponse
from receiver.ledger.control import Resolution
from receiver.ledger.filter import CallFilter, EventFilter
from receiver.ledger.states import CallState, Move, State

# Rows of one page, unless the request says how many, and at most.
PAGE, PAGE_MAX = 50, 200

# What the column holds.
GENERATION_MAX = 2**31 - 1

UUID_FORM = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

# Beyond any event's, and far enough from the ends of `datetime` to compute with.
_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


def read_time(value: Any) -> Any:
    """Return an RFC 3339 time in UTC, clamped if it is beyond any event's; raise ValueError."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or not _TIME.fullmatch(value.upper()):
        raise ValueError("write a time with its offset, such as 2026-11-21T10:00:00Z")
    # A leap second is a valid time that datetime does not know.
    parsed = datetime.fromisoformat(re.sub(r":60(?=\.|Z|\+|-)", ":59", value.upper()))
    # Compared as they are: near its own ends `datetime` cannot change zones.
    return min(max(parsed, _EARLIEST), _LATEST).astimezone(UTC)


def _read_count(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        raise ValueError("write a whole number")
    return value


def _read_whole(value: Any) -> Any:
    # In JSON 1.0 is an integer, too.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def read_uuid(value: Any) -> Any:
    """Return an id in its usual form; raise ValueError for the others that Python would take, too."""
    if isinstance(value, str) and not UUID_FORM.fullmatch(value):
        raise ValueError("write an id such as 0199c0de-0000-7000-8000-000000000000")
    return value


Id = Annotated[UUID, BeforeValidator(read_uuid)]

Time = Annotated[datetime, BeforeValidator(read_time)]

Generation = Annotated[StrictInt, Field(ge=0, le=GENERATION_MAX), BeforeValidator(_read_whole)]


class RequestModel(BaseModel):
    """A query or a body."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoQuery(RequestModel):
    """No query."""


class Which(RequestModel):
    """Which events: every part that is given must hold."""

    source: str | None = Field(default=None, description="The source's name.")
    state: State | None = Field(default=None, description="Where the event stands.")
    type: str | None = Field(default=None, description="The event's type, exactly.")
    since: Time | None = Field(default=None, description="Received at this time or later.")
    until: Time | None = Field(default=None, description="Received before this time.")
    event_id: str | None = Field(default=None, description="The provider's id.")

    def as_filter(self) -> EventFilter:
        """Return the ledger's filter."""
        # By its own members: a subclass has more.
        return EventFilter(**{name: getattr(self, name) for name in Which.model_fields})


class Paged(RequestModel):
    """A page of a list."""

    cursor: str | None = Field(
        default=None, pattern="^[A-Za-z0-9_-]{22}$", description="`next` of the previous page."
    )
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX), BeforeValidator(_read_count)] = Field(
        default=PAGE, description="How many at most."
    )


class EventsQuery(Paged, Which):
    """A page of events."""


class WhichCalls(RequestModel):
    """Which calls: every part that is given must hold."""

    state: CallState | None = Field(default=None, description="Where the call stands.")
    api: str | None = Field(default=None, description="The API's name.")
    source: str | None = Field(default=None, description="The name of its event's source.")
    event_id: str | None = Field(default=None, description="The provider's id of its event.")
    event: Id | None = Field(default=None, description="The ledger's id of its event.")

    def as_filter(self) -> CallFilter:
        """Return the ledger's filter."""
        return CallFilter(**{name: getattr(self, name) for name in WhichCalls.model_fields})


class CallsQuery(WhichCalls, Paged):
    """A page of calls."""


class RejectionsQuery(RequestModel):
    """Whose rejections."""

    source: str | None = Field(default=None, description="Only of this source.")


class Seen(RequestModel):
    """The generation that the caller saw, if it should count."""

    generation: Generation | None = Field(
        default=None, description="Refuse unless the event is still in this generation."
    )


class SeenForSure(RequestModel):
    """The generation that the caller saw."""

    generation: Generation = Field(description="The event's generation as the caller saw it.")


class ReplayBody(RequestModel):
    """A bulk run."""

    what: Literal[Move.RETRY, Move.RERUN, Move.DISCARD] = Field(description="What is done to each event.")
    filter: Which = Field(description="Which events; `{}` is all of them.")
    dry_run: StrictBool = Field(default=False, description="Only count them.")


class GivenResponse(RequestModel):
    """What the handler gets as the answer of a call that happened."""

    status: Annotated[StrictInt, Field(ge=200, le=299), BeforeValidator(_read_whole)] = Field(
        default=200, description="A success."
    )
    content_type: StrictStr | None = Field(
        default=None, pattern="^[!-~]([ -~]{0,253}[!-~])?$", description="What `body` is."
    )
    body: StrictStr = Field(default="", description="The body, as text.")

    def as_response(self) -> StoredResponse:
        """Return the ledger's response."""
        kind = (("content-type", self.content_type),) if self.content_type else ()
        return StoredResponse(self.status, kind, self.body.encode())


_ONLY_HAPPENED: dict[str, Any] = {
    "anyOf": [
        {"properties": {"how": {"const": Resolution.HAPPENED}}},
        {"properties": {"response": {"type": "null"}}},
    ]
}


class ResolveBody(RequestModel):
    """What a person says of a call."""

    model_config = ConfigDict(json_schema_extra=_ONLY_HAPPENED)

    how: Resolution = Field(description="What became of it, or shall.")
    response: GivenResponse | None = Field(
        default=None, description="Only if it happened: what the handler gets as its answer."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.response and self.how != Resolution.HAPPENED:
            raise ValueError(f"a response goes with how=happened, not with {self.how}")
        return self
