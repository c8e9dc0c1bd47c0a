"""Workers are killed or frozen between send and response, in five dialects: no effect happens twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.services.calling import CallingHandlers, Target, configure
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.processes import Process
from tests.services.sandbox import CLIENTS, SALESLY, Client, Sandbox
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

ENV = {"FIRSTSEEN_LEASE": "6s", "FIRSTSEEN_SWEEP": "300ms", "FIRSTSEEN_BACKOFF_MAX": "300ms"}
SENDING = {"deadline": "9s", "quiet": "300ms"}
"""The deadline leaves a busy machine time to interrupt the send; the lease lasts 5 s longer."""
LINGER = 12
"""Seconds for which the sandbox holds a request: longer than the deadline, shorter than the lease."""


class End(NamedTuple):
    """The expected end of an event and its call: states, effects, and the range of the number of requests."""

    event: str
    call: str
    effects: int
    least: int
    most: int


INTERRUPTED = {
    # The sandbox's fault and the expected end, equal in all five dialects. A third request happens on a busy
    # machine, where the second worker is killed too, or only after its resend. "killed before" has more: an
    # API that reports a held key is polled.
    "frozen": ("slow", End("done", "succeeded", 1, 2, 3)),
    "killed after": ("slow", End("done", "succeeded", 1, 2, 3)),
    "killed before": ("hold", End("done", "succeeded", 1, 2, 9)),
    # A busy machine can resend under the old credential first, which has no second effect.
    "rotated": ("slow", End("parked", "parked", 1, 1, 3)),
}
STEPS = (1, 2, 3)
"""The calls of one handler, which pauses after one of them so that its worker can be killed."""


class Case(NamedTuple):
    """One dialect, interrupted in one way."""

    how: str
    client: Client

    @property
    def target(self) -> str:
        """The name of its API in apis.toml."""
        return f"{self.client.name}_{self.how.replace(' ', '_')}"

    @property
    def event(self) -> str:
        """The id of its event."""
        return f"evt_{self.target}"


CASES = [Case(how, client) for how in INTERRUPTED for client in CLIENTS]


class Interruption:
    """Three workers on PostgreSQL: one is frozen and one killed while they send; the third takes over."""

    def __init__(self, folder: Path, database_url: str, broker_url: str, cleanup: ExitStack) -> None:
        self.sandboxes = {}
        for how in (*INTERRUPTED, "steps"):
            place = folder / how
            place.mkdir()
            self.sandboxes[how] = Sandbox(place)
            cleanup.callback(self.sandboxes[how].stop)
        self.targets = {
            case.target: Target(case.target, case.client, self.sandboxes[case.how].url, SENDING)
            for case in CASES
        }
        self.steps = Target("steps", SALESLY, self.sandboxes["steps"].url, SENDING)
        self.handlers = CallingHandlers(folder / "handlers")
        env = ENV | configure(folder, [*self.targets.values(), self.steps])
        self.deployment = Deployment(folder, database_url, broker_url, handlers=self.handlers, env=env)
        cleanup.callback(self.deployment.stop)
        self.ledger = Ledger(database_url)

    def run(self) -> "Interruption":
        """Freeze one worker and kill another during their sends; wait until a third finishes all events."""
        for case in CASES:
            fault = INTERRUPTED[case.how][0]
            self.sandboxes[case.how].fault(case.client.prefix, fault, seconds=LINGER)
        (frozen,) = self.deployment.start().workers
        self.deliver("frozen")
        frozen.freeze()
        (killed,) = self.deployment.start_worker()
        for number in STEPS:
            orders = [self.steps.order(f"{number}-{call}") for call in STEPS]
            self.deployment.deliver(f"evt_step_{number}", calls=orders, pause_after=number)
        self.deliver(*(how for how in INTERRUPTED if how != "frozen"))
        self.wait(lambda: len(self.handlers.paused()) == len(STEPS), "each handler to come to its pause")
        self.deployment.forget(killed)
        self.handlers.release()
        rotated = [target for name, target in self.targets.items() if name.endswith("rotated")]
        self.deployment.start_worker(**{target.variable: target.credential("two") for target in rotated})
        self.wait(lambda: self.ledger.states().keys() <= {"done", "parked"}, "every event to end")
        self.thaw(frozen)
        return self

    def deliver(self, *ways: str) -> None:
        """Deliver the events of these interruptions, and wait until each has a request without a response."""
        chosen = [case for case in CASES if case.how in ways]
        with ThreadPoolExecutor(len(chosen)) as pool:
            answers = list(pool.map(self.deliver_one, chosen))
        assert {answer.status_code for answer in answers} == {200}
        for way in ways:
            self.wait(lambda way=way: self.is_under_way(way), f"the sends of {way!r} to be under way")

    def deliver_one(self, case: Case) -> httpx.Response:
        """Deliver the event of one case."""
        return self.deployment.deliver(case.event, calls=[self.targets[case.target].order(case.event)])

    def is_under_way(self, how: str) -> bool:
        """Whether the sandbox has received, or for "slow" executed, the request of every dialect."""
        sandbox = self.sandboxes[how]
        there = sandbox.effects if INTERRUPTED[how][0] == "slow" else sandbox.requests
        return len(there) == len(CLIENTS)

    def thaw(self, frozen: Process) -> None:
        """Thaw the frozen worker, and wait until its sends have ended."""
        self.before = [self.ledger.calls(case.event) for case in CASES]
        frozen.thaw()
        self.wait(lambda: self.ended_late() == len(CLIENTS), "the frozen worker's sends to end")

    def ended_late(self) -> int:
        """Return how many of the frozen worker's sends have ended."""
        first = [self.ledger.sends(case.event)[0] for case in CASES if case.how == "frozen"]
        return sum(send["ended_at"] is not None for send in first)

    def wait(self, condition: object, what: str) -> None:
        """Wait; on failure, show the workers' output."""
        wait_until(condition, lambda: f"{what}:\n{self.deployment.logs('worker')[-4000:]}")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def interruption(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interruption]:
    """Run all interruptions at once."""
    with ExitStack() as cleanup:
        valkey = Valkey()
        cleanup.callback(valkey.stop)
        valkey.start()
        folder = tmp_path_factory.mktemp("interruption")
        yield Interruption(folder, databases.migrated("postgres"), valkey.url, cleanup).run()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.target)
