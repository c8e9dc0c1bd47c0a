"""What a person does to an event: retry, rerun, discard, promote.

Each is one guarded UPDATE (a promotion one guarded INSERT) and one audit row, in one transaction.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, select, update

from receiver.ledger.calls import retry_calls
from receiver.ledger.errors import NotAllowed, UnknownEvent
from receiver.ledger.reports.models import PromotedView
from receiver.ledger.states import UNFINISHED, Move, State, enters, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, CONFLICT, EVENT, insert_for
from receiver.ledger.text import TEXT_MAX, clipped, uuid7

# Moves of the table that a person makes.
ACTIONS = (Move.RETRY, Move.RERUN, Move.DISCARD)

# The audit's name of a promotion, which is no move: it makes another event.
PROMOTE = "promote"

# Characters of the body's hash in a promoted event's id: enough to tell ten bodies apart.
HASH_SHOWN = 12


@dataclass(frozen=True)
class ActionResult:
    """What an action did: where the event was and where it stands now."""

    event: UUID
    move: Move
    was: State
    state: State
    generation: int

    @property
    def nudge(self) -> bool:
        """Whether the event is due now, so that the caller may wake a worker for it."""
        return self.state in UNFINISHED


def retry(store: Store, event: UUID, who: str, *, generation: int | None = None) -> ActionResult:
    """Run an event again now, in the same generation: its calls keep their keys, so nothing happens twice.

    Raises UnknownEvent, or NotAllowed with the reason.
    """
    return _act(store, Move.RETRY, event, who, generation)


def rerun(store: Store, event: UUID, who: str, *, generation: int) -> ActionResult:
    """Start the event's next generation, with new keys: every effect happens again, on purpose.

    `generation` is the one the caller saw; a second rerun from the same view is refused. Raises UnknownEvent,
    or NotAllowed with the reason.
    """
    return _act(store, Move.RERUN, event, who, generation)


def discard(store: Store, event: UUID, who: str, *, generation: int | None = None) -> ActionResult:
    """End an event for good: no handler runs, and no new delivery revives it. Raises as `retry` does."""
    return _act(store, Move.DISCARD, event, who, generation)


def promote(store: Store, event: UUID, body_hash: str, who: str) -> PromotedView:
    """Turn a kept conflicting body into an event of its own, `<event id>#<start of the hash>`, due now.

    Done again it returns the same event. Raises UnknownEvent, or NotAllowed when no such body is kept.
    """
    with store.write() as connection:
        origin = connection.execute(select(EVENT).where(EVENT.c.id == event).with_for_update()).first()
        if origin is None:
            raise UnknownEvent(f"No event {event} is in the ledger.")
        mine = (CONFLICT.c.event == event, CONFLICT.c.body_hash == body_hash)
        kept = connection.execute(select(CONFLICT).where(*mine)).first()
        if kept is None:
            raise NotAllowed(
                f"Event {origin.event_id} keeps no conflicting body {body_hash}: only the first ten are kept,"
                " until its payload is erased."
            )
        suffix = f"#{body_hash[:HASH_SHOWN]}"
        event_id = origin.event_id[: TEXT_MAX - len(suffix)] + suffix
        row = {"source": origin.source, "event_id": event_id, "type": origin.type, "state": State.RECEIVED}
        copied = {name: getattr(kept, name) for name in ("body_hash", "body", "headers", "content_type")}
        insert = insert_for(store, EVENT)
        insert = insert.values(id=uuid7(), **row, **copied, received_at=store.now(), due_at=store.now())
        # Two people who promote it at once get the same event.
        once = insert.on_conflict_do_nothing(index_elements=["source", "event_id"]).returning(EVENT.c.id)
        created = connection.execute(once).scalar()
        if not created:
            same = (EVENT.c.source == origin.source, EVENT.c.event_id == event_id)
            there = connection.execute(select(EVENT.c.id).where(*same)).scalar_one()
            return PromotedView(id=there, event_id=event_id, created=False)
        connection.execute(update(CONFLICT).where(*mine).values(promoted_to=created))
        audit = {"event": origin.id, "generation": origin.generation, "what": PROMOTE, "was": origin.state}
        connection.execute(ACTION.insert().values(id=uuid7(), **audit, at=store.now(), who=clipped(who)))
        return PromotedView(id=created, event_id=event_id, created=True)


def actable(move: Move) -> ColumnElement[bool]:
    """Return the condition under which an action may be taken on an event."""
    allowed = EVENT.c.state.in_(leaves(move))
    return allowed if move == Move.DISCARD else allowed & EVENT.c.body.is_not(None)


def act_on(
    store: Store,
    connection: Connection,
    move: Move,
    which: ColumnElement[bool],
    who: str,
    *,
    wait: bool = True,
) -> list[ActionResult]:
    """Make a move on those of the chosen events that allow it, in the caller's transaction.

    With `wait` false, rows that someone else has locked are left out instead of waited for.
    """
    allowed = (which, actable(move))
    chosen = select(EVENT.c.id, EVENT.c.state).where(*allowed).order_by(EVENT.c.id)
    # Locked first for the audit's sake: an UPDATE returns what a row became, not what it was.
    locked = connection.execute(chosen.with_for_update(skip_locked=not wait)).all()
    was = {row.id: State(row.state) for row in locked}
    if not was:
        return []
    change: dict[str, Any] = {"state": enters(move), "nudged_at": None, "nudges": 0, "parked_call": None}
    if move == Move.DISCARD:
        reason = f"Discarded by {clipped(who)}."
        change |= {"finished_at": store.now(), "discarded": True, "reason": reason}
    else:
        change |= {"due_at": store.now(), "finished_at": None, "discarded": False, "reason": None}
        change |= {"attempts": 0, "crashes": 0}
    if move == Move.RERUN:
        # Keys are made from the generation, so every call is a new one to its API.
        change["generation"] = EVENT.c.generation + 1
    statement = update(EVENT).where(EVENT.c.id.in_(was), *allowed).values(**change)
    returned = statement.returning(EVENT.c.id, EVENT.c.state, EVENT.c.generation)
    results = [
        ActionResult(row.id, move, was[row.id], State(row.state), row.generation)
        for row in connection.execute(returned)
    ]
    if move == Move.RETRY:
        retry_calls(store, connection, [result.event for result in results])
    note_action(store, connection, who, results)
    return results


def note_action(
    store: Store, connection: Connection, who: str, results: Iterable[ActionResult], **columns: Any
) -> None:
    """Insert the audit rows, in the transaction that acts; `columns` replaces some of theirs."""
    rows = [
        {
            "id": uuid7(),
            "event": result.event,
            "generation": result.generation,
            "what": result.move,
            "was": result.was,
        }
        | columns
        for result in results
    ]
    connection.execute(ACTION.insert().values(at=store.now(), who=clipped(who)), rows)


def _act(store: Store, move: Move, event: UUID, who: str, generation: int | None) -> ActionResult:
    which = EVENT.c.id == event
    if generation is not None:
        which &= EVENT.c.generation == generation
    with store.write() as connection:
        results = act_on(store, connection, move, which, who)
        if results:
            return results[0]
        columns = [EVENT.c.event_id, EVENT.c.state, EVENT.c.generation]
        row = connection.execute(select(*columns).where(EVENT.c.id == event)).first()
    if row is None:
        raise UnknownEvent(f"No event {event} is in the ledger.")
    name, state = f"Event {row.event_id}", State(row.state)
    why = f"{name} cannot {move}: its payload was erased after payload_retention, so no handler could run."
    if state not in leaves(move):
        why = f"{name} is {state}; {_advice(move, state)}"
    if generation is not None and row.generation != generation:
        why = (
            f"{name} is in generation {row.generation}, not {generation}: it was rerun meanwhile; look again."
        )
    raise NotAllowed(why)


def _advice(move: Move, state: State) -> str:
    match move, state:
        case _, State.PROCESSING:
            return f"a worker is running it now, so wait until it ends and {move} it then if need be."
        case Move.RETRY, State.RECEIVED:
            return "it runs as soon as a worker is free, so a retry would do nothing."
        case Move.RETRY, State.DONE:
            return "a retry would do nothing, so rerun it if every effect should happen again."
        case Move.RERUN, State.RECEIVED | State.WAITING:
            return (
                "it has not run to its end yet, so a rerun would cut it short; retry or discard it instead."
            )
        case Move.RERUN, _:
            return "no handler ran, so there is nothing to run again; retry it instead."
        case _:
            return "there is nothing left to discard."
