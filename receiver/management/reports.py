"""`/v1/sources`, `/v1/stats`, `/v1/rejections`: what is configured, and what came of it."""

from collections.abc import Mapping
from typing import Any

from config.sources import Source
from receiver.ledger.reports import rejections, stats
from receiver.ledger.store import Store
from receiver.management import shapes
from receiver.management.given import RejectionsQuery
from receiver.management.operations import Operation

Answer = dict[str, Any]


class Reports:
    """The views that only look."""

    def __init__(self, store: Store, sources: Mapping[str, Source]) -> None:
        self._store, self._sources = store, sources

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        return [
            Operation("GET", "/sources", self.list_sources, {200: shapes.Sources}),
            Operation("GET", "/stats", self.show_stats, {200: shapes.Stats}),
            Operation("GET", "/rejections", self.list_rejections, {200: shapes.Rejections}, RejectionsQuery),
        ]

    def list_sources(self) -> Answer:
        """List the sources as configured.

        Never a secret: only how many there are, and what is wrong with them.
        """
        return {"data": [describe(source) for source in self._sources.values()], "next": None}

    def show_stats(self) -> Answer:
        """Count events by source and state.

        Duplicates, conflicts and rejections too, and the oldest event that is not finished.
        """
        return stats(self._store)

    def list_rejections(self, given: RejectionsQuery) -> Answer:
        """List what was refused at the door.

        Counts by source, reason and minute, and the latest ones without bodies or values.
        """
        return rejections(self._store, given.source)


def describe(source: Source) -> Answer:
    """Return a source ready for JSON: what is configured, with its secrets counted, never shown."""
    return {
        "name": source.name,
        "provider": source.provider.name,
        "path": f"/webhooks/{source.name}",
        "secrets": len(source.secrets),
        "problem": source.problem,
        "warnings": list(source.warnings),
        "retention_seconds": int(source.retention.total_seconds()),
        "payload_retention_seconds": int(source.payload_retention.total_seconds()),
        "max_body": source.max_body,
        "on_replay": source.on_replay,
    }
