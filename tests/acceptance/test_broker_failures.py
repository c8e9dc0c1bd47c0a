"""The broker freezes, forgets, dies or drops its connections: no answer is slow and no event is lost."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import NamedTuple

import pytest

from tests.conftest import Deploy
from tests.services.databases import Databases
from tests.services.deployment import Deployment, timed
from tests.services.ledger import Ledger
from tests.services.rabbitmq import RabbitMQ
from tests.services.server import Server
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

QUICK = {"FIRSTSEEN_SWEEP": "200ms"}
"""The sweeper steps in within seconds."""
QUEUE = "firstseen"
FROZEN = 200


class Stage(NamedTuple):
    """A deployment and its broker."""

    deployment: Deployment
    broker: Server
    waiting: Callable[[], int]
    wipe: Callable[[], None]


@pytest.fixture(params=["sqlite", "postgres", "rabbitmq"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """Deploy on SQLite and on PostgreSQL with Valkey, and on PostgreSQL with RabbitMQ."""
    if request.param == "rabbitmq":
        rabbit, url = request.getfixturevalue("rabbitmq"), request.getfixturevalue("rabbit_url")
        made = request.getfixturevalue("rabbit_deployment")
        made.env |= QUICK
        yield Stage(made, rabbit, partial(rabbit.queue_length, url, QUEUE), partial(rabbit.wipe, url, QUEUE))
        rabbit.thaw()
        return
    databases, valkey = request.getfixturevalue("databases"), request.getfixturevalue("valkey")
    made = request.getfixturevalue("deploy")(databases.migrated(request.param), valkey.url, env=QUICK)
    yield Stage(made, valkey, partial(valkey.queue_length, QUEUE), valkey.wipe)


def names(prefix: str, count: int) -> list[str]:
    """Return event ids."""
    return [f"evt_{prefix}_{number}" for number in range(count)]


def deliver_quickly(deployment: Deployment, ids: list[str]) -> None:
    """Deliver these events from several threads; every answer is 200, and none has waited for the broker.

    A wait would last for its timeout, a second and more, and so would most answers' then; a busy machine
    delays a few.
    """
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: timed(deployment.deliver, name), ids))
    assert Counter(answer.status_code for answer, _ in answers) == {200: len(ids)}
    assert median(seconds for _, seconds in answers) < 1


def warm_up(deployment: Deployment) -> None:
    """Send one event all the way, so that every connection stands."""
    deployment.deliver("evt_warm").raise_for_status()
    deployment.wait_handled(["evt_warm"])


def assert_once(deployment: Deployment, ids: list[str]) -> None:
    """Each of these events was handled once and is done."""
    lines = Counter(deployment.handlers.lines())
    assert {name: lines[name] for name in ids} == dict.fromkeys(ids, 1)
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: set(ledger.states()) == {"done"}, "every event to be done")


def test_a_frozen_broker_slows_no_answer(stage: Stage) -> None:
    """While the broker is frozen every answer is 200 without a wait; after it thaws all events are done."""
    stage.deployment.start()
    warm_up(stage.deployment)
    ids = names("thaw", FROZEN)
    stage.broker.freeze()
    deliver_quickly(stage.deployment, ids)
    stage.broker.thaw()
    stage.deployment.wait_handled(ids)
    assert_once(stage.deployment, ids)


def test_a_broker_frozen_for_good_starves_nothing(deployment: Deployment, valkey: Valkey) -> None:
    """When the broker never thaws, the sweeper runs every event on the worker's own threads."""
    deployment.env |= QUICK
    deployment.start()
    warm_up(deployment)
    ids = names("frozen", FROZEN)
    valkey.freeze()
    deliver_quickly(deployment, ids)
    deployment.wait_handled(ids)
    assert_once(deployment, ids)


def test_a_wiped_broker_loses_nothing(stage: Stage) -> None:
    """Nudges that are wiped before anybody fetched them, or under a running worker, cost no event."""
    stage.deployment.start_web()
    before, after = names("before", 10), names("after", 30)
    deliver_quickly(stage.deployment, before)
    wait_until(lambda: stage.waiting() == len(before), "every nudge to wait in the broker")
    stage.wipe()
    assert stage.waiting() == 0
    stage.deployment.start_worker()
    stage.deployment.wait_handled(before)
    stage.wipe()
    deliver_quickly(stage.deployment, after)
    stage.deployment.wait_handled(after)
    assert_once(stage.deployment, before + after)


def test_a_web_killed_before_it_dispatched_loses_nothing(deployment: Deployment, valkey: Valkey) -> None:
    """Events that were acknowledged while the broker was down are done later, though web died."""
    deployment.env |= QUICK
    (web,) = deployment.start_web()
    ids = names("undispatched", 20)
    valkey.kill()
    deliver_quickly(deployment, ids)
    deployment.forget(web)
    valkey.start()
    assert valkey.messages() == 0, "nothing was dispatched"
    deployment.start_worker()
    deployment.wait_handled(ids)
    assert_once(deployment, ids)


def test_dropped_connections_run_nothing_twice(deployment: Deployment, valkey: Valkey) -> None:
    """Two workers whose broker drops every connection, again and again, never run one event twice."""
    deployment.start(worker=2)
    ids = names("dropped", 60)
    deployment.deliver_many(ids, sleep=0.5)
    for _ in range(5):
        valkey.drop_connections()
        time.sleep(0.3)  # the drops are spread over the time in which handlers run
    deployment.wait_handled(ids)
    assert deployment.handlers.overlaps() == set()
    assert_once(deployment, ids)


def test_a_broker_that_refuses_starves_nothing(
    databases: Databases, rabbitmq: RabbitMQ, deploy: Deploy
) -> None:
    """A worker whose password the broker refuses goes on sweeping, and ends in order when it is told to."""
    refusing = rabbitmq.url().replace("guest:guest", "guest:wrong")
    deployment = deploy(databases.migrated("sqlite"), refusing, env=QUICK).start()
    ids = names("refused", 5)
    deliver_quickly(deployment, ids)
    deployment.wait_handled(ids)
    assert_once(deployment, ids)
    (worker,) = deployment.workers
    assert "The broker refuses this worker" in worker.logs()
    worker.terminate()
    assert worker.wait_exit() == 0


def test_a_worker_starts_without_a_broker(postgres_deployment: Deployment, valkey: Valkey) -> None:
    """A worker that finds no broker still gets everything done, and uses the broker once it is there."""
    deployment = postgres_deployment
    deployment.env |= QUICK
    valkey.kill()
    deployment.start()
    first, later = names("without", 5), names("with", 5)
    deliver_quickly(deployment, first)
    deployment.wait_handled(first)
    valkey.start()
    deliver_quickly(deployment, later)
    deployment.wait_handled(later)
    assert_once(deployment, first + later)
