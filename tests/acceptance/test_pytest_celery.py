"""The Procfile's worker under pytest-celery: stray nudges, and a restart of worker and broker."""

import pytest
from pytest_celery import CeleryTestSetup

from config.broker import QUEUE, wake_message
from tests.services.deployment import Deployment
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until


@pytest.fixture
def postgres_deployment(postgres_deployment: Deployment) -> Deployment:
    """Sweep often, so that no test waits for it."""
    postgres_deployment.env["FIRSTSEEN_SWEEP"] = "300ms"
    return postgres_deployment


def test_a_stray_nudge_harms_nothing(celery_setup: CeleryTestSetup, valkey: Valkey) -> None:
    """Nudges for nothing, and those of older releases that name an event, are taken without an error."""
    assert len(celery_setup) == 2, "one broker, one worker, no result backend"
    for arguments in ((), ("00000000-0000-7000-8000-000000000000",), ("no id at all",)):
        celery_setup.app.send_task(**wake_message(), args=arguments, queue=QUEUE)
    wait_until(lambda: valkey.messages() == 0, "the nudges to be taken")
    assert celery_setup.worker.container.status == "running"
    assert "Error" not in celery_setup.worker.logs()


def test_an_event_outlives_worker_and_broker(
    celery_setup: CeleryTestSetup, postgres_deployment: Deployment, valkey: Valkey
) -> None:
    """An event whose worker was killed and whose nudge was lost is handled after a restart."""
    postgres_deployment.start_web()
    celery_setup.worker.kill()
    assert postgres_deployment.deliver("evt_outlives").status_code == 200
    wait_until(lambda: valkey.messages() == 1, "the nudge to be queued")
    celery_setup.broker.restart()
    assert valkey.messages() == 0
    celery_setup.worker.restart()
    celery_setup.worker.assert_log_exists("ready.")
    postgres_deployment.wait_handled(["evt_outlives"])
