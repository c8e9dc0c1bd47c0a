"""The sandbox's own paths, for tests and the curious: what happened, what shall go wrong, what time it is."""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, TypeVar

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.dialects import load_dialects
from receiver.idempotency import Refusal, read_body
from receiver.ledger.store import Store
from receiver.sandbox import journal
from receiver.sandbox.faults import Fault, FaultKind, Faults
from receiver.sandbox.tables import empty

Shape = TypeVar("Shape", bound=BaseModel)
YEAR = 365 * 86_400
CLOCK_MAX = 100 * YEAR
"""Seconds that the clock can be moved ahead in all; databases and datetimes end at the year 9999."""


class Advance(BaseModel):
    """How many seconds the clock moves ahead."""

    model_config = ConfigDict(extra="forbid", strict=True)

    advance: Annotated[float, Field(ge=0, le=CLOCK_MAX, allow_inf_nan=False)]


class Control:
    """The control paths of one sandbox with these APIs."""

    def __init__(self, store: Store, faults: Faults, names: Sequence[str]) -> None:
        self._store, self._faults, self._names = store, faults, names
        self._clock = threading.Lock()

    def views(self) -> Blueprint:
        """Build the blueprint."""
        views = Blueprint("control", __name__)
        views.get("/_effects")(self.effects)
        views.get("/_requests")(self.requests)
        views.get("/_faults")(self.faults)
        views.post("/_faults")(self.arm)
        views.post("/_reset")(self.reset)
        views.get("/_clock")(self.clock)
        views.post("/_clock")(self.advance)
        return views

    def effects(self) -> Response:
        """GET /_effects: what really happened."""
        return jsonify(effects=journal.effects(self._store))

    def requests(self) -> Response:
        """GET /_requests: what was asked; `status` is null where no answer was sent."""
        return jsonify(requests=journal.requests(self._store))

    def faults(self) -> Response:
        """GET /_faults: what is armed."""
        return jsonify(faults=[fault.model_dump() for fault in self._faults.armed()])

    def arm(self) -> Response:
        """POST /_faults: make the next requests go wrong."""
        fault = _read(Fault)
        api = fault.prefix.strip("/").partition("/")[0]
        if not fault.prefix.startswith("/") or api not in self._names:
            known = ", ".join(f"/{name}" for name in self._names)
            raise Refusal(400, "misuse", f"prefix must be one of {known}, or a path below one of them.")
        locked = load_dialects()[api].locked
        if fault.kind == FaultKind.RACE and locked:
            promised = f"{locked.status} {locked.code}"
            raise Refusal(400, "misuse", f"/{api} promises {promised} to a second request: it cannot race.")
        self._faults.arm(fault)
        return jsonify(fault=fault.model_dump())

    def reset(self) -> Response:
        """POST /_reset: forget everything, and come back to the present."""
        self._faults.clear()
        empty(self._store)
        with self._clock:
            self._store.shift = timedelta(0)
        return jsonify(reset=True)

    def clock(self) -> Response:
        """GET /_clock: the sandbox's time, and by how many seconds it is ahead."""
        now = datetime.now(UTC) + self._store.shift
        return jsonify(now=now.isoformat(), shift=self._store.shift.total_seconds())

    def advance(self) -> Response:
        """POST /_clock: move the time ahead, as keys' lives see it."""
        asked = _read(Advance).advance
        with self._clock:
            shift = self._store.shift.total_seconds() + asked
            if shift > CLOCK_MAX:
                raise Refusal(
                    400, "misuse", f"advance would move the clock more than {CLOCK_MAX} s ahead in all."
                )
            self._store.shift = timedelta(seconds=shift)
        return self.clock()


def word(refusal: Refusal) -> dict[str, Any]:
    """Return an error of the control paths: one sentence."""
    return {"error": refusal.detail}


def _read(shape: type[Shape]) -> Shape:
    text = read_body(request) or b"{}"
    try:
        return shape.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "The body"
        raise Refusal(400, "misuse", f"{where}: {first['msg']}.") from None
