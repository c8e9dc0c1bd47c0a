"""`/`: whether anything is lost, stuck or doubled, at a glance."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Generic, TypeVar

from flask import Response, jsonify, render_template, request

from receiver.dashboard.presentation import plural, span
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import flow, pace, pending, workers
from receiver.ledger.schema import check_schema
from receiver.service import DashboardParts

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

OPEN = ("received", "processing", "waiting")

STUCK = 60.0
"""Seconds that a due event waits for a worker before the page says so."""

DOWN = "The ledger does not answer. Nothing is lost: deliveries get 503, and providers send them again."

Told = dict[str, Any]


class Overview:
    """The views of the whole. What they show is found once for everybody who looks."""

    def __init__(self, parts: DashboardParts) -> None:
        self._parts = parts
        # One connection for all of them: deliveries need the others.
        store, turn = parts.store, threading.Lock()
        self._schema = Remembered(partial(check_schema, store), turn=turn)
        self._pending = Remembered(partial(pending, store), turn=turn)
        self._workers = Remembered(partial(workers, store), turn=turn)
        self._flow = {of: Remembered(partial(flow, store, of), turn=turn) for of in (HOUR, DAY)}
        self._pace = {of: Remembered(partial(pace, store, of), turn=turn) for of in (HOUR, DAY)}

    def overview(self) -> str:
        """Show the page."""
        return render_template("overview.html", **self._told())

    def figures(self) -> str:
        """Show the part of the page that changes."""
        return render_template("_figures.html", **self._told())

    def series(self) -> Response:
        """Give the chart's numbers."""
        return jsonify(self._pace[_span()].get())

    def _told(self) -> Told:
        minutes = _span()
        try:
            self._schema.get()
            now, flows, alive = self._pending.get(), self._flow[minutes].get(), self._workers.get()
        except LedgerError as error:
            health = _health(str(error), self._parts.broker(), None)
            return {
                "span": minutes,
                "rows": None,
                "verdict": {"tone": "bad", "short": DOWN},
                "health": health,
            }
        names = sorted({*flows, *now["states"], *self._parts.sources})
        rows = [self._row(name, flows, now["states"]) for name in names]
        worker = _worker(alive, now["due"], self._parts.patience)
        return {
            "span": minutes,
            "rows": rows,
            "total": _total(rows),
            "oldest": now["oldest"],
            "verdict": _verdict(_total(rows), worker, now["due"]),
            "health": _health(None, self._parts.broker(), worker),
        }

    def _row(self, name: str, flows: Told, states: Told) -> Told:
        moved, stands = flows.get(name, {}), states.get(name, {})
        source = self._parts.sources.get(name)
        return {
            "source": name,
            "problem": source.problem if source else "It is not configured any more.",
            "accepted": moved.get("accepted", 0),
            "duplicates": moved.get("duplicates", 0),
            "done": moved.get("done", 0),
            "rejections": moved.get("rejections", {}),
            "rejected": sum(moved.get("rejections", {}).values()),
            "open": sum(stands.get(state, 0) for state in OPEN),
            "parked": stands.get("parked", 0),
            "dead": stands.get("dead", 0),
        }


def _span() -> int:
    return DAY if request.args.get("minutes") == str(DAY) else HOUR


def _total(rows: list[Told]) -> Told:
    names = ("accepted", "duplicates", "done", "rejected", "open", "parked", "dead")
    return {name: sum(row[name] for row in rows) for name in names}


def _verdict(total: Told, worker: Told, due: Told) -> Told:
    """Answer in one sentence what somebody asks who was woken: whether anything is lost or stuck."""
    late = plural(due["count"], "event")
    if worker["tone"] == "bad":
        waits = f", and {late} wait in the ledger" if due["count"] else ""
        return {"tone": "bad", "short": f"No worker is running{waits}. Nothing is lost; start one."}
    if worker["tone"] == "fair":
        return {"tone": "fair", "short": f"Workers are behind: {late} due, for {span(due['seconds'])}."}
    if stuck := total["parked"] + total["dead"]:
        return {"tone": "fair", "short": f"{plural(stuck, 'event')} cannot go on alone; all others run."}
    return {"tone": "good", "short": "All is well: nothing is stuck, and nothing waits for a person."}


def _health(problem: str | None, broker: str, worker: Told | None) -> list[Told]:
    ledger = {"name": "Ledger", "tone": "bad" if problem else "good", "says": problem or "answers"}
    return [ledger, _broker(broker), worker or {"name": "Workers", "tone": "unknown", "says": "unknown"}]


def _broker(state: str) -> Told:
    tone = {"ok": "good", "unreachable": "fair"}.get(state, "unknown")
    says = {
        "ok": "takes nudges",
        "unreachable": "unreachable; the sweeper takes over",
        "untried": "no nudge sent yet",
    }
    return {"name": "Broker", "tone": tone, "says": says.get(state, state)}


def _worker(alive: list[Told], due: Told, patience: float) -> Told:
    here = [one for one in alive if one["silent_seconds"] <= patience]
    if not here:
        last = alive[0]["seen_at"] if alive else None
        return {"name": "Workers", "tone": "bad", "says": "none is running", "last": last}
    tone = "fair" if due["count"] and due["seconds"] > STUCK else "good"
    busy = "; events wait for them" if tone == "fair" else ""
    return {"name": "Workers", "tone": tone, "says": f"{len(here)} running{busy}"}
