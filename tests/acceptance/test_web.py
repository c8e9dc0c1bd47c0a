"""The web process when it stops or dies: requests in progress are answered, and it is replaced."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from tests.conftest import Deploy
from tests.services.databases import NO_BROKER, Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.processes import Process, lives
from tests.services.waiting import wait_until

WAITS_FOR_EVENT = "SELECT pid FROM pg_locks WHERE relation = 'event'::regclass AND NOT granted"


@pytest.fixture
def deployed(databases: Databases, deploy: Deploy) -> Deployment:
    """Deploy a web process alone, on SQLite and without a broker."""
    made = deploy(databases.migrated("sqlite"), NO_BROKER)
    made.start_web()
    return made


@pytest.mark.parametrize("stop", [Process.terminate, Process.interrupt])
def test_a_stopping_web_answers_what_it_was_asked(
    databases: Databases, deploy: Deploy, stop: Callable[[Process], None]
) -> None:
    """At SIGTERM or Ctrl-C a delivery in progress is recorded and answered; then web exits 0."""
    deployed = deploy(databases.migrated("postgres"), NO_BROKER)
    (web,) = deployed.start_web()
    ledger = Ledger(deployed.database_url)
    with ThreadPoolExecutor(1) as pool, ledger.engine.connect() as other:
        other.execute(text("LOCK TABLE event IN EXCLUSIVE MODE"))
        asked = pool.submit(deployed.deliver, "evt_1")
        # An open connection is not enough: one whose view has not begun is closed without a response.
        wait_until(lambda: ledger.rows(WAITS_FOR_EVENT), "the delivery to be recorded")
        stop(web)
        wait_until(lambda: "hutting down" in web.logs(), web.logs)
        other.rollback()
    assert asked.result().status_code == 200
    assert web.wait_exit() == 0
    assert "Killing" not in web.logs()
    assert ledger.state("evt_1") == "received"
    assert "Traceback" not in web.logs()


def test_a_dead_server_process_is_replaced(deployed: Deployment) -> None:
    """When every serving process is killed, the parent starts another, which answers."""
    (web,) = deployed.webs
    first, *servers = web.family()
    assert servers, "web serves from processes of its own"
    for server in servers:
        server.kill()
    wait_until(lambda: [new for new in web.family() if new not in (first, *servers) and lives(new)], web.logs)
    deployed.wait_ready()
    assert deployed.deliver("evt_1").status_code == 200