def test_an_interrupted_send_ends_as_the_table_says(interruption: Interruption, case: Case) -> None:
    """A worker killed or frozen between send and response leaves one effect, or a parked call."""
    sandbox, api = interruption.sandboxes[case.how], case.client.name
    effects = [row for row in sandbox.effects if row["api"] == api]
    requests = [row for row in sandbox.requests if row["api"] == api]
    (call,) = interruption.ledger.calls(case.event)
    _, end = INTERRUPTED[case.how]
    context = f"{call['reason']}; {interruption.ledger.sends(case.event)}"
    found = interruption.ledger.state(case.event), call["state"], len(effects)
    assert found == (end.event, end.call, end.effects), context
    assert end.least <= len(requests) <= end.most, context
    assert len({row["key"] for row in requests}) == 1, "a resend has the same key"


def test_a_worker_that_wakes_up_changes_nothing(interruption: Interruption) -> None:
    """The late responses of a thawed worker end its own sends and change nothing else."""
    assert [interruption.ledger.calls(case.event) for case in CASES] == interruption.before
    for case in CASES:
        if case.how == "frozen":
            *taken_over, last = interruption.ledger.outcomes(case.event)
            assert (set(taken_over), last) == ({"expire"}, "finish")


@pytest.mark.parametrize("number", STEPS)
def test_finished_calls_are_not_sent_again(interruption: Interruption, number: int) -> None:
    """Of three calls, whichever the worker is killed after, each is sent once and has one effect."""
    event, sandbox = f"evt_step_{number}", interruption.sandboxes["steps"]
    for asked in (sandbox.effects, sandbox.requests):
        mine = [row["body"] for row in asked if f"{number}-" in row["body"]]
        assert len(mine) == len(STEPS)
        assert all(f"{number}-{call}" in body for call, body in zip(STEPS, mine, strict=True))
    assert interruption.ledger.state(event) == "done"
    assert interruption.handlers.returned(event)[-3:] == [(call, 201) for call in STEPS], "live and stored"
    assert len(interruption.handlers.returned(event)) == number + len(STEPS)
