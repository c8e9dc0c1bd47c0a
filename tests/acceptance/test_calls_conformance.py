"""Five dialects times every fault, in real processes: never two effects, and one if the event is done."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.services.calling import CallingHandlers, Target, configure
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.sandbox import CLIENTS, SALESLY, Client, Sandbox
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

ATTEMPTS = 4
ENV = {
    "FIRSTSEEN_SWEEP": "300ms",
    "FIRSTSEEN_BACKOFF_MAX": "300ms",
    "FIRSTSEEN_ATTEMPTS": str(ATTEMPTS),
    "WORKER_CONCURRENCY": "64",
}
FOREIGN = "somebody-elses"
"""Marks the body of a request that the test sends in place of the handler."""


class End(NamedTuple):
    """The expected end of an event and its call: states, effects, and the range of the number of requests."""

    event: str
    call: str
    effects: int
    least: int
    most: int


ONCE = End("done", "succeeded", 1, 1, 1)
TWICE = End("done", "succeeded", 1, 2, 2)
WAITED = End("done", "succeeded", 1, 2, 99)
"""At least one resend; their number depends on the machine's speed."""
HAPPENED = End("parked", "parked", 1, 1, 1)
"""The effect happened, but its response was lost: the call parks and is not sent again."""
MISUSED = End("parked", "parked", 0, 2, 2)
NOTHING = None
"""The sandbox does not have this fault for this API."""

ENDS = {
    #               celper, chronapilot, salesly, stannp, telness
    "plain": (ONCE, ONCE, ONCE, ONCE, ONCE),
    "five deliveries": (ONCE, ONCE, ONCE, ONCE, ONCE),
    "drop before": (TWICE, TWICE, TWICE, TWICE, TWICE),
    "drop after": (TWICE, TWICE, TWICE, TWICE, TWICE),
    "slow": (WAITED, WAITED, WAITED, WAITED, WAITED),
    "held": (WAITED, WAITED, WAITED, WAITED, WAITED),
    "race": (WAITED, WAITED, WAITED, WAITED, NOTHING),
    "429": (TWICE, TWICE, TWICE, TWICE, TWICE),
    "503": (TWICE, TWICE, TWICE, TWICE, TWICE),
    "500": (
        End("parked", "parked", 0, ATTEMPTS, ATTEMPTS),  # stored, unmarked: each resend gets the 500
        End("parked", "parked", 0, 2, 2),  # stored, and replayed with a marker
        TWICE,  # not stored: the key is free
        End("dead", "rejected", 0, 2, 2),  # stored; its body says that the letter failed
        End("parked", "parked", 0, ATTEMPTS, ATTEMPTS),
    ),
    "mismatch": (MISUSED, MISUSED, MISUSED, TWICE, MISUSED),  # to Stannp another body is another letter
    "expired": (HAPPENED, HAPPENED, HAPPENED, HAPPENED, HAPPENED),
    "swallowed": (TWICE, TWICE, TWICE, TWICE, TWICE),
}


@dataclass(frozen=True)
class Fault:
    """How one row of the table is set up: the fault armed in its sandbox, and the settings of its APIs."""

    armed: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=lambda: PATIENT)
    orders: dict[str, Any] = field(default_factory=dict)
    deliveries: int = 1


PATIENT = {"deadline": "30s"}
BRIEF = {"deadline": "6s", "quiet": "300ms"}
"""Where a resend waits for the first send's deadline: longer than a send takes, short enough to wait for."""
IMPATIENT = {"deadline": "1500ms", "read_timeout": "700ms", "quiet": "300ms"}

FAULTS = {
    "plain": Fault(),
    "five deliveries": Fault(deliveries=5),
    "drop before": Fault({"kind": "drop_before"}, BRIEF),
    "drop after": Fault({"kind": "drop_after"}, BRIEF),
    "slow": Fault({"kind": "slow", "seconds": 2}, IMPATIENT),
    "held": Fault({"kind": "hold", "seconds": 1.5}, IMPATIENT),
    # A second request within these 2 s would run concurrently with the first.
    "race": Fault({"kind": "race", "seconds": 2}, IMPATIENT | {"quiet": "3s"}),
    "429": Fault({"kind": "429", "retry_after": 1}),
    "503": Fault({"kind": "503", "retry_after": 1}, BRIEF),
    "500": Fault({"kind": "500"}, BRIEF),
    "mismatch": Fault({"kind": "429", "retry_after": 3600}),
    "expired": Fault({"kind": "drop_after"}, BRIEF, {"hold_from": 2}),
    "swallowed": Fault({"kind": "503", "retry_after": 1}, BRIEF, {"swallow": True}),
}


class Case(NamedTuple):
    """One cell of the table."""

    fault: str
    client: Client

    @property
    def event(self) -> str:
        """The id of the event, which is in the body of its call too."""
        return f"evt_{self.target}"

    @property
    def target(self) -> str:
        """The name of the case's API in apis.toml."""
        return f"{self.client.name}_{self.fault.replace(' ', '_')}"

    @property
    def end(self) -> End | None:
        """The expected end; None if the sandbox does not have the fault."""
        return ENDS[self.fault][CLIENTS.index(self.client)]


CASES = [case for fault in FAULTS for client in CLIENTS if (case := Case(fault, client)).end]


