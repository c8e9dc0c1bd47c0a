"""Calls with a wrong credential, in a stopping worker, and during a frozen database."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ON_SQLITE, Deploy
from tests.services.calling import CallingHandlers, Target, configure
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.postgres import Postgres
from tests.services.processes import Process
from tests.services.sandbox import CELPER, SALESLY, TELNESS, Sandbox
from tests.services.site import Site
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

ENV = {"FIRSTSEEN_LEASE": "3s", "FIRSTSEEN_SWEEP": "300ms", "FIRSTSEEN_BACKOFF_MAX": "300ms"}
WRONG = 'type = "header", name = "X-Forgotten"'
"""A credential in a header that the sandbox does not read."""


def reconfigured(deployment: Deployment, *targets: Target) -> Deployment:
    """Point a deployment at these targets; only processes that start afterwards use them."""
    deployment.env |= ENV | configure(deployment.folder, targets)
    return deployment


@pytest.fixture
def calling(site: Site, deploy: Deploy, tmp_path: Path) -> Deployment:
    """Deploy handlers that make calls; no worker runs yet."""
    return site.lend(deploy, handlers=CallingHandlers(tmp_path / "handlers"))


def wait_state(deployment: Deployment, event: str, *states: str) -> None:
    """Wait until an event is in one of these states."""
    ledger = Ledger(deployment.database_url)
    wait_until(
        lambda: ledger.state(event) in states,
        lambda: f"{ledger.event(event)}:\n{deployment.logs('worker')}",
    )


@ON_SQLITE
def test_a_credential_is_mended_and_the_event_retried(calling: Deployment, sandbox: Sandbox) -> None:
    """Of three calls, each takes effect once although the second needed a new credential and a retry."""
    first, third = Target("first", CELPER, sandbox.url), Target("third", TELNESS, sandbox.url)
    broken = Target("second", SALESLY, sandbox.url, auth=WRONG)
    deployment = reconfigured(calling, first, broken, third)
    deployment.env["FIRSTSEEN_ATTEMPTS"] = "2"
    deployment.start()
    orders = [target.order(f"call-{number}") for number, target in enumerate((first, broken, third), 1)]
    deployment.deliver("evt_1", calls=orders).raise_for_status()
    wait_state(deployment, "evt_1", "dead")
    ledger = Ledger(deployment.database_url)
    assert ledger.outcomes("evt_1") == ["retry later", "give up"], "it waits for another credential first"
    assert [effect["api"] for effect in sandbox.effects] == ["celper"]
    deployment.workers[0].terminate()
    assert deployment.workers[0].wait_exit() == 0
    reconfigured(deployment, first, Target("second", SALESLY, sandbox.url), third).start_worker()
    deployment.firstseen("retry stripe evt_1")
    wait_state(deployment, "evt_1", "done")
    assert [effect["api"] for effect in sandbox.effects] == ["celper", "salesly", "telness"]
    statuses = [(row["api"], row["status"]) for row in sandbox.requests]
    assert statuses == [
        ("celper", 201),
        ("salesly", 401),
        ("salesly", 401),
        ("salesly", 201),
        ("telness", 201),
    ]
    keys = [call["key"] for call in ledger.calls("evt_1")]
    assert len(set(keys)) == len(keys) == len(statuses), "each successor has a key of its own"
    states = [call["state"] for call in ledger.calls("evt_1")]
    assert states == ["succeeded", "replaced", "replaced", "succeeded", "succeeded"]


@ON_SQLITE
@pytest.mark.parametrize("stop", [Process.terminate, Process.interrupt], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopping_worker_waits_for_its_answer(
    calling: Deployment, sandbox: Sandbox, stop: Callable[[Process], None]
) -> None:
    """A worker stopped during a send waits for the response, and the event is done."""
    target = Target("orders", TELNESS, sandbox.url)
    deployment = reconfigured(calling, target).start()
    sandbox.fault("/telness", "slow", seconds=1.5)
    deployment.deliver("evt_1", calls=[target.order("call-1")]).raise_for_status()
    wait_until(lambda: sandbox.effects, deployment.logs)
    (worker,) = deployment.workers
    stop(worker)
    assert worker.wait_exit() == 0
    ledger = Ledger(deployment.database_url)
    assert ledger.outcomes("evt_1") == ["finish"]
    assert [send["outcome"] for send in ledger.sends("evt_1")] == ["succeeded"]
    assert len(sandbox.requests) == 1


def test_an_answer_waits_for_a_frozen_database(
    own_postgres: Postgres, valkey: Valkey, deploy: Deploy, sandbox: Sandbox, tmp_path: Path
) -> None:
    """A response received during a database freeze is recorded after the thaw; nothing is resent."""
    target = Target("orders", TELNESS, sandbox.url, {"deadline": "5s"})
    handlers = CallingHandlers(tmp_path / "handlers")
    deployment = deploy(own_postgres.create_database(), valkey.url, handlers=handlers)
    reconfigured(deployment, target).migrate()
    deployment.start()
    sandbox.fault("/telness", "slow", seconds=1)
    deployment.deliver("evt_1", calls=[target.order("call-1")]).raise_for_status()
    wait_until(lambda: sandbox.effects, deployment.logs)
    own_postgres.freeze()
    wait_until(lambda: sandbox.requests[0]["status"] == 201, "the answer to leave")
    own_postgres.thaw()
    wait_state(deployment, "evt_1", "done")
    ledger = Ledger(deployment.database_url)
    assert [send["outcome"] for send in ledger.sends("evt_1")] == ["succeeded"]
    assert len(sandbox.requests) == len(sandbox.effects) == 1
