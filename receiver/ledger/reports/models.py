"""Reading the ledger: which events there are. The command line, /v1 and the dashboard all ask here."""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Row

from receiver.ledger.errors import BadCursor
from receiver.ledger.text import rfc3339

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