class Matrix:
    """All cases in one deployment: a sandbox for each fault, an API for each case."""

    def __init__(self, folder: Path, database_url: str, broker_url: str, cleanup: ExitStack) -> None:
        self.sandboxes: dict[str, Sandbox] = {}
        for fault in FAULTS:
            place = folder / fault
            place.mkdir()
            self.sandboxes[fault] = Sandbox(place)
            cleanup.callback(self.sandboxes[fault].stop)
        targets = [
            Target(case.target, case.client, self.sandboxes[case.fault].url, FAULTS[case.fault].settings)
            for case in CASES
        ]
        self.targets = {target.name: target for target in targets}
        self.handlers = CallingHandlers(folder / "handlers")
        env = ENV | configure(folder, targets)
        self.deployment = Deployment(folder, database_url, broker_url, handlers=self.handlers, env=env)
        cleanup.callback(self.deployment.stop)
        self.ledger = Ledger(database_url)

    def run(self) -> "Matrix":
        """Arm every fault, deliver every event, and wait until each has ended."""
        self.deployment.start()
        for case in CASES:
            fault = FAULTS[case.fault]
            if fault.armed:
                self.sandboxes[case.fault].fault(case.client.prefix, **fault.armed)
            orders = {"calls": [self.targets[case.target].order(case.event)], **fault.orders}
            answers = self.deployment.deliver_many([case.event] * fault.deliveries, **orders)
            assert {answer.status_code for answer in answers} == {200}
        for case in self.of("mismatch"):
            self.misuse(case)
        self.expire()
        wait_until(
            lambda: self.ledger.states().keys() <= {"done", "dead", "parked"},
            lambda: f"{self.ledger.states()} to end:\n{self.deployment.logs('worker')[-3000:]}",
        )
        return self

    def of(self, fault: str) -> list[Case]:
        """Return the cases of one row."""
        return [case for case in CASES if case.fault == fault]

    def misuse(self, case: Case) -> None:
        """Send a different request under the key of a postponed call; then let the call be resent."""
        wait_until(lambda: self.ledger.state(case.event) == "waiting", lambda: f"{case.event} to be put off")
        assert self.outcome(case) == "later"
        (call,) = self.ledger.calls(case.event)
        stranger = replace(case.client, fields={**case.client.fields, case.client.changing: FOREIGN})
        path, content = "", stranger.body()
        if case.client == SALESLY:  # its keys do not match on the body
            path, content = f"{case.client.path}/batch", b'{"contacts": [%s]}' % content
        answer = stranger.send(self.sandboxes["mismatch"], call["key"], path=path, content=content)
        assert answer.status_code in (200, 201), answer.text
        self.ledger.change("UPDATE call SET due_at = NULL WHERE api = :api", api=case.target)
        self.ledger.change("UPDATE event SET due_at = received_at WHERE event_id = :id", id=case.event)

    def expire(self) -> None:
        """Let the keys expire in the ledger and in the sandbox, then release the second attempts."""
        for case in self.of("expired"):
            wait_until(lambda case=case: self.outcome(case) == "unknown", f"{case.event} to lose its answer")
            self.ledger.change("UPDATE call SET expires_at = first_sent_at WHERE api = :api", api=case.target)
        self.sandboxes["expired"].advance(hours=25)
        self.handlers.release()

    def outcome(self, case: Case) -> str | None:
        """Return the outcome of the latest response to a case's call."""
        return next((call["outcome"] for call in self.ledger.calls(case.event)), None)

    def end(self, case: Case) -> tuple[str | None, list[str], int, int]:
        """Return the event's state, the calls' states, and the numbers of effects and requests of a case."""
        sandbox, api = self.sandboxes[case.fault], case.client.name
        effects = [row for row in sandbox.effects if row["api"] == api and FOREIGN not in row["body"]]
        requests = [row for row in sandbox.requests if row["api"] == api and FOREIGN not in row["body"]]
        states = [call["state"] for call in self.ledger.calls(case.event)]
        return self.ledger.state(case.event), states, len(effects), len(requests)


@pytest.fixture(scope="module")
def matrix(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    """Run all cases at once."""
    with ExitStack() as cleanup:
        valkey = Valkey()
        cleanup.callback(valkey.stop)
        valkey.start()
        folder = tmp_path_factory.mktemp("matrix")
        yield Matrix(folder, databases.migrated("sqlite"), valkey.url, cleanup).run()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.target)
def test_every_fault_ends_as_the_table_says(matrix: Matrix, case: Case) -> None:
    """The event, call, effects and requests of each dialect and fault are those of the table ENDS."""
    assert case.end
    state, calls, effects, requests = matrix.end(case)
    context = f"{matrix.ledger.event(case.event).get('reason')}; {matrix.ledger.sends(case.event)}"
    assert (state, calls, effects) == (case.end.event, [case.end.call], case.end.effects), context
    assert case.end.least <= requests <= case.end.most, context


def test_no_fault_has_two_effects(matrix: Matrix) -> None:
    """No case has two effects, and every resend equals the first request, key included."""
    for fault, sandbox in matrix.sandboxes.items():
        effects = [row["api"] for row in sandbox.effects if FOREIGN not in row["body"]]
        assert len(effects) == len(set(effects)), f"{fault}: {effects}"
        requests = [row for row in sandbox.requests if FOREIGN not in row["body"]]
        twins = {(row["api"], row["method"], row["path"], row["key"], row["body"]) for row in requests}
        assert len(twins) == len({row["api"] for row in requests}), f"{fault}: {twins}"


@pytest.mark.parametrize("fault", ["429", "503", "swallowed"])
def test_being_put_off_costs_no_attempt(matrix: Matrix, fault: str) -> None:
    """A 429 or 503 costs no attempt, even if the handler swallows the call's exception."""
    for case in matrix.of(fault):
        assert matrix.ledger.outcomes(case.event) == ["call later", "finish"]
        assert matrix.ledger.event(case.event)["attempts"] == 1
