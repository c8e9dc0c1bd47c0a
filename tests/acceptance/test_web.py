"""The web process at its end: what it acknowledged is recorded, what it was asked is answered."""

import sqlite3
import threading
from contextlib import closing

import pytest

from tests.conftest import Deploy
from tests.services.databases import NO_BROKER, Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.processes import Process, lives
from tests.services.waiting import wait_until


@pytest.fixture
def deployed(databases: Databases, deploy: Deploy) -> Deployment:
    """Deploy web alone, on SQLite and without a broker."""
    made = deploy(databases.migrated("sqlite"), NO_BROKER)
    made.start_web()
    return made


@pytest.mark.parametrize("stop", [Process.terminate, Process.interrupt])
def test_a_stopping_web_answers_what_it_was_asked(deployed: Deployment, stop: object) -> None:
    """At SIGTERM or Ctrl-C a delivery in flight is still recorded and answered; then web ends with exit 0."""
    (web,) = deployed.webs
    answers: list[int] = []
    with closing(
        sqlite3.connect(deployed.database_url.removeprefix("sqlite:///"), isolation_level=None)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        asking = threading.Thread(target=lambda: answers.append(deployed.deliver("evt_1").status_code))
        asking.start()
        wait_until(lambda: waiting_deliveries(deployed) > 0, 10, "the delivery to arrive")
        assert callable(stop)
        stop(web)
        wait_until(lambda: "hutting down" in web.logs(), 10, web.logs)
        other.execute("ROLLBACK")
    asking.join(30)
    assert web.wait_exit(8) == 0, "no process had to be killed"
    assert answers == [200]
    assert Ledger(deployed.database_url).state("evt_1") == "received"
    assert "Traceback" not in web.logs()


def waiting_deliveries(deployment: Deployment) -> int:
    """Return how many connections the web process serves now."""
    (web,) = deployment.webs
    served = [
        each for member in web.family() for each in member.net_connections() if each.status == "ESTABLISHED"
    ]
    return len(served)


def test_a_dead_server_process_is_replaced(deployed: Deployment) -> None:
    """When the process that serves is killed, its parent starts another, which answers."""
    (web,) = deployed.webs
    first, *servers = web.family()
    assert servers, "web serves from processes of its own"
    for server in servers:
        server.kill()
    wait_until(
        lambda: [new for new in web.family() if new not in (first, *servers) and lives(new)], 30, web.logs
    )
    deployed.wait_ready()
    assert deployed.deliver("evt_1").status_code == 200
