"""What a view works with: one API's resources as one owner sees them, inside the engine's transaction."""

import json
import secrets
from datetime import UTC, datetime
from typing import Any

from flask import Request
from flask.typing import ResponseReturnValue
from sqlalchemy import ColumnElement, and_, delete, insert, select, update

from config.nesting import load_json
from receiver.idempotency import Refusal
from receiver.ledger import Store
from receiver.sandbox.journal import note_effect
from receiver.sandbox.tables import RESOURCE

Fields = dict[str, Any]


class Desk:
    """The resources of one API and owner. Whatever it writes is committed with the stored answer."""

    def __init__(self, ledger: Store, request: Request, *, api: str, owner: str, key: str | None) -> None:
        self._ledger, self.request = ledger, request
        self._api, self._owner, self._key = api, owner, key

    @property
    def now(self) -> str:
        """Return the sandbox's time, to the second."""
        return (datetime.now(UTC) + self._ledger.shift).replace(microsecond=0).isoformat()

    def json(self) -> Fields:
        """Return the request's JSON object, {} for an empty body; raise Refusal 400 for anything else."""
        try:
            found = load_json(self.request.get_data() or b"{}")
        except ValueError:
            raise Refusal(400, "invalid_json", "The body is not JSON.") from None
        if not isinstance(found, dict):
            raise Refusal(400, "invalid_json", "The body must be a JSON object.")
        return found

    def happened(self, fields: Fields | None = None) -> None:
        """Write down an effect; its body is the request's, unless given."""
        text = self.request.get_data(as_text=True) if fields is None else json.dumps(fields)
        note_effect(self._ledger, self._api, self.request, self._key, text)

    def create(self, name: str, fields: Fields, *, effect: Fields | None = None) -> Fields:
        """Make a resource with an id of its own; `name` begins the id."""
        made = {"id": f"{name}_{secrets.token_hex(8)}", **fields}
        self.keep(made["id"], made)
        self.happened(effect)
        return made

    def keep(self, identity: str, fields: Fields) -> None:
        """Store a new resource."""
        row = {"api": self._api, "owner": self._owner, "id": identity, "fields": json.dumps(fields)}
        with self._ledger.write() as connection:
            connection.execute(insert(RESOURCE).values(**row))

    def find(self, identity: str) -> Fields:
        """Return a resource; raise Refusal 404 when this owner has none of this id."""
        with self._ledger.read() as connection:
            found = connection.execute(select(RESOURCE.c.fields).where(self._is(identity))).scalar()
        if found is None:
            raise Refusal(404, "not_found", f"There is nothing with the id {identity} here.")
        fields: Fields = json.loads(found)
        return fields

    def change(self, identity: str, changes: Fields) -> Fields:
        """Change a resource and return it; what changes nothing is no effect."""
        before = self.find(identity)
        after = before | changes
        if after != before:
            with self._ledger.write() as connection:
                fields = json.dumps(after)
                connection.execute(update(RESOURCE).where(self._is(identity)).values(fields=fields))
            self.happened()
        return after

    def list(self) -> list[Fields]:
        """Return the owner's resources, the oldest first."""
        mine = and_(RESOURCE.c.api == self._api, RESOURCE.c.owner == self._owner)
        with self._ledger.read() as connection:
            rows = connection.execute(select(RESOURCE.c.fields).where(mine).order_by(RESOURCE.c.number))
            return [json.loads(fields) for fields in rows.scalars()]

    def remove(self, identity: str) -> ResponseReturnValue:
        """Delete a resource and answer 204; 404 when it is gone already."""
        self.find(identity)
        with self._ledger.write() as connection:
            connection.execute(delete(RESOURCE).where(self._is(identity)))
        self.happened()
        return "", 204

    def _is(self, identity: str) -> ColumnElement[bool]:
        return and_(RESOURCE.c.api == self._api, RESOURCE.c.owner == self._owner, RESOURCE.c.id == identity)


def remove(desk: Desk, identity: str) -> ResponseReturnValue:
    """DELETE: gone is gone, and a second time is 404."""
    return desk.remove(identity)


def text(fields: Fields, name: str, *, needed: bool = False) -> str | None:
    """Return a text of a body; raise Refusal 400 for another type, or for nothing where it is needed."""
    value = fields.get(name)
    if value is None and not needed:
        return None
    if not isinstance(value, str) or (needed and not value.strip()):
        raise Refusal(400, "validation_error", f"{name} must be a text that is not empty.")
    return value
