"""Calls against a model of the API: responses, crashes, late responses, rotations and people in any order."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import Row, delete, select
from sqlalchemy import event as engine_events

from receiver.ledger.control import Resolution, rerun, resolve, retry
from receiver.ledger.errors import NotAllowed
from receiver.ledger.lease import Claim
from receiver.ledger.queue import expire, settle
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL, EVENT, SEND
from tests.integration.call_harness import CallHarness, Crash
from tests.integration.model_api import FAULTS, KEY_RULES, ModelApi
from tests.integration.steps import LEASE, deliver, row
from tests.services.claiming import claim
from worker.calls.errors import CallError

JUMPS = [timedelta(seconds=5), timedelta(seconds=50), timedelta(minutes=5), timedelta(days=1)]
SCRIPTS = [["a"], ["a", "b"], ["a!", "b"], ["a", "b!", "c"], ["u!", "a"], ["o"], ["o!", "a"]]
"""Steps in order; `!` swallows the call's error, `u` is sent without a key, `o` has a `once`."""

SLACK = timedelta(seconds=20)
"""The most that a test's real duration adds to the model's clock."""

ROUNDS = 12
"""Rounds, each of a day, after which every event must have ended."""

seeds = st.integers(0, 2**16)


class Journal(RuleBasedStateMachine):
    """Acts on two events of one handler and checks the effects at the API."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store
        store.shift = timedelta(0)
        with store.write() as connection:
            connection.execute(delete(EVENT))
        self.events = [deliver(store, "evt_1").event, deliver(store, "evt_2", source="github").event]
        self.claims: dict[int, Claim] = {}
        self.confirmed: set[UUID] = set()
        """Calls that a person resolved as happened."""
        self.version, self.frozen = 1, False
        self.drawn = 0
        self.used: dict[UUID, str] = {}
        """The credential of each call's latest send."""
        self.wrong: list[str] = []

    @initialize(dialect=st.sampled_from(sorted(KEY_RULES)), script=st.sampled_from(SCRIPTS))
    def begin(self, dialect: str, script: list[str]) -> None:
        """Choose an API and a handler."""
        self.harness, self.script = CallHarness(self.store, dialect), script
        life = self.harness.api.key_life
        self.api = ModelApi(
            KEY_RULES[dialect], life, lambda: self.store.shift, self.last_send, self.interlude
        )
        self.harness.transport = self.api  # type: ignore[assignment]

    def handle(self, _event: Any, calls: Any) -> None:
        """Make the calls of the script."""
        for step in self.script:
            name = step.rstrip("!")
            once = "the one" if name == "o" else None
            body = {"step": name, "version": self.version}
            bare = self.harness.api.dialect_name == "none" or name == "u"
            call = calls.shop.put if name == "u" else calls.shop.post
            try:
                call(f"/{name}", json=body, step=name, once=once, unprotected=bare)
            except CallError:
                if name == step:
                    raise

    def last_send(self) -> tuple[UUID, UUID]:
        """Return the latest send and its call; check the guards if it is a resend."""
        columns = (SEND.c.id.label("send"), SEND.c.claim.label("by"), *CALL.c)
        joined = select(*columns, self.store.now().label("now")).join(CALL, CALL.c.id == SEND.c.call)
        with self.store.read() as connection:
            call = connection.execute(joined.order_by(SEND.c.id.desc()).limit(1)).one()
            others = (SEND.c.call == call.id, SEND.c.open, SEND.c.id != call.send)
            before = connection.execute(select(SEND).where(*others)).all()
        if before:
            self.may_be_resent(call)
        self.used[call.id] = self.harness.api.credential
        return call.send, call.id

    def may_be_resent(self, call: Row[Any]) -> None:
        """Note a resend of a call with an open send that nothing protects any more."""
        # Noted, not raised: a worker survives every error of its handler.
        if call.protection == "unprotected":
            self.wrong.append("a call was resent unprotected")
        if call.protection == "keyed" and call.now > call.expires_at - self.harness.api.key_margin + SLACK:
            self.wrong.append("a call was resent after the life of its key")
        if self.used[call.id] != self.harness.api.credential:
            self.wrong.append("a call was resent under another credential")

    def interlude(self) -> None:
        """Let another worker take over while the sender is frozen."""
        if not self.frozen:
            self.frozen = True
            self.pass_time(LEASE + timedelta(seconds=1))
            for event in self.events:
                self.attempt(event)
            self.frozen = False

    def pass_time(self, span: timedelta) -> None:
        """Move the clocks of ledger and API forward."""
        self.store.shift += span
        self.api.run_slow()

    def attempt(self, event: UUID, *, settles: bool = True) -> None:
        """Run one attempt, from claim to settlement or crash."""
        expire(self.store)
        held = claim(self.store, event, lease=LEASE, worker="w")
        if held is None:
            return
        self.claims[held.token] = held
        end = self.performed(held)
        if end is not None and settles and settle(self.store, [(held, end)]):
            self.check_end(held)

    def performed(self, held: Claim) -> Any:
        """Run the handler; return None if its worker died."""
        died: list[Crash] = []

        def guarded(event: Any, calls: Any) -> None:
            try:
                self.handle(event, calls)
            except Crash as crash:
                died.append(crash)
                raise

        end = self.harness.perform(held, guarded)
        return None if died else end

    def check_end(self, held: Claim) -> None:
        """Check that a done event has made every call of its handler."""
        if row(self.store, held.event).state != "done":
            return
        calls = [call for call in self.harness.calls(held.event) if call.generation == held.generation]
        good = {"succeeded": set[str](), "rejected": set[str]()}
        for call in calls:
            good.setdefault(call.state, set()).add(call.step)
        for step in self.script:
            ends = ("succeeded", "rejected") if step.endswith("!") else ("succeeded",)
            assert any(step.rstrip("!") in good[state] for state in ends), f"{step} was not made"

    @rule(seed=seeds)
    def work(self, seed: int) -> None:
        """Run three attempts, some after a wait or a rotation."""
        chance = self.chance(seed)
        for _ in range(3):
            if chance.random() < 0.2:
                self.pass_time(chance.choice(JUMPS))
            if chance.random() < 0.15:
                self.deploy("credential")
            self.work_once(chance)

    def work_once(self, chance: Random) -> None:
        """Run an attempt with some faults, when its event is due; sometimes its worker dies at the end."""
        event = self.events[chance.random() < 0.3]
        found = row(self.store, event)
        if found.state in ("received", "waiting"):
            with self.store.read() as connection:
                now = connection.execute(select(self.store.now())).scalar_one()
            self.pass_time(max(found.due_at - now, timedelta(0)))
        elif found.state == "processing":
            self.pass_time(timedelta(minutes=1))
        self.api.plan = chance.choices(FAULTS, k=4)
        self.attempt(event, settles=chance.random() < 0.9)
        self.api.plan = []

    @rule(seed=seeds)
    def work_on(self, seed: int) -> None:
        """Run attempts, twice as often as any other rule."""
        self.work(seed)

    def chance(self, seed: int) -> Random:
        """Return a random source; Hypothesis' own draws vary too little for long sequences."""
        self.drawn += 1
        return Random(f"{seed} {self.drawn}")

    @rule(span=st.sampled_from(JUMPS))
    def time_passes(self, span: timedelta) -> None:
        """Wait."""
        self.pass_time(span)

    @rule(seed=seeds)
    def answer_comes_late(self, seed: int) -> None:
        """Record one of the late responses, in any order."""
        if self.api.late:
            self.record_late(*self.api.late.pop(self.chance(seed).randrange(len(self.api.late))))

    def record_late(self, send: UUID, answer: Any) -> None:
        """Record a response by its send, as the worker that sent it does."""
        with self.store.read() as connection:
            joined = select(SEND, CALL.c.event).join(CALL, CALL.c.id == SEND.c.call)
            found = connection.execute(joined.where(SEND.c.id == send)).one()
        held = next(item for item in self.claims.values() if item.event == found.event)
        self.harness.late(held, found, answer)

    @rule(changes=st.sampled_from(["credential", "handler"]))
    def deploy(self, changes: str) -> None:
        """Switch between two credentials, or between two versions of the handler."""
        if changes == "handler":
            self.version = 3 - self.version
        else:
            other = self.harness.api.credential == "first-credential"
            self.harness.rotate("second-credential" if other else "first-credential")

    @rule(seed=seeds)
    def a_person_acts(self, seed: int) -> None:
        """Retry or rerun an event, or resolve one of its calls."""
        event = self.chance(seed).choice(self.events)
        act = self.chance(seed).choice(["retry", "retry", "rerun", *Resolution])
        try:
            if act == "retry":
                retry(self.store, event, "ada")
            elif act == "rerun":
                rerun(self.store, event, "ada", generation=row(self.store, event).generation)
            else:
                self.resolve_first(event, Resolution(act))
        except NotAllowed:
            # Other tests check which actions are allowed.
            return

    def resolve_first(self, event: UUID, how: Resolution) -> None:
        """Resolve the first unfinished call."""
        unfinished = [call for call in self.harness.calls(event) if call.state in ("pending", "parked")]
        if unfinished:
            resolve(self.store, unfinished[0].id, how, "ada")
            if how == Resolution.HAPPENED:
                self.confirmed.add(unfinished[0].id)

    @invariant()
    def effects_happen_once(self) -> None:
        """No call has two effects, every success has one, and a done event has no unfinished call."""
        if not hasattr(self, "api"):
            return
        assert not self.wrong
        twice = [call for call, count in self.api.effects.items() if count > 1]
        assert not twice, f"{len(twice)} calls had more than one effect"
        for event in self.events:
            state = row(self.store, event)
            for call in self.harness.calls(event):
                if call.state == "succeeded" and call.shares is None and call.id not in self.confirmed:
                    assert self.api.effects[call.id] == 1, f"{call.step} succeeded without an effect"
                if state.state == "done" and call.generation == state.generation:
                    assert call.state not in ("pending", "parked"), f"done, and {call.step} is {call.state}"

    def teardown(self) -> None:
        """Without faults every event ends done, parked or dead within a bounded number of rounds."""
        if not hasattr(self, "api"):
            return
        for _ in range(ROUNDS):
            self.pass_time(timedelta(days=1))
            for event in self.events:
                self.attempt(event)
        self.effects_happen_once()
        left = {str(row(self.store, event).state) for event in self.events}
        assert left <= {"done", "parked", "dead"}, f"after {ROUNDS} days there are still events {left}"


@contextmanager
def hasty(store: Store) -> Iterator[Store]:
    """Turn off SQLite's sync: there are thousands of commits, and no fault is a power cut."""
    if not store.sqlite:
        yield store
        return

    def hurry(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    engine_events.listen(store.engine, "connect", hurry)
    store.engine.dispose()
    try:
        yield store
    finally:
        engine_events.remove(store.engine, "connect", hurry)
        store.engine.dispose()


def test_calls_take_effect_once(store: Store) -> None:
    """Any order of attempts, faults, late responses, waits, rotations, deployments and people's actions."""
    often = settings(
        max_examples=40 if store.sqlite else 15,
        stateful_step_count=15,
        deadline=None,
        derandomize=True,
        database=None,
        # Shrinking would take minutes, and the sequences are short.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with hasty(store):
        run_state_machine_as_test(lambda: Journal(store), settings=often)
