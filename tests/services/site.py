"""A web process, its ledger and its broker, shared by tests; only workers are each test's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from receiver.ledger.store import Store
from tests.services.databases import driver_url
from tests.services.deployment import SOURCES, Deployment
from tests.services.ledger import empty
from tests.services.rabbitmq import RabbitMQ
from tests.services.valkey import Valkey

API_KEY = "ops-key-of-the-tests"
TWO_SOURCES = SOURCES + SOURCES.replace("[stripe]", "[other]")
"""The second source has no handler unless a test adds one."""


class Site:
    """Runs until `stop`. Its broker may be frozen, wiped and, if a Valkey, killed: `tidy` restores it."""

    def __init__(self, folder: Path, database_url: str, broker: Valkey | RabbitMQ, broker_url: str) -> None:
        self.broker, self.store = broker, Store(driver_url(database_url))
        env = {"FIRSTSEEN_API_KEYS": f"ops={API_KEY}"}
        self.deployment = Deployment(folder, database_url, broker_url, sources=TWO_SOURCES, env=env)
        self.deployment.start_web()

    def lend(self, deploy: Callable[..., Deployment], **settings: Any) -> Deployment:
        """Make a deployment that delivers to this web process and has no worker yet."""
        given = self.deployment
        mine = {name: given.env[name] for name in ("FIRSTSEEN_SECRET_KEY", "FIRSTSEEN_API_KEYS")}
        settings["env"] = mine | settings.get("env", {})
        return deploy(given.database_url, given.broker_url, site=given, sources=TWO_SOURCES, **settings)

    def waiting(self) -> int:
        """Return the number of nudges that wait in the broker."""
        if isinstance(self.broker, Valkey):
            return self.broker.queue_length()
        return self.broker.queue_length(self.deployment.broker_url)

    def wipe(self) -> None:
        """Drop every waiting nudge."""
        if isinstance(self.broker, Valkey):
            self.broker.wipe()
        else:
            self.broker.wipe(self.deployment.broker_url)

    def tidy(self) -> None:
        """Empty the ledger and the broker; all workers must have ended."""
        if not self.broker.running:
            self.broker.start()
        self.broker.thaw()
        self.wipe()
        empty(self.store)

    def stop(self) -> None:
        """End the web process."""
        self.deployment.stop()
        self.store.close()
