"""Faults on demand: what goes wrong with the next requests, and where on their way."""

import threading
from collections.abc import Collection
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from receiver.ledger.idempotency_keys import Slot


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
    """The effect and the answer are committed, and the answer leaves after `seconds`."""


class Fault(BaseModel):
    """One armed fault. It hits the next `count` requests below `prefix`; times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prefix: str
    kind: Annotated[FaultKind, Field(strict=False)]
    count: Annotated[int, Field(ge=1, le=10_000)] = 1
    seconds: Annotated[float, Field(gt=0, le=60)] = 5
    retry_after: Annotated[int, Field(ge=0, le=86_400)] = 1

    def hits(self, path: str) -> bool:
        """Say whether a path is the prefix or lies below it."""
        return f"{path}/".startswith(f"{self.prefix.rstrip('/')}/")


AROUND = frozenset(
    {FaultKind.DROP_BEFORE, FaultKind.TOO_MANY, FaultKind.UNAVAILABLE, FaultKind.DROP_AFTER, FaultKind.SLOW}
)
"""Faults that a request takes when it comes; those inside the engine are taken by the one that gets there."""


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
            place = next((place for place, fault in enumerate(self._armed) if fault.hits(path)), None)
            if place is None or self._armed[place].kind not in kinds:
                return None
            fault = self._armed[place]
            left = fault.model_copy(update={"count": fault.count - 1})
            self._armed[place : place + 1] = [left] if left.count else []
            return fault

    def armed(self) -> list[Fault]:
        """Return what is still to come, the oldest first."""
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
        """Return when another request with this key has joined, or after so many seconds."""
        with self._lock:
            met = self._waiting.setdefault(slot, threading.Event())
        met.wait(seconds)
        with self._lock:
            self._waiting.pop(slot, None)

    def join(self, slot: Slot) -> bool:
        """Say whether a request with this key waits, and let it go on; it has one twin only."""
        with self._lock:
            met = self._waiting.pop(slot, None)
        if met:
            met.set()
        return met is not None
