"""The Procfile's worker under pytest-celery: killed, restarted, and its broker with it."""

from typing import TYPE_CHECKING, cast

import pytest
from pytest_celery import CeleryTestSetup

from config.broker import QUEUE, wake_message
from tests.services.deployment import Deployment
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

if TYPE_CHECKING:
    from tests.services.celery_nodes import WorkerContainer


@pytest.fixture
def deployment(deployment: Deployment) -> Deployment:
    """Sweep often, so that no test waits for it."""
    deployment.env["FIRSTSEEN_SWEEP"] = "300ms"
    return deployment


def test_a_stray_nudge_harms_nothing(celery_setup: CeleryTestSetup, valkey: Valkey) -> None:
    """Nudges for events that nobody recorded are taken off the queue, and the worker goes on."""
    assert len(celery_setup) == 2, "one broker, one worker, no result backend"
    for row in ("00000000-0000-7000-8000-000000000000", "no id at all"):
        celery_setup.app.send_task(**wake_message(row), queue=QUEUE)
    wait_until(lambda: valkey.messages() == 0, "the nudges to be taken")
    assert celery_setup.worker.container.status == "running"


def test_an_event_outlives_worker_and_broker(
    celery_setup: CeleryTestSetup, deployment: Deployment, valkey: Valkey
) -> None:
    """An event accepted while the worker is dead, its nudge lost, is handled after a restart."""
    deployment.start_web()
    celery_setup.worker.kill()
    assert deployment.deliver("evt_outlives").status_code == 200
    wait_until(lambda: valkey.messages() == 1, "the nudge to be queued")
    celery_setup.broker.restart()
    assert valkey.messages() == 0
    celery_setup.worker.restart()
    celery_setup.worker.assert_log_exists("ready.")
    deployment.wait_handled(["evt_outlives"])


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_a_worker_ends_when_told(celery_setup: CeleryTestSetup, signal: str) -> None:
    """An idle worker ends in order at a platform's or a person's request."""
    container = cast("WorkerContainer", celery_setup.worker.container)
    container.kill(signal)
    assert (container.status, container.process.wait_exit()) == ("exited", 0)
