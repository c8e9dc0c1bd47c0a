"""Shared fixtures: real databases and brokers, and the product's processes on them."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from pytest_celery import CeleryTestBroker, CeleryTestWorker

from tests.services.celery_nodes import BrokerContainer, WorkerContainer
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.listener import Listener
from tests.services.pgbouncer import NOT_INSTALLED, PgBouncer, program
from tests.services.postgres import Postgres
from tests.services.rabbitmq import MISSING, RabbitMQ, programs
from tests.services.sandbox import Sandbox
from tests.services.site import Site
from tests.services.valkey import Valkey

Deploy = Callable[..., Deployment]
ON_EVERY_BROKER = pytest.mark.parametrize("site", ["sqlite", "postgres", "rabbitmq"], indirect=True)
"""SQLite and PostgreSQL with Valkey, and PostgreSQL with RabbitMQ."""
ON_SQLITE = pytest.mark.parametrize("site", ["sqlite"], indirect=True)
ON_POSTGRES = pytest.mark.parametrize("site", ["postgres"], indirect=True)
READY = "ready."
"""Celery's worker logs this when it takes messages."""


# The same examples in every run, so that failures can be repeated. No example is too slow, because a busy
# machine does not mean a slow product.
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    """On SIGTERM, as from a cancelled CI job, end the run in order: its servers and processes end too."""
    signal.signal(
        signal.SIGTERM, lambda *_: pytest.exit("stopped by SIGTERM", returncode=128 + signal.SIGTERM)
    )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Start one PostgreSQL for the whole run; tests that stop or freeze theirs take `own_postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """Start a PostgreSQL for this test alone, to stop, freeze and kill."""
    with Postgres() as server:
        yield server


@pytest.fixture
def pgbouncer(own_postgres: Postgres) -> Iterator[PgBouncer]:
    """Start a PgBouncer in front of the test's own PostgreSQL, to freeze and use up."""
    if program() is None:
        pytest.skip(NOT_INSTALLED)
    with PgBouncer(own_postgres) as server:
        yield server


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Start an HTTP server on loopback; it answers 200 unless the test sets `answer`."""
    server = Listener()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """Start one RabbitMQ for the whole run; a test that freezes it must thaw it."""
    if programs() is None:
        pytest.skip(MISSING)
    with RabbitMQ() as server:
        yield server


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    """Start a Valkey for this test alone, to freeze, wipe and kill."""
    with Valkey() as server:
        yield server


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Databases:
    """Make SQLite and PostgreSQL databases; PostgreSQL starts when the first one needs it."""
    return Databases(tmp_path_factory.mktemp("databases"), lambda: request.getfixturevalue("postgres"))


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """Return the URL of an empty database, on SQLite and on PostgreSQL."""
    url = databases.fresh(request.param)
    yield url
    databases.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def migrated_url(request: pytest.FixtureRequest, databases: Databases) -> Iterator[str]:
    """Return the URL of a database with the product's schema, on SQLite and on PostgreSQL."""
    url = databases.migrated(request.param)
    yield url
    databases.drop(url)


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    """Make deployments, `deploy(database_url, broker_url, **settings)`, that end with the test."""
    made: list[Deployment] = []

    def make(database_url: str, broker_url: str, **settings: Any) -> Deployment:
        made.append(Deployment(tmp_path / f"deployment-{len(made)}", database_url, broker_url, **settings))
        return made[-1]

    yield make
    for deployment in made:
        deployment.stop()


@pytest.fixture(scope="session")
def sites(
    databases: Databases, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], Site]]:
    """Return the site of a kind; starting one takes seconds, so each serves the whole run."""
    with ExitStack() as cleanup:

        @cache
        def site(kind: str) -> Site:
            if kind == "rabbitmq":
                broker = request.getfixturevalue("rabbitmq")
                url = broker.take_vhost()
            else:
                broker = Valkey().start()
                cleanup.callback(broker.stop)
                url = broker.url
            database = databases.migrated("sqlite" if kind == "sqlite" else "postgres")
            made = Site(tmp_path_factory.mktemp(f"site-{kind}"), database, broker, url)
            cleanup.callback(made.stop)
            return made

        yield site


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest, sites: Callable[[str], Site]) -> Iterator[Site]:
    """Provide a running web process, an empty ledger and an empty broker, by default on Valkey."""
    found = sites(request.param)
    yield found
    found.tidy()


@pytest.fixture
def deployment(site: Site, deploy: Deploy) -> Deployment:
    """Deploy with the web process, ledger and broker of `site`; no worker runs yet."""
    return site.lend(deploy)


@pytest.fixture
def postgres_deployment(databases: Databases, valkey: Valkey, deploy: Deploy) -> Deployment:
    """Deploy, without starting, on PostgreSQL and the test's own `valkey`."""
    return deploy(databases.migrated("postgres"), valkey.url)


@pytest.fixture
def rabbit_url(rabbitmq: RabbitMQ) -> str:
    """Return the URL of an empty virtual host."""
    return rabbitmq.take_vhost()


@pytest.fixture
def rabbit_deployment(databases: Databases, rabbit_url: str, deploy: Deploy) -> Deployment:
    """Deploy, without starting, on PostgreSQL and RabbitMQ."""
    return deploy(databases.migrated("postgres"), rabbit_url)


@pytest.fixture
def celery_broker(valkey: Valkey) -> CeleryTestBroker:
    """Make the test's own `valkey` pytest-celery's broker."""
    return CeleryTestBroker(BrokerContainer(valkey))


@pytest.fixture
def celery_backend_cluster() -> None:
    """Disable pytest-celery's result backend."""


@pytest.fixture
def celery_worker(postgres_deployment: Deployment, celery_setup_app: Any) -> CeleryTestWorker:
    """Start the Procfile's worker as pytest-celery's worker; it is ready."""
    container = WorkerContainer(lambda: postgres_deployment.start_worker()[0], READY)
    container.ready()
    return CeleryTestWorker(container, celery_setup_app)


@pytest.fixture(scope="session")
def running_sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """Serve the sandbox on a free port for the whole run."""
    server = Sandbox(tmp_path_factory.mktemp("sandbox"))
    yield server
    server.stop()


@pytest.fixture
def sandbox(running_sandbox: Sandbox) -> Sandbox:
    """Return the sandbox, empty and with no fault armed."""
    running_sandbox.control("reset")
    return running_sandbox
