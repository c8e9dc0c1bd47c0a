"""`/`: whether anything is lost, stuck or doubled, at a glance."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

from flask import Response, jsonify, render_template, request

from receiver.dashboard.presentation import plural, span
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports.models import Due, Flow, WorkerHeartbeat
from receiver.ledger.states import OPEN, State
from receiver.service import Service

# An answer that many ask for and that costs something: it is found anew only so often.


Answer = TypeVar("Answer")

LEAST = 2.0
"""Seconds that an answer is good for at least."""

SHARE = 20
"""It is good for so many times as long as it took: asking may use a twentieth of one connection."""


class Remembered(Generic[Answer]):
    """Finds an answer once for everybody. `clock` is in seconds; what `find` raises is not remembered.

    `turn` is held while it looks: answers that share one are found one after another.
    """

    def __init__(
        self,
        find: Callable[[], Answer],
        clock: Callable[[], float] = time.monotonic,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._find, self._clock, self._turn = find, clock, turn or nullcontext()
        self._lock = threading.Lock()
        self._known: tuple[Answer, float] | None = None

    def get(self) -> Answer:
        """Return the answer; while another thread looks for a new one, the last one."""
        known = self._known
        if known and (self._clock() < known[1] or not self._lock.acquire(blocking=False)):
            return known[0]
        if not known:
            self._lock.acquire()
        try:
            return self._renewed()
        finally:
            self._lock.release()

    def _renewed(self) -> Answer:
        # Whoever waited for the first answer finds it here.
        if self._known and self._clock() < self._known[1]:
            return self._known[0]
        with self._turn:
            begun = self._clock()
            answer = self._find()
            ended = self._clock()
        self._known = answer, ended + max(LEAST, SHARE * (ended - begun))
        return answer


HOUR, DAY = 60, 1_440
"""Minutes: what the chart and the figures may span."""

TOTALS = ("accepted", "duplicates", "done", "rejected", "open", "parked", "dead")

BROKER_STATES = {
    "ok": "takes nudges",
    "unreachable": "unreachable; the sweeper takes over",
    "untried": "no nudge sent yet",
}

STUCK = 60.0
"""Seconds that a due event waits for a worker before the page says so."""

DOWN = "The ledger does not answer. Nothing is lost: deliveries get 503, and providers send them again."


class Overview:
    """The views of the whole. What they show is found once for everybody who looks."""

    def __init__(self, service: Service, broker: Callable[[], str], patience: float) -> None:
        self._sources, self._broker, self._patience = service.sources, broker, patience
        # One connection for all of them: deliveries need the others.
        turn = threading.Lock()
        self._schema = Remembered(service.check, turn=turn)
        self._pending = Remembered(service.pending, turn=turn)
        self._workers = Remembered(service.workers, turn=turn)
        self._flow = {of: Remembered(partial(service.flow, of), turn=turn) for of in (HOUR, DAY)}
        self._throughput = {of: Remembered(partial(service.throughput, of), turn=turn) for of in (HOUR, DAY)}

    def overview(self) -> str:
        """Show the page."""
        return render_template("overview.html", **self._context())

    def figures(self) -> str:
        """Show the part of the page that changes."""
        return render_template("_figures.html", **self._context())

    def series(self) -> Response:
        """Give the chart's numbers."""
        return jsonify(self._throughput[_minutes()].get().as_json())

    def _context(self) -> dict[str, Any]:
        minutes = _minutes()
        try:
            self._schema.get()
            pending, flows, alive = self._pending.get(), self._flow[minutes].get(), self._workers.get()
        except LedgerError as error:
            return {
                "span": minutes,
                "rows": None,
                "verdict": {"tone": "bad", "short": DOWN},
                "health": _health(str(error), self._broker(), None),
            }
        names = sorted({*flows, *pending.states, *self._sources})
        rows = [self._row(name, flows.get(name, Flow()), pending.states.get(name, {})) for name in names]
        totals = {name: sum(row[name] for row in rows) for name in TOTALS}
        worker = _worker(alive, pending.due, self._patience)
        return {
            "span": minutes,
            "rows": rows,
            "total": totals,
            "oldest": pending.oldest,
            "verdict": _verdict(totals, worker, pending.due),
            "health": _health(None, self._broker(), worker),
        }

    def _row(self, name: str, flow: Flow, states: Mapping[State, int]) -> dict[str, Any]:
        source = self._sources.get(name)
        return {
            "source": name,
            "problem": source.problem if source else "It is not configured any more.",
            "accepted": flow.accepted,
            "duplicates": flow.duplicates,
            "done": flow.done,
            "rejections": flow.rejections,
            "rejected": sum(flow.rejections.values()),
            "open": sum(states.get(state, 0) for state in OPEN),
            "parked": states.get(State.PARKED, 0),
            "dead": states.get(State.DEAD, 0),
        }


def _minutes() -> int:
    return DAY if request.args.get("minutes") == str(DAY) else HOUR


def _verdict(totals: Mapping[str, int], worker: Mapping[str, Any], due: Due) -> dict[str, str]:
    """Answer in one sentence what somebody asks who was woken: whether anything is lost or stuck."""
    late = plural(due.count, "event")
    if worker["tone"] == "bad":
        waits = f", and {late} wait in the ledger" if due.count else ""
        return {"tone": "bad", "short": f"No worker is running{waits}. Nothing is lost; start one."}
    if worker["tone"] == "fair":
        return {"tone": "fair", "short": f"Workers are behind: {late} due, for {span(due.seconds)}."}
    if stuck := totals["parked"] + totals["dead"]:
        return {"tone": "fair", "short": f"{plural(stuck, 'event')} cannot go on alone; all others run."}
    return {"tone": "good", "short": "All is well: nothing is stuck, and nothing waits for a person."}


def _health(problem: str | None, broker: str, worker: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    ledger = {"name": "Ledger", "tone": "bad" if problem else "good", "says": problem or "answers"}
    tone = {"ok": "good", "unreachable": "fair"}.get(broker, "unknown")
    nudges = {"name": "Broker", "tone": tone, "says": BROKER_STATES.get(broker, broker)}
    return [ledger, nudges, worker or {"name": "Workers", "tone": "unknown", "says": "unknown"}]


def _worker(alive: Sequence[WorkerHeartbeat], due: Due, patience: float) -> dict[str, Any]:
    running = sum(worker.silent_seconds <= patience for worker in alive)
    if not running:
        last = alive[0].seen_at if alive else None
        return {"name": "Workers", "tone": "bad", "says": "none is running", "last": last}
    behind = due.count and due.seconds > STUCK
    says = f"{running} running{'; events wait for them' if behind else ''}"
    return {"name": "Workers", "tone": "fair" if behind else "good", "says": says}
