"""The broker freezes, loses its data, dies or drops connections: responses stay fast and no event is lost."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest

from tests.conftest import ON_EVERY_BROKER, ON_POSTGRES, Deploy
from tests.services.databases import Databases
from tests.services.deployment import Deployment, timed
from tests.services.ledger import Ledger
from tests.services.rabbitmq import RabbitMQ
from tests.services.site import Site
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

QUICK = {"FIRSTSEEN_SWEEP": "200ms"}
"""The sweeper steps in within seconds."""
QUEUE = "firstseen"
FROZEN = 60


@pytest.fixture
def deployment(deployment: Deployment) -> Deployment:
    """Sweep often."""
    deployment.env |= QUICK
    return deployment


def names(prefix: str, count: int) -> list[str]:
    """Return event ids."""
    return [f"evt_{prefix}_{number}" for number in range(count)]


def deliver_quickly(deployment: Deployment, ids: list[str]) -> None:
    """Deliver these events from several threads; every response is 200, and none waited for the broker.

    The median is compared: a wait for the broker would delay most responses by its timeout, a second or
    more, while a busy machine delays only a few.
    """
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda name: timed(deployment.deliver, name), ids))
    assert Counter(answer.status_code for answer, _ in answers) == {200: len(ids)}
    assert median(seconds for _, seconds in answers) < 1


def warm_up(deployment: Deployment) -> None:
    """Deliver one event and wait for its handler, so that every connection is open."""
    deployment.deliver("evt_warm").raise_for_status()
    deployment.wait_handled(["evt_warm"])


def assert_once(deployment: Deployment, ids: list[str]) -> None:
    """Check that each of these events was handled once and is done."""
    lines = Counter(deployment.handlers.lines())
    assert {name: lines[name] for name in ids} == dict.fromkeys(ids, 1)
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: set(ledger.states()) == {"done"}, "every event to be done")


@ON_EVERY_BROKER
def test_a_frozen_broker_slows_no_answer(site: Site, deployment: Deployment) -> None:
    """Responses do not wait for a frozen broker, and all events are done after it thaws."""
    deployment.start()
    warm_up(deployment)
    ids = names("thaw", FROZEN)
    site.broker.freeze()
    deliver_quickly(deployment, ids)
    site.broker.thaw()
    deployment.wait_handled(ids)
    assert_once(deployment, ids)


def test_a_broker_frozen_for_good_starves_nothing(site: Site, deployment: Deployment) -> None:
    """When the broker never thaws, the sweeper runs every event on the worker's own threads."""
    deployment.start()
    warm_up(deployment)
    ids = names("frozen", FROZEN)
    site.broker.freeze()
    deliver_quickly(deployment, ids)
    deployment.wait_handled(ids)
    assert_once(deployment, ids)


@ON_EVERY_BROKER
def test_a_wiped_broker_loses_nothing(site: Site, deployment: Deployment) -> None:
    """Wiped nudges cost no event, whether no worker runs yet or one is running."""
    before, after = names("before", 10), names("after", 30)
    deliver_quickly(deployment, before)
    wait_until(lambda: site.waiting() >= len(before), "every nudge to wait in the broker")
    site.wipe()
    assert site.waiting() == 0
    deployment.start_worker()
    deployment.wait_handled(before)
    site.wipe()
    deliver_quickly(deployment, after)
    deployment.wait_handled(after)
    assert_once(deployment, before + after)


@ON_POSTGRES
def test_a_web_killed_before_it_dispatched_loses_nothing(site: Site, deployment: Deployment) -> None:
    """Events accepted while the broker was down are handled later, although the web process was killed."""
    (web,) = deployment.start_web()
    ids = names("undispatched", 20)
    site.broker.kill()
    deliver_quickly(deployment, ids)
    deployment.forget(web)
    site.broker.start()
    assert site.waiting() == 0, "nothing was dispatched"
    deployment.start_worker()
    deployment.wait_handled(ids)
    assert_once(deployment, ids)


def test_dropped_connections_run_nothing_twice(site: Site, deployment: Deployment) -> None:
    """Two workers run no event twice although the broker drops every connection again and again."""
    deployment.start(worker=2)
    ids = names("dropped", 60)
    deployment.deliver_many(ids, sleep=0.5)
    for _ in range(5):
        assert isinstance(site.broker, Valkey)
        site.broker.drop_connections()
        time.sleep(0.3)  # the drops are spread over the time in which handlers run
    deployment.wait_handled(ids)
    assert deployment.handlers.overlaps() == set()
    assert_once(deployment, ids)


def test_a_broker_that_refuses_starves_nothing(
    databases: Databases, rabbitmq: RabbitMQ, deploy: Deploy
) -> None:
    """A worker whose password the broker refuses keeps sweeping, and exits 0 at SIGTERM."""
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
    """A worker without a broker handles every event, and uses the broker once it is there."""
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
