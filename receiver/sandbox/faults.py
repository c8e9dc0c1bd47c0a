"""Faults on demand: what goes wrong with the next requests, and where on their way.

`Control` has the sandbox's own paths: they arm faults, move the clock, reset all and list what happened.
"""

import threading
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, TypeVar

from flask import Blueprint, Response, jsonify, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from config.dialects import load_dialects
from receiver.idempotency import Refusal, read_body
from receiver.ledger.idempotency_keys import Slot
from receiver.ledger.store import Store
from receiver.sandbox import storage

Model = TypeVar("Model", bound=BaseModel)

YEAR = 365 * 86_400

# Seconds that the clock can be moved ahead in all; databases and datetimes end at the year 9999.
CLOCK_MAX = 100 * YEAR


class FaultKind(StrEnum):
    """What goes wrong. The first three happen before the engine: nothing is stored and no key is held."""

    DROP_BEFORE = "drop_before"
    TOO_MANY = "429"
    UNAVAILABLE = "503"
    ERROR = "500"
    """Inside the engine, before the effect; stored where the policy stores failures."""
    HOLD = "hold"
    """Inside the engine, before the effect: the key stays busy for `seconds`."""
    RACE = "race"
    """Two requests with one key both run: the first waits up to `seconds` for the second."""
    DROP_AFTER = "drop_after"
    SLOW = "slow"
    """The effect and the response are committed, and the response leaves after `seconds`."""


class Fault(BaseModel):
    """One armed fault. It hits the next `count` requests below `prefix`; times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prefix: str
    kind: Annotated[FaultKind, Field(strict=False)]
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    seconds: Annotated[float, Field(gt=0, le=60)] = 5
    retry_after: Annotated[int, Field(ge=0, le=86_400)] = 1

    def hits(self, path: str) -> bool:
        """Whether a path is the prefix or lies below it."""
        return f"{path}/".startswith(f"{self.prefix.rstrip('/')}/")


# Faults that a request takes at its arrival; those inside the engine go to the request that gets there.
AROUND = frozenset(
    {FaultKind.DROP_BEFORE, FaultKind.TOO_MANY, FaultKind.UNAVAILABLE, FaultKind.DROP_AFTER, FaultKind.SLOW}
)


class Faults:
    """The armed faults. A request takes the oldest one for its path, and only that one."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self._lock = threading.Lock()

    def arm(self, fault: Fault) -> None:
        """Add a fault behind those that are armed."""
        with self._lock:
            self._armed.append(fault)

    def take(self, path: str, kinds: Collection[FaultKind]) -> Fault | None:
        """Return the oldest fault for this path, and count it, if it is one of these kinds; else None."""
        with self._lock:
            # Among those of every kind: they are taken in the order in which they were armed.
            place = next((place for place, fault in enumerate(self._armed) if fault.hits(path)), None)
            if place is None or self._armed[place].kind not in kinds:
                return None
            fault = self._armed[place]
            left = fault.model_copy(update={"count": fault.count - 1})
            self._armed[place : place + 1] = [left] if left.count else []
            return fault

    def armed(self) -> list[Fault]:
        """Return the faults that no request has taken, the oldest first."""
        with self._lock:
            return list(self._armed)

    def clear(self) -> None:
        """Disarm all."""
        with self._lock:
            self._armed.clear()


class Races:
    """Where a request with the fault `race` waits for its twin, so that the two surely meet."""

    def __init__(self) -> None:
        self._waiting: dict[Slot, threading.Event] = {}
        self._lock = threading.Lock()

    def wait(self, slot: Slot, seconds: float) -> None:
        """Return when another request with this key has joined, at the latest after `seconds`."""
        with self._lock:
            met = self._waiting.setdefault(slot, threading.Event())
        met.wait(seconds)
        with self._lock:
            self._waiting.pop(slot, None)

    def join(self, slot: Slot) -> bool:
        """Whether a request with this key waits; it goes on then, with one twin only."""
        with self._lock:
            met = self._waiting.pop(slot, None)
        if met:
            met.set()
        return met is not None


class Advance(BaseModel):
    """How many seconds the clock moves ahead."""

    model_config = ConfigDict(extra="forbid", strict=True)

    advance: Annotated[float, Field(ge=0, le=CLOCK_MAX, allow_inf_nan=False)]


class Control:
    """The control paths of one sandbox; `names` are those of its APIs."""

    def __init__(self, store: Store, faults: Faults, names: Sequence[str]) -> None:
        self._store, self._faults, self._names = store, faults, names
        # Moving the clock reads it first: two moves at once must add up.
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
        return jsonify(effects=storage.journal(self._store, storage.EFFECT))

    def requests(self) -> Response:
        """GET /_requests: what was asked; `status` is null where no response was sent."""
        return jsonify(requests=storage.journal(self._store, storage.REQUEST))

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
        storage.empty(self._store)
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


def _read(model: type[Model]) -> Model:
    """Return the request's body, {} where it is empty; raise Refusal 400 with one sentence."""
    try:
        return model.model_validate_json(read_body(request) or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "The body"
        raise Refusal(400, "misuse", f"{where}: {first['msg']}.") from None
