"""A verified delivery, as it is handed to the ledger, and the verdict that comes back."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any
from uuid import UUID

from receiver.ledger.counters import FIRST_SEEN
from receiver.ledger.text import clipped, plain, storable

# What makes an event unique: its source and event id.
Key = tuple[str, str]

# A provider's time outside of this is garbage, and near its own ends `datetime` cannot change zones.
PLAUSIBLE = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Delivery:
    """One event of one verified POST, ready to be recorded. `body` is exact; `created_at` the provider's."""

    source: str
    event_id: str
    type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content_type: str | None = None
    created_at: datetime | None = None
    address: str | None = None
    problem: str | None = None
    """Why it needs a person: no id, or does not parse. It is kept, parked."""
    replay_guard: str | None = None
    """`run` or `park` where the id is outside the signed bytes: what equal bytes under a new id meet."""
    traceparent: str | None = None
    """The trace that it came in, as W3C Trace Context writes it."""

    @property
    def key(self) -> Key:
        """Return what makes the event unique."""
        return self.source, self.event_id

    @cached_property
    def body_hash(self) -> str:
        """Return the SHA-256 of the body, in hex."""
        return hashlib.sha256(self.body).hexdigest()

    @property
    def is_plain(self) -> bool:
        """Whether nothing but its id decides what becomes of it."""
        return self.problem is None and self.replay_guard is None

    def storable(self) -> "Delivery":
        """Return it as the columns take it: no text that they cannot hold loses a verified delivery."""
        created = self.created_at
        fits = created is not None and created.tzinfo is not None and PLAUSIBLE[0] <= created < PLAUSIBLE[1]
        columns: dict[str, Any] = {
            "event_id": storable(self.event_id),
            "type": clipped(self.type) or "",
            "created_at": created if fits else None,
            "content_type": clipped(self.content_type),
            "address": clipped(self.address),
            "problem": None if self.problem is None else plain(self.problem),
        }
        changed = {name: value for name, value in columns.items() if value != getattr(self, name)}
        # Nearly always nothing is changed, and the body's hash need not be computed again.
        return replace(self, **changed) if changed else self


@dataclass(frozen=True)
class Verdict:
    """What the ledger decided about one delivery."""

    event: UUID
    event_id: str
    first_seen: bool
    conflict: bool = False
    nudge: bool = False
    """True while the event is unfinished: a duplicate wakes it again."""
    done_duplicates: int = 0
    """Of a done event with this very body: how many duplicates it has had."""

    @property
    def name(self) -> str:
        """Return it in words: first seen, duplicate or conflict."""
        return FIRST_SEEN if self.first_seen else "conflict" if self.conflict else "duplicate"
