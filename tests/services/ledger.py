"""A deployment's database, read with plain SQL and a new connection each time."""

from collections import Counter
from typing import Any

from sqlalchemy import NullPool, create_engine, delete, text

from receiver.ledger.store import Store
from receiver.ledger.tables import metadata
from tests.services.databases import driver_url


def empty(store: Store) -> None:
    """Delete every row."""
    tables = list(reversed(metadata.sorted_tables))
    with store.write() as connection:
        if not store.sqlite:
            connection.execute(text("TRUNCATE {}".format(", ".join(table.name for table in tables))))
            return
        for table in tables:
            connection.execute(delete(table))


class Ledger:
    """Reads one database without the product's code; set-up may write to it."""

    def __init__(self, url: str) -> None:
        self.engine = create_engine(driver_url(url), poolclass=NullPool)

    def rows(self, query: str, **values: Any) -> list[dict[str, Any]]:
        """Return the rows of a SELECT."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def change(self, statement: str, **values: Any) -> int:
        """Run a statement and return how many rows it changed."""
        with self.engine.begin() as connection:
            return int(connection.execute(text(statement), values).rowcount)

    def event(self, event_id: str) -> dict[str, Any]:
        """Return an event's row; an empty dict if there is none."""
        found = self.rows("SELECT * FROM event WHERE event_id = :id", id=event_id)
        assert len(found) < 2, f"{event_id} has {len(found)} rows"
        return found[0] if found else {}

    def events(self) -> list[dict[str, Any]]:
        """Return the rows of all events, in the order recorded."""
        return self.rows("SELECT * FROM event ORDER BY id")

    def state(self, event_id: str) -> str | None:
        """Return an event's state; None if there is no such event."""
        return self.event(event_id).get("state")

    def states(self) -> Counter[str]:
        """Return how many events are in each state."""
        counted = self.rows("SELECT state, count(*) AS n FROM event GROUP BY state")
        return Counter({row["state"]: row["n"] for row in counted})

    def attempts(self, event_id: str) -> list[dict[str, Any]]:
        """Return an event's attempts, in the order of their claims."""
        query = (
            "SELECT a.* FROM attempt a JOIN event e ON e.id = a.event WHERE e.event_id = :id ORDER BY a.claim"
        )
        return self.rows(query, id=event_id)

    def outcomes(self, event_id: str) -> list[str | None]:
        """Return the outcome of each attempt of an event; None for one that has not ended."""
        return [row["outcome"] for row in self.attempts(event_id)]

    def calls(self, event_id: str) -> list[dict[str, Any]]:
        """Return an event's outbound calls in order, with a step's successors after it."""
        query = (
            "SELECT c.* FROM call c JOIN event e ON e.id = c.event WHERE e.event_id = :id"
            " ORDER BY c.position, c.successor"
        )
        return self.rows(query, id=event_id)

    def sends(self, event_id: str) -> list[dict[str, Any]]:
        """Return every send of an event's calls, in order."""
        query = (
            "SELECT s.* FROM send s JOIN call c ON c.id = s.call JOIN event e ON e.id = c.event"
            " WHERE e.event_id = :id ORDER BY c.position, c.successor, s.number"
        )
        return self.rows(query, id=event_id)
