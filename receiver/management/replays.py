"""`/v1/replays`: many events at once, as a job that the workers' sweepers carry out."""

from typing import Any
from uuid import UUID

from flask import g

from receiver.ledger.control import candidates, plan, progress
from receiver.ledger.store import Store
from receiver.management import shapes
from receiver.management.gate import who
from receiver.management.given import ReplayBody
from receiver.management.operations import PREFIX, Answers, Operation

Answer = dict[str, Any]


class Replays:
    """The views of bulk runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        started: Answers = {200: shapes.Counted, 202: shapes.Progress}
        example = {"what": "retry", "filter": {"source": "stripe", "state": "dead"}, "dry_run": True}
        return [
            Operation("POST", "/replays", self.start_replay, started, ReplayBody, example),
            Operation("GET", "/replays/{replay}", self.show_replay, {200: shapes.Progress}),
        ]

    def start_replay(self, given: ReplayBody) -> tuple[Answer, int, dict[str, str]]:
        """Retry, rerun or discard every event of a filter.

        With `dry_run` they are only counted. Otherwise the list of events and their generations is written
        down first; then the workers act on each, once, or skip it if it moved on meanwhile. Ask the new
        bulk run how far it is.
        """
        which = given.filter.as_filter()
        if given.dry_run:
            number = candidates(g.ledger, given.what, which)
            counted = {"what": given.what, "filter": which.as_json(), "dry_run": True, "total": number}
            return counted, 200, {}
        replay = plan(g.ledger, given.what, which, who())
        return progress(g.ledger, replay.id), 202, {"Location": f"{PREFIX}/replays/{replay.id}"}

    def show_replay(self, replay: UUID) -> Answer:
        """Say how far a bulk run is.

        It is over once `finished_at` is set. A worker that dies in the middle costs nothing: another goes on.
        """
        return progress(self._store, replay)
