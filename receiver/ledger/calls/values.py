"""Values that a handler computes once for a generation: times, random numbers, what a GET returned."""

from collections.abc import Callable

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite

from receiver.ledger.calls.models import VALUE
from receiver.ledger.claimed import Claim, lock_alive
from receiver.ledger.store import Store


def remember(store: Store, held: Claim, step: str, compute: Callable[[], str]) -> str | None:
    """Return the JSON that a step computed first in this generation; None when the claim is lost."""
    found = select(VALUE.c.value).where(
        VALUE.c.event == held.event, VALUE.c.generation == held.generation, VALUE.c.step == step
    )
    with store.read() as connection:
        stored: str | None = connection.execute(found).scalar()
    if stored is not None:
        return stored
    row = {"event": held.event, "generation": held.generation, "step": step, "value": compute()}
    with store.write() as connection:
        if lock_alive(store, connection, held) is None:
            return None
        insert = (sqlite if store.sqlite else postgresql).insert(VALUE)
        connection.execute(insert.values(**row, at=store.now()).on_conflict_do_nothing())
        value: str = connection.execute(found).scalar_one()
        return value
