"""Bulk runs: the list of (event, generation) is written first, and guards each step, done at most once."""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, func, literal, select, tuple_, update

from receiver.ledger.control.actions import ACTIONS, Order, act_on, actable
from receiver.ledger.errors import NotAllowed, UnknownReplay
from receiver.ledger.filter import EventFilter, conditions
from receiver.ledger.reports import Progress
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT, REPLAY, REPLAY_STEP
from receiver.ledger.text import clipped, uuid7

DONE, SKIPPED = "done", "skipped"


@dataclass(frozen=True)
class BulkOperation:
    """A bulk run as planned: what is to be done to how many events."""

    id: UUID
    what: Move
    total: int


@dataclass(frozen=True)
class Stepped:
    """What one step did: events acted on, and events that had moved on since the list was written."""

    done: int
    skipped: int
    left: bool
    """Whether steps are open still, be it in another process's hands."""


def candidates(store: Store, what: Move, which: EventFilter) -> int:
    """Return how many events a bulk run would act on now: those of the filter whose state allows it."""
    with store.read() as connection:
        chosen = select(func.count()).select_from(EVENT).where(*conditions(store, which), actable(what))
        return connection.execute(chosen).scalar_one()


def plan(store: Store, what: Move, which: EventFilter, who: str) -> BulkOperation:
    """Write down a bulk run and its full list, in one transaction; nothing is acted on yet.

    Raises NotAllowed for a move that is not a person's.
    """
    if what not in ACTIONS:
        raise NotAllowed(f"A bulk run can retry, rerun or discard, not {what}.")
    replay = uuid7()
    with store.write() as connection:
        row = {"id": replay, "what": what, "who": clipped(who), "filter": json.dumps(which.as_json())}
        connection.execute(REPLAY.insert().values(**row, at=store.now(), total=0))
        listed = select(literal(replay, EVENT.c.id.type), EVENT.c.id, EVENT.c.generation)
        chosen = listed.where(*conditions(store, which), actable(what))
        columns = [REPLAY_STEP.c.replay, REPLAY_STEP.c.event, REPLAY_STEP.c.generation]
        connection.execute(REPLAY_STEP.insert().from_select(columns, chosen))
        steps = select(func.count()).where(REPLAY_STEP.c.replay == replay).scalar_subquery()
        counted = update(REPLAY).where(REPLAY.c.id == replay).values(total=steps).returning(REPLAY.c.total)
        total = connection.execute(counted).scalar_one()
    return BulkOperation(replay, what, total)


def step(store: Store, replay: UUID, *, batch: int = 100) -> Stepped:
    """Do the next open steps, in one transaction with their outcomes; any number of processes may.

    Steps and events that another transaction holds are left for a later call, so this never waits for a lock
    and never deadlocks. Raises UnknownReplay.
    """
    with store.write() as connection:
        run = _run(connection, replay)
        picked = _pick(connection, replay, batch)
        done = _act(store, connection, run, picked)
        skipped = _moved_on(connection, run, {event: picked[event] for event in picked.keys() - done})
        _mark(connection, replay, done, DONE)
        _mark(connection, replay, skipped, SKIPPED)
        return Stepped(len(done), len(skipped), left=not _finish(store, connection, replay))


def unfinished(store: Store, *, limit: int) -> list[UUID]:
    """Return the bulk runs that have open steps, oldest first."""
    chosen = select(REPLAY.c.id).where(REPLAY.c.finished_at.is_(None)).order_by(REPLAY.c.id).limit(limit)
    with store.read() as connection:
        return list(connection.execute(chosen).scalars())


def progress(store: Store, replay: UUID) -> Progress:
    """Return how far a bulk run is; raises UnknownReplay."""
    with store.read() as connection:
        run = _run(connection, replay)
        grouped = select(REPLAY_STEP.c.outcome, func.count()).where(REPLAY_STEP.c.replay == replay)
        rows = connection.execute(grouped.group_by(REPLAY_STEP.c.outcome))
        counts = {row[0]: row[1] for row in rows}
    return Progress(
        id=replay,
        what=run.what,
        who=run.who,
        filter=json.loads(run.filter),
        at=run.at,
        finished_at=run.finished_at,
        total=run.total,
        done=counts.get(DONE, 0),
        skipped=counts.get(SKIPPED, 0),
        open=counts.get(None, 0),
    )


def _run(connection: Connection, replay: UUID) -> Row[Any]:
    row = connection.execute(select(REPLAY).where(REPLAY.c.id == replay)).first()
    if row is None:
        raise UnknownReplay(f"No bulk run {replay} is in the ledger.")
    return row


def _open(replay: UUID) -> ColumnElement[bool]:
    return (REPLAY_STEP.c.replay == replay) & REPLAY_STEP.c.outcome.is_(None)


def _pick(connection: Connection, replay: UUID, batch: int) -> dict[UUID, int]:
    chosen = select(REPLAY_STEP.c.event, REPLAY_STEP.c.generation).where(_open(replay))
    rows = connection.execute(
        chosen.order_by(REPLAY_STEP.c.event).limit(batch).with_for_update(skip_locked=True)
    )
    return {row.event: row.generation for row in rows}


def _listed(picked: dict[UUID, int]) -> ColumnElement[bool]:
    pair = tuple_(EVENT.c.id, EVENT.c.generation)
    return EVENT.c.id.in_(picked) & pair.in_(list(picked.items()))


def _act(store: Store, connection: Connection, run: Row[Any], picked: dict[UUID, int]) -> set[UUID]:
    if not picked:
        return set()
    order = Order(Move(run.what), run.who)
    acted = act_on(store, connection, order, _listed(picked), wait=False)
    return {one.event for one in acted}


def _moved_on(connection: Connection, run: Row[Any], untouched: dict[UUID, int]) -> set[UUID]:
    """Return those that cannot be acted on; the others were only locked, and stay open."""
    if not untouched:
        return set()
    possible = select(EVENT.c.id).where(_listed(untouched), actable(Move(run.what)))
    return untouched.keys() - set(connection.execute(possible).scalars())


def _mark(connection: Connection, replay: UUID, events: set[UUID], outcome: str) -> None:
    mine = (REPLAY_STEP.c.replay == replay, REPLAY_STEP.c.event.in_(events), REPLAY_STEP.c.outcome.is_(None))
    connection.execute(update(REPLAY_STEP).where(*mine).values(outcome=outcome))


def _finish(store: Store, connection: Connection, replay: UUID) -> bool:
    """Close the bulk run once nothing is open; true when it is closed."""
    if connection.execute(select(REPLAY_STEP.c.event).where(_open(replay)).limit(1)).first():
        return False
    mine = (REPLAY.c.id == replay, REPLAY.c.finished_at.is_(None))
    connection.execute(update(REPLAY).where(*mine).values(finished_at=store.now()))
    return True
