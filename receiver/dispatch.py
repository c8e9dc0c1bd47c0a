"""Nudges the broker after the commit: a wake-up with a row id, by task name. The ledger row is the outbox."""

import logging
from collections.abc import Callable, Iterable, Sequence
from uuid import UUID

from celery import Celery

from config.broker import publisher_options, wake_message
from receiver.background import Background

log = logging.getLogger(__name__)

ROOM = 10_000
"""Nudges that wait for a slow broker; what finds no room is nudged by the sweeper."""


class Dispatcher:
    """Publishes nudges from one thread, in bounded time, and forgets those that fail.

    `count` is told of each batch: taken or failed, and how many nudges.
    """

    def __init__(self, broker: str, count: Callable[[str, int], None] | None = None) -> None:
        self._count = count or (lambda _result, _nudges: None)
        self._app = Celery("firstseen-web", **publisher_options(broker), set_as_current=False)
        self._background: Background[UUID] = Background("dispatch", self._publish, room=ROOM, batch=1)
        self.state = "untried"

    def nudge(self, events: Iterable[UUID]) -> None:
        """Queue a wake-up for each event; never waits, never fails."""
        for event in events:
            self._background.put(event)

    def _publish(self, events: Sequence[UUID]) -> None:
        try:
            for event in events:
                self._app.send_task(**wake_message(str(event)))
        except Exception as error:  # noqa: BLE001 - clients raise whatever they like; one line tells of all
            self._count("failed", len(events))
            self._note("unreachable", f"{type(error).__name__}; the sweeper takes over")
        else:
            self._count("taken", len(events))
            self._note("ok", "it takes nudges")

    def _note(self, state: str, story: str) -> None:
        # One line a change, not one a delivery: a broker can be down for hours.
        if state != self.state:
            log.log(logging.INFO if state == "ok" else logging.WARNING, "Broker %s: %s.", state, story)
        self.state = state
