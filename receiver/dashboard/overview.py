"""`/`: whether anything is lost, stuck or doubled, at a glance.

`Overview` has the views. All who look share what its queries found: `Cached` repeats one only so often.
"""

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

Answer = TypeVar("Answer")

# Seconds that an answer is good for at least.
LIFE_LEAST = 2.0

# It is good for so many times as long as it took, so that a query uses a twentieth of one connection.
LIFE_SHARE = 20

# Minutes: what the chart and the figures may span.
HOUR, DAY = 60, 1_440

TOTALS = ("accepted", "duplicates", "done", "rejected", "open", "parked", "dead")

BROKER_STATES = {
    "ok": "takes nudges",
    "unreachable": "unreachable; the sweeper takes over",
    "untried": "no nudge sent yet",
}

# Seconds that a due event waits for a worker before the page says so.
STUCK = 60.0

DOWN = "The ledger does not answer. Nothing is lost: deliveries get 503, and providers send them again."


class Overview:
    """The views of the overview; `patience` is in seconds of a worker's silence."""

    def __init__(self, service: Service, broker: Callable[[], str], patience: float) -> None:
        self._sources, self._broker, self._patience = service.sources, broker, patience
        # One connection for all queries: deliveries need the others.
        turn = threading.Lock()
        self._schema = Cached(service.check, turn=turn)
        self._pending = Cached(service.pending, turn=turn)
        self._workers = Cached(service.workers, turn=turn)
        self._flow = {of: Cached(partial(service.flow, of), turn=turn) for of in (HOUR, DAY)}
        self._throughput = {of: Cached(partial(service.throughput, of), turn=turn) for of in (HOUR, DAY)}

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
    """Say in one sentence whether anything is lost or stuck."""
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


class Cached(Generic[Answer]):
    """An answer that is computed once for everybody, and again when it is old; `clock` is in seconds.

    It is good for `LIFE_LEAST` seconds, or `LIFE_SHARE` times as long as computing it took. While one thread
    computes it anew, the others get the old one. `turn` is held meanwhile, so that answers which share it are
    computed one after another. What `compute` raises is raised here, and not kept.
    """

    def __init__(
        self,
        compute: Callable[[], Answer],
        clock: Callable[[], float] = time.monotonic,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        self._compute, self._clock, self._turn = compute, clock, turn or nullcontext()
        self._lock = threading.Lock()
        self._known: tuple[Answer, float] | None = None

    def get(self) -> Answer:
        """Return the answer; only the very first one is waited for by all."""
        known = self._known
        if known is None:
            self._lock.acquire()
        elif self._clock() < known[1] or not self._lock.acquire(blocking=False):
            return known[0]
        try:
            # A thread that waited for the lock finds what the one before it computed.
            if self._known and self._clock() < self._known[1]:
                return self._known[0]
            with self._turn:
                begun = self._clock()
                answer = self._compute()
                ended = self._clock()
            self._known = answer, ended + max(LIFE_LEAST, LIFE_SHARE * (ended - begun))
            return answer
        finally:
            self._lock.release()
