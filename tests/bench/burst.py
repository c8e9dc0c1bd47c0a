"""*Burst*: 5,000 deliveries at once on 500 connections, while the broker is frozen."""

from dataclasses import dataclass
from pathlib import Path

from tests.bench.accept import new_ids
from tests.bench.contestants import ENDPOINT, deploy, rss
from tests.bench.load import run_wrk, write_deliveries
from tests.services.databases import Databases
from tests.services.ledger import Ledger
from tests.services.valkey import Valkey

DELIVERIES, CONNECTIONS = 5_000, 500
LONGEST = 30.0
"""Seconds that wrk runs: it idles once all deliveries are answered, and does not end earlier."""


@dataclass(frozen=True)
class Burst:
    """Responses other than 200, the slowest one in seconds, web's memory in megabytes, and recorded rows."""

    bad: int
    slowest: float
    memory: float
    recorded: int


def burst(folder: Path, databases: Databases, broker: Valkey) -> Burst:
    """Send the burst and measure it."""
    deployment = deploy(folder / "burst", databases, broker, "postgres")
    try:
        web = deployment.start_web()[0]
        deployment.deliver("evt_warm_up")
        broker.freeze()
        file = write_deliveries(folder / "burst.txt", new_ids(DELIVERIES))
        try:
            url = f"{web.url}{ENDPOINT}"
            done = run_wrk(url, file, connections=CONNECTIONS, seconds=LONGEST, once=True)
        finally:
            broker.thaw()
        rows = Ledger(deployment.database_url).states().total()
        return Burst(done.refused + done.errors, done.max / 1000, rss(web), rows - 1)
    finally:
        deployment.stop()
