"""Processes that start before the database is ready, or with a wrong configuration."""

import httpx

from tests.conftest import Deploy
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.postgres import Postgres
from tests.services.processes import Process
from tests.services.valkey import Valkey
from tests.services.waiting import free_port, wait_until

TWICE = """
from worker import handles


@handles("stripe", "invoice.paid")
def one(event, calls): ...


@handles("stripe", "invoice.paid")
def other(event, calls): ...
"""
CANARY = "canary-5e1f"


def start_unready_web(deployment: Deployment) -> Process:
    """Start a web process and wait until it answers, ready or not."""
    web = deployment._web(free_port())

    def lives() -> bool:
        assert web.running, web.logs()
        try:
            return deployment.client.get(f"{web.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    wait_until(lives, web.logs)
    return web


def test_processes_wait_for_migration(database_url: str, valkey: Valkey, deploy: Deploy) -> None:
    """Before `firstseen migrate` web answers 503 and says why, and the worker waits; then both work."""
    deployment = deploy(database_url, valkey.url)
    (worker,) = deployment.start_worker()
    web = start_unready_web(deployment)
    ready = deployment.client.get(f"{web.url}/readyz")
    assert ready.status_code == 503
    assert "run `firstseen migrate`" in ready.json()["ledger"]
    refused = deployment.deliver("evt_1")
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    wait_until(lambda: "run `firstseen migrate`" in worker.logs(), worker.logs)
    deployment.migrate()
    deployment.wait_ready()
    assert deployment.deliver("evt_1").status_code == 200
    deployment.wait_handled(["evt_1"])
    assert worker.running
    assert "Traceback" not in worker.logs()


def test_processes_wait_for_the_database(valkey: Valkey, deploy: Deploy) -> None:
    """While PostgreSQL is down at start, web answers 503 and the worker waits; afterwards both work."""
    server = Postgres()
    try:
        deployment = deploy(server.start().create_database(), valkey.url)
        deployment.migrate()
        server.halt()
        (worker,) = deployment.start_worker()
        start_unready_web(deployment)
        assert deployment.deliver("evt_1").status_code == 503
        wait_until(lambda: "Waiting for the ledger" in worker.logs(), worker.logs)
        server.start()
        deployment.wait_ready()
        assert deployment.deliver("evt_1").status_code == 200
        deployment.wait_handled(["evt_1"])
        assert "Traceback" not in deployment.logs()
        for process in (*deployment.webs, *deployment.workers):
            process.kill()
    finally:
        server.stop()


MISTAKES = [
    ("web", {"DATABASE_URL": ""}, "DATABASE_URL is not set"),
    ("worker", {"DATABASE_URL": f"mysql://{CANARY}@host/db"}, "DATABASE_URL has 'mysql' before ://"),
    ("worker", {"BROKER_URL": ""}, "BROKER_URL is not set, nor REDIS_URL"),
    ("web", {"FIRSTSEEN_SECRET_KEY": CANARY}, "FIRSTSEEN_SECRET_KEY holds a key shorter than 32"),
    ("web", {"FIRSTSEEN_SOURCES": "/nowhere/sources.toml"}, "/nowhere/sources.toml"),
    ("worker", {"FIRSTSEEN_HANDLERS": "no_such_module"}, "no_such_module fails to import"),
    ("worker", {"FIRSTSEEN_HANDLERS": "twice"}, "twice.one and twice.other both handle"),
]


def test_nonsense_stops_a_process_with_a_sentence(
    databases: Databases, valkey: Valkey, deploy: Deploy
) -> None:
    """A wrong setting stops a process with exit code 1 and one sentence, without a secret or a traceback."""
    deployment = deploy(databases.migrated("sqlite"), valkey.url)
    (deployment.handlers.folder / "twice.py").write_text(TWICE)
    begun = [
        (
            deployment.spawn(name, f"python -m {'receiver' if name == 'web' else 'worker'}", **env),
            env,
            sentence,
        )
        for name, env, sentence in MISTAKES
    ]
    for process, env, sentence in begun:
        assert process.wait_exit(60) == 1, f"{env}:\n{process.logs()}"
        assert sentence in process.logs()
        assert len(process.logs().splitlines()) == 1, process.logs()
        assert CANARY not in process.logs()
