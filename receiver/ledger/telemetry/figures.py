"""What /metrics tells of the ledger: totals that only grow, and how things stand. Cheap at any size."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select

from receiver.ledger.calls.models import CALL
from receiver.ledger.calls.states import CallState
from receiver.ledger.pending import pending
from receiver.ledger.presence import workers
from receiver.ledger.store import Store
from receiver.ledger.telemetry.tally import Total, totals

PRESENT = 60.0
"""Seconds without a word after which a worker does not count as present; it sweeps every few."""


@dataclass(frozen=True)
class Figures:
    """The ledger at one moment. Seconds are 0 where nothing waits."""

    totals: list[Total]
    states: dict[str, dict[str, int]]
    """Events that are not finished, parked or dead, by source and state: no row of a done one is read."""
    oldest_unfinished: float
    due: int
    longest_due: float
    parked_calls: dict[str, int]
    """By API."""
    workers: int


def figures(store: Store) -> Figures:
    """Read all of it. Raises LedgerUnavailable."""
    with store.read() as connection:
        joined = store.joined(connection)
        standing: dict[str, Any] = pending(joined)
        oldest = standing["oldest"]
        return Figures(
            totals=totals(connection),
            states=standing["states"],
            oldest_unfinished=oldest["seconds"] if oldest else 0.0,
            due=standing["due"]["count"],
            longest_due=standing["due"]["seconds"],
            parked_calls=_parked_calls(connection),
            workers=sum(one["silent_seconds"] < PRESENT for one in workers(joined)),
        )


def _parked_calls(connection: Connection) -> dict[str, int]:
    parked = select(CALL.c.api, func.count()).where(CALL.c.state == CallState.PARKED)
    return {row[0]: row[1] for row in connection.execute(parked.group_by(CALL.c.api))}
