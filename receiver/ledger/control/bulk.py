"""Bulk operations: one action on every event of a filter, in steps that any number of processes may do.

The full list of (event, generation) is written before the first step and guards each of them: an event is
acted on at most once, and only as it was when the list was made. The tables are `replay` and `replay_step`.
"""

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Row, func, literal, select, tuple_, update

from receiver.ledger.control.actions import ACTIONS, act_on, actable
from receiver.ledger.errors import NotAllowed, UnknownReplay
from receiver.ledger.filter import EventFilter, conditions
from receiver.ledger.reports.models import Progress
from receiver.ledger.states import Move
from receiver.ledger.store import LONG, Store
from receiver.ledger.tables import EVENT, REPLAY, REPLAY_STEP
from receiver.ledger.text import clipped, uuid7

# Outcomes of a step; an open one has none.
DONE, SKIPPED = "done", "skipped"


@dataclass(frozen=True)
class BulkStep:
    """What one step did: events acted on, and events that had moved on since the list was written."""

    done: int
    skipped: int
    left: bool
    """Whether steps are open still, be it in another process's hands."""


def bulk_candidates(store: Store, move: Move, which: EventFilter) -> int:
    """Return how many events a bulk operation would act on now: those of the filter whose state allows it."""
    chosen = select(func.count()).select_from(EVENT).where(*conditions(store, which), actable(move))
    with store.read() as connection:
        return connection.execute(chosen).scalar_one()


def plan_bulk(store: Store, move: Move, which: EventFilter, who: str) -> Progress:
    """Write down a bulk operation and its full list, in one transaction; nothing is acted on yet.

    Raises NotAllowed for a move that is not a person's.
    """
    if move not in ACTIONS:
        raise NotAllowed(f"A bulk run can retry, rerun or discard, not {move}.")
    bulk = uuid7()
    with store.write(limit=LONG) as connection:
        row = {"id": bulk, "what": move, "who": clipped(who), "filter": json.dumps(which.as_json())}
        connection.execute(REPLAY.insert().values(**row, at=store.now(), total=0))
        listed = select(literal(bulk, EVENT.c.id.type), EVENT.c.id, EVENT.c.generation)
        chosen = listed.where(*conditions(store, which), actable(move))
        columns = [REPLAY_STEP.c.replay, REPLAY_STEP.c.event, REPLAY_STEP.c.generation]
        connection.execute(REPLAY_STEP.insert().from_select(columns, chosen))
        steps = select(func.count()).where(REPLAY_STEP.c.replay == bulk).scalar_subquery()
        connection.execute(update(REPLAY).where(REPLAY.c.id == bulk).values(total=steps))
    return bulk_progress(store, bulk)


def step_bulk(store: Store, bulk: UUID, *, batch: int = 100) -> BulkStep:
    """Do the next open steps, in one transaction with their outcomes; any number of processes may.

    Steps and events that another transaction holds are left for a later call, so this never waits for a lock
    and never deadlocks. Raises UnknownReplay.
    """
    open_ = (REPLAY_STEP.c.replay == bulk, REPLAY_STEP.c.outcome.is_(None))
    steps = select(REPLAY_STEP.c.event, REPLAY_STEP.c.generation).where(*open_).order_by(REPLAY_STEP.c.event)
    with store.write(limit=LONG) as connection:
        row = _row(connection, bulk)
        move = Move(row.what)
        rows = connection.execute(steps.limit(batch).with_for_update(skip_locked=True))
        picked = {step.event: step.generation for step in rows}
        done, skipped = set[UUID](), set[UUID]()
        if picked:
            results = act_on(store, connection, move, _listed(picked), row.who, wait=False)
            done = {result.event for result in results}
        untouched = {event: picked[event] for event in picked.keys() - done}
        if untouched:
            # Those that still allow the move were only locked: their steps stay open.
            possible = select(EVENT.c.id).where(_listed(untouched), actable(move))
            skipped = untouched.keys() - set(connection.execute(possible).scalars())
        # In the transaction of the actions themselves: a process that is killed here leaves neither.
        for events, outcome in ((done, DONE), (skipped, SKIPPED)):
            these = update(REPLAY_STEP).where(*open_, REPLAY_STEP.c.event.in_(events))
            connection.execute(these.values(outcome=outcome))
        left = connection.execute(select(REPLAY_STEP.c.event).where(*open_).limit(1)).first() is not None
        if not left:
            finished = update(REPLAY).where(REPLAY.c.id == bulk, REPLAY.c.finished_at.is_(None))
            connection.execute(finished.values(finished_at=store.now()))
        return BulkStep(len(done), len(skipped), left)


def unfinished_bulk(store: Store, *, limit: int) -> list[UUID]:
    """Return the bulk operations that have open steps, oldest first."""
    chosen = select(REPLAY.c.id).where(REPLAY.c.finished_at.is_(None)).order_by(REPLAY.c.id).limit(limit)
    with store.read() as connection:
        return list(connection.execute(chosen).scalars())


def bulk_progress(store: Store, bulk: UUID) -> Progress:
    """Return how far a bulk operation is; raises UnknownReplay."""
    with store.read() as connection:
        row = _row(connection, bulk)
        grouped = select(REPLAY_STEP.c.outcome, func.count()).where(REPLAY_STEP.c.replay == bulk)
        rows = connection.execute(grouped.group_by(REPLAY_STEP.c.outcome))
        counts = {row[0]: row[1] for row in rows}
    return Progress(
        id=bulk,
        what=row.what,
        who=row.who,
        filter=json.loads(row.filter),
        at=row.at,
        finished_at=row.finished_at,
        total=row.total,
        done=counts.get(DONE, 0),
        skipped=counts.get(SKIPPED, 0),
        open=counts.get(None, 0),
    )


def _row(connection: Connection, bulk: UUID) -> Row[Any]:
    row = connection.execute(select(REPLAY).where(REPLAY.c.id == bulk)).first()
    if row is None:
        raise UnknownReplay(f"No bulk run {bulk} is in the ledger.")
    return row


def _listed(picked: dict[UUID, int]) -> ColumnElement[bool]:
    """Return the condition that an event is one of these, still in the generation that was listed."""
    pair = tuple_(EVENT.c.id, EVENT.c.generation)
    return EVENT.c.id.in_(picked) & pair.in_(list(picked.items()))
