"""A model of an API that keeps idempotency keys, by dialect, with faults at every step of a send."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from tests.integration.call_harness import SILENCE, UNSENT, Crash, reply
from worker.calls.transport import BeforeSend, NoReply, Outgoing, Reply

LOCKED = b"idempotency_key_locked"
SLOW = timedelta(seconds=30)
"""How long the API takes for a slow request: the sender's whole deadline."""

FAULTS = (
    *("ok", "429", "401", "422", "503", "500", "500 done", "too long"),
    *("unsent", "lost before", "lost after", "lost after", "slow"),
    *("dies before mark", "dies before bytes", "dies after", "frozen before mark", "frozen after"),
)


@dataclass(frozen=True)
class KeyRules:
    """How one dialect's server treats idempotency keys."""

    by_credential: bool = False
    """Whether keys are scoped to the credential."""
    fingerprint: Callable[[Outgoing], object] = lambda request: request.body
    """The part of a request that must be equal under one key."""
    mismatch: Reply | None = None
    locked: Reply | None = None
    """The response to a copy while the first request runs; without it both run."""
    stores_failures: bool = True
    """Whether failures are stored as well."""
    replayed: Callable[[Reply], Reply] = lambda first: first
    """Turns a stored response into its replay."""


def _with_marker(first: Reply) -> Reply:
    return reply(first.status, first.body, idempotent_replayed="true")


def _conflict(first: Reply) -> Reply:
    return reply(409, b'{"success": true}' if first.status < 400 else b'{"success": false}')


def _with_credential(request: Outgoing) -> object:
    return request.body, dict(request.headers)["Authorization"]


KEY_RULES = {
    "stripe": KeyRules(
        mismatch=reply(400, b"idempotency_error"), locked=reply(409, b"locked"), replayed=_with_marker
    ),
    "telness": KeyRules(
        fingerprint=_with_credential,
        mismatch=reply(409, b"idempotency_key_mismatch"),
        locked=reply(409, LOCKED),
    ),
    "stannp": KeyRules(by_credential=True, replayed=_conflict),
    "salesly": KeyRules(
        by_credential=True, fingerprint=lambda _: None, stores_failures=False, replayed=_with_marker
    ),
    "none": KeyRules(),
}


@dataclass
class Entry:
    """The row of one key."""

    at: timedelta
    fingerprint: object
    answer: Reply | None = None


@dataclass
class ModelApi:
    """Executes requests and counts their effects by call; `plan` holds the faults of the next sends."""

    rules: KeyRules
    life: timedelta
    now: Callable[[], timedelta]
    last_send: Callable[[], tuple[UUID, UUID]]
    """Returns the latest send that began, and its call."""
    interlude: Callable[[], None] = lambda: None
    """Runs other workers while the sender is frozen."""
    plan: list[str] = field(default_factory=list)
    effects: Counter[UUID] = field(default_factory=Counter)
    table: dict[Any, Entry] = field(default_factory=dict)
    slow: list[tuple[timedelta, UUID, UUID, Outgoing, Entry | None]] = field(default_factory=list)
    late: list[tuple[UUID, Reply]] = field(default_factory=list)
    """Responses that no worker waits for, with the id of their send."""

    def send(self, request: Outgoing, before_send: BeforeSend) -> Reply | NoReply:
        """Execute one send with the next fault of the plan."""
        fault = self.plan.pop(0) if self.plan else "ok"
        if fault == "unsent":
            return UNSENT
        if fault == "dies before mark":
            raise Crash
        if fault == "frozen before mark":
            self.interlude()
        before_send()
        send, call = self.last_send()
        if fault == "dies before bytes":
            raise Crash
        if fault == "lost before":
            return SILENCE
        if fault == "slow":
            return self._begin_slowly(send, call, request)
        return self._respond(fault, send, self._answer(fault, call, request))

    def _respond(self, fault: str, send: UUID, answer: Reply) -> Reply | NoReply:
        match fault:
            case "lost after":
                return SILENCE
            case "dies after":
                self.late.append((send, answer))
                raise Crash
            case "frozen after":
                self.interlude()
            case "too long":
                return Reply(answer.status, answer.headers, answer.body, truncated=True)
        return answer

    def run_slow(self) -> None:
        """Finish the slow requests that are due."""
        due = [item for item in self.slow if item[0] <= self.now()]
        self.slow = [item for item in self.slow if item[0] > self.now()]
        for _, send, call, _, entry in due:
            self.effects[call] += 1
            answer = reply(201, b'{"success": true}')
            if entry:
                entry.answer = answer
            self.late.append((send, answer))

    def _begin_slowly(self, send: UUID, call: UUID, request: Outgoing) -> NoReply:
        key, entry = self._entry(request)
        if entry is None:
            entry = None if key is None else self._open(key, request)
            self.slow.append((self.now() + SLOW, send, call, request, entry))
        elif entry.answer is None and self.rules.locked is None:
            # This dialect does not detect a copy of a running request.
            self.slow.append((self.now() + SLOW, send, call, request, entry))
        return SILENCE

    def _answer(self, fault: str, call: UUID, request: Outgoing) -> Reply:
        if fault in ("429", "401", "503"):
            return reply(int(fault))
        key, entry = self._entry(request)
        if entry is not None:
            if entry.fingerprint != self.rules.fingerprint(request) and self.rules.mismatch:
                return self.rules.mismatch
            if entry.answer is not None:
                return self.rules.replayed(entry.answer)
            if self.rules.locked:
                return self.rules.locked
        answer = self._execute(fault, call)
        if key is not None and (self.rules.stores_failures or answer.status < 400):
            self._open(key, request).answer = answer
        return answer

    def _execute(self, fault: str, call: UUID) -> Reply:
        if fault == "422":
            return reply(422, b'{"success": false}')
        if fault == "500" or (fault == "500 done" and not self.rules.stores_failures):
            return reply(500, b'{"success": false}')
        self.effects[call] += 1
        return reply(500, b"{}") if fault == "500 done" else reply(201, b'{"success": true}')

    def _entry(self, request: Outgoing) -> tuple[Any, Entry | None]:
        headers = {name.lower(): value for name, value in request.headers}
        key = headers.get("idempotency-key") or headers.get("x-idempotency-key")
        if key is None:
            return None, None
        scope = headers["authorization"] if self.rules.by_credential else None
        where = (scope, key)
        entry = self.table.get(where)
        return where, entry if entry and self.now() - entry.at < self.life else None

    def _open(self, where: Any, request: Outgoing) -> Entry:
        self.table[where] = Entry(self.now(), self.rules.fingerprint(request))
        return self.table[where]
