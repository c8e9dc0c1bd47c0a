"""The ledger against a simple model: deliveries, workers, crashes, people and time, in any order."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import delete, select

from receiver.ledger.control import discard, rerun, retry
from receiver.ledger.errors import NotAllowed
from receiver.ledger.intake import record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import (
    Retention,
    claim_due,
    expire,
    prune,
    renew,
    reopen,
    settle,
    take_nudges,
)
from receiver.ledger.states import CRASH_LIMIT, UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.steps import SWEEP, delivery

# Every jump of the clock is longer than a lease, and a test is shorter than one: no time is ambiguous.
LEASE = timedelta(seconds=90)
JUMPS = [timedelta(minutes=2), timedelta(hours=2), timedelta(days=20)]
DELAYS = [timedelta(0), timedelta(hours=1)]
PAYLOADS, IDS_KEPT = timedelta(days=30), timedelta(days=90)
NAMES = ["a", "b", "c", "no id"]
FINAL = (State.DONE, State.DEAD, State.IGNORED)
ENDS = [move for move in Move if State.PROCESSING in leaves(move) and move != Move.EXPIRE]
ROUNDS = 3
"""Rounds of sweep, claim and finish, two hours each, after which every event must have ended."""

names = st.sampled_from(NAMES)


@dataclass
class Model:
    """The expected state of one event; times are shifts of the clock."""

    event: UUID
    state: State
    received: timedelta
    due: timedelta
    attempts: int = 0
    crashes: int = 0
    generation: int = 0
    token: int = 0
    lease: timedelta | None = None
    finished: timedelta | None = None
    revived: timedelta | None = None
    duplicate: timedelta | None = None
    duplicates: int = 0
    discarded: bool = False
    erased: bool = False

    def end(self, move: Move, now: timedelta, delay: timedelta = timedelta(0)) -> None:
        """Move on, as every move does."""
        self.state, self.lease = enters(move), None
        self.finished = now if self.state in FINAL else None
        if self.state == State.WAITING:
            self.due = now + delay
        if move in (Move.RELEASE, Move.IGNORE, Move.CALL_LATER):
            self.attempts -= 1

    def crash(self, now: timedelta) -> None:
        """Expire the lease of a crashed worker."""
        self.end(Move.EXPIRE, now)
        self.crashes += 1
        if self.crashes >= CRASH_LIMIT:
            self.state = State.PARKED

    def begin(self, now: timedelta) -> None:
        """Claim the event."""
        self.state, self.lease = State.PROCESSING, now + LEASE
        self.attempts += 1
        self.token += 1

    def again(self, now: timedelta) -> None:
        """Make the event due with fresh attempts, as a retry, a rerun or a revival does."""
        self.end(Move.RETRY, now)
        self.attempts = self.crashes = 0


class Ledger(RuleBasedStateMachine):
    """Applies each rule to the ledger and to the model, and compares both."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        self.models: dict[str, Model] = {}
        self.claims: list[Claim] = []
        store.shift = timedelta(0)
        with store.write() as connection:
            connection.execute(delete(EVENT))

    @property
    def now(self) -> timedelta:
        """Return the model's time."""
        return self.store.shift

    def due(self, model: Model) -> bool:
        """Whether an event may be claimed."""
        return model.state in UNFINISHED and model.due <= self.now

    def gone(self, model: Model) -> bool:
        """Whether an event's lease has expired."""
        return model.lease is not None and model.lease <= self.now

    @rule(span=st.sampled_from(JUMPS))
    def time_passes(self, span: timedelta) -> None:
        """Move the clock forward."""
        self.store.shift += span

    @rule(chosen=st.lists(names, min_size=1, max_size=4))
    def deliver(self, chosen: list[str]) -> None:
        """Record a batch: each id is first seen once, and every copy tells what it found."""
        batch = [delivery(name, problem="It has no id." if name == "no id" else None) for name in chosen]
        for name, verdict in zip(chosen, record(self.store, batch), strict=True):
            model = self.models.get(name)
            assert verdict.first_seen == (model is None), f"{name}: {verdict}"
            if model is None:
                state = State.PARKED if name == "no id" else State.RECEIVED
                self.models[name] = Model(verdict.event, state, self.now, self.now)
                assert verdict.nudge == (state == State.RECEIVED)
                continue
            self.duplicate(model)
            assert (verdict.event, verdict.nudge) == (model.event, model.state in UNFINISHED)

    def duplicate(self, model: Model) -> None:
        """Count the duplicate, and revive a dead event."""
        model.duplicates += 1
        model.duplicate = self.now
        paused = model.revived is not None and model.revived > self.now - timedelta(hours=1)
        if model.state == State.DEAD and not (model.discarded or model.erased or paused):
            model.again(self.now)
            model.revived = self.now

    @rule()
    def claim_oldest(self) -> None:
        """Claim the event that has been due longest, as every nudge does."""
        due = [model for model in self.models.values() if self.due(model)]
        oldest = min((model.due for model in due), default=None)
        held = claim_due(self.store, limit=1, lease=LEASE, worker="w")
        self.taken(next(iter(held), None), [model for model in due if model.due == oldest])

    def taken(self, held: Claim | None, possible: list[Model]) -> None:
        """Check that a claim was possible, and note it."""
        assert (held is None) == (not possible), f"{held} of {possible}"
        if held is not None:
            model = next(model for model in possible if model.event == held.event)
            model.begin(self.now)
            assert (held.token, held.attempt, held.generation) == (
                model.token,
                model.attempts,
                model.generation,
            )
            assert held.body is not None, "a worker was given an erased event"
            self.claims.append(held)

    def holds(self, held: Claim) -> Model | None:
        """Return the event that a claim still holds, if any."""
        for model in self.models.values():
            if model.event == held.event and model.token == held.token and model.lease is not None:
                return model
        return None

    @rule(data=st.data(), move=st.sampled_from(ENDS), delay=st.sampled_from(DELAYS))
    def settle(self, data: st.DataObject, move: Move, delay: timedelta) -> None:
        """End an attempt by any claim there ever was: only the one that holds counts."""
        if self.claims:
            held = data.draw(st.sampled_from(self.claims), "claim")
            model = self.holds(held)
            settled = settle(self.store, [(held, Outcome(move, delay))])
            assert settled == ({held.event} if model else set())
            if model is not None:
                model.end(move, self.now, delay)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """Renew any claims there ever were: exactly the lost ones are returned."""
        if self.claims:
            chosen = data.draw(st.lists(st.sampled_from(self.claims), unique_by=id), "claims")
            lost = renew(self.store, chosen, lease=LEASE)
            assert lost == {held.event for held in chosen if self.holds(held) is None}
            for held in chosen:
                if model := self.holds(held):
                    model.lease = self.now + LEASE

    @rule()
    def sweep(self) -> None:
        """Expire leases, then nudge: only due events are nudged, and each once."""
        gone = [model for model in self.models.values() if self.gone(model)]
        assert expire(self.store) == len(gone)
        for model in gone:
            model.crash(self.now)
        nudged = take_nudges(self.store, SWEEP)
        assert len(nudged) == len(set(nudged))
        assert set(nudged) <= {model.event for model in self.models.values() if self.due(model)}

    @rule(name=names, move=st.sampled_from([Move.RETRY, Move.RERUN, Move.DISCARD]), stale=st.booleans())
    def act(self, name: str, move: Move, *, stale: bool) -> None:
        """Retry, rerun or discard; a forbidden state and a stale generation are refused."""
        if (model := self.models.get(name)) is None:
            return
        seen = model.generation - stale
        act = {Move.RETRY: retry, Move.RERUN: rerun, Move.DISCARD: discard}[move]
        allowed = model.state in leaves(move) and not (model.erased and move != Move.DISCARD) and not stale
        try:
            act(self.store, model.event, "ada", generation=seen)
        except NotAllowed:
            assert not allowed, f"{move} was refused: {model}"
            return
        assert allowed, f"{move} was not refused: {model}"
        if move == Move.DISCARD:
            model.end(move, self.now)
        else:
            model.again(self.now)
        model.discarded = move == Move.DISCARD
        model.generation += move == Move.RERUN

    @rule()
    def reopen(self) -> None:
        """Reopen ignored events, as a worker with a new handler does."""
        recent = self.now - timedelta(hours=24)
        ignored = [m for m in self.models.values() if m.state == State.IGNORED and not m.erased]
        opened = [model for model in ignored if model.finished is not None and model.finished > recent]
        assert reopen(self.store, "stripe", "invoice.paid") == len(opened)
        for model in opened:
            model.end(Move.REOPEN, self.now)

    @rule()
    def prune(self) -> None:
        """Erase payloads and delete ids, of ended events only."""
        old, forgotten = [], []
        for name, model in self.models.items():
            age = timedelta(0) if model.finished is None else self.now - model.finished
            quiet = model.duplicate is None or self.now - model.duplicate >= IDS_KEPT
            if model.state in FINAL and age >= PAYLOADS and not model.erased:
                old.append(model)
            if model.state in FINAL and age >= IDS_KEPT and quiet:
                forgotten.append(name)
        counts = prune(self.store, {"stripe": Retention(IDS_KEPT, PAYLOADS)})
        assert counts == {"payloads": len(old), "ids": len(forgotten), "rejections": 0}
        for model in old:
            model.erased = True
        for name in forgotten:
            del self.models[name]

    @invariant()
    def the_rows_are_the_models(self) -> None:
        """Check that the rows equal the models, and that there is no other row."""
        with self.store.read() as connection:
            rows = {row.event_id: row for row in connection.execute(select(EVENT))}
        assert {name: observed(row) for name, row in rows.items()} == {
            name: expected(model) for name, model in self.models.items()
        }

    def teardown(self) -> None:
        """Every event ends done, parked, dead or ignored within a bounded number of rounds."""
        for _ in range(ROUNDS):
            self.time_passes(timedelta(hours=2))
            self.sweep()
            for model in list(self.models.values()):
                mine = EVENT.c.id == model.event
                for held in claim_due(self.store, limit=1, lease=LEASE, worker="last", where=mine):
                    self.taken(held, [model])
                    assert settle(self.store, [(held, Outcome(Move.FINISH))])
                    model.end(Move.FINISH, self.now)
        self.the_rows_are_the_models()
        left = {model.state for model in self.models.values()}
        assert left <= {*FINAL, State.PARKED}, f"after {ROUNDS} rounds there are still events {left}"


def observed(row: Any) -> dict[str, Any]:
    """Return the compared columns of a row."""
    return {
        "event": row.id,
        "state": row.state,
        "attempts": row.attempts,
        "crashes": row.crashes,
        "generation": row.generation,
        "token": row.claim,
        "held": row.lease_until is not None,
        "ended": row.finished_at is not None,
        "duplicates": row.duplicates,
        "discarded": row.discarded,
        "erased": row.body is None,
    }


def expected(model: Model) -> dict[str, Any]:
    """Return the same values of a model."""
    return {
        "event": model.event,
        "state": model.state,
        "attempts": model.attempts,
        "crashes": model.crashes,
        "generation": model.generation,
        "token": model.token,
        "held": model.lease is not None,
        "ended": model.finished is not None,
        "duplicates": model.duplicates,
        "discarded": model.discarded,
        "erased": model.erased,
    }


def test_the_ledger_does_what_its_model_does(store: Store) -> None:
    """Any order of deliveries, claims, crashes, settlements, sweeps, actions, prunings and waits."""
    run_state_machine_as_test(
        lambda: Ledger(store),
        settings=settings(
            max_examples=40 if store.sqlite else 20,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
