"""*Burst*: 5,000 deliveries at once on 500 connections, while the broker is frozen."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.bench.accept import new_ids
from tests.bench.contestants import ENDPOINT, deploy, rss
from tests.services.databases import Databases
from tests.services.ledger import Ledger
from tests.services.signing import stripe_delivery, stripe_event
from tests.services.valkey import Valkey

DELIVERIES, CONNECTIONS = 5_000, 500


@dataclass(frozen=True)
class Burst:
    """What the burst did: answers that were not 200, the slowest in seconds, web's megabytes, rows."""

    bad: int
    slowest: float
    memory: float
    recorded: int


def burst(folder: Path, databases: Databases, broker: Valkey) -> Burst:
    """Send them and say what happened."""
    deployment = deploy(folder / "burst", databases, broker, "postgres")
    try:
        web = deployment.start_web()[0]
        deployment.deliver("evt_warm_up")
        broker.freeze()
        try:
            answers = asyncio.run(_send(f"{web.url}{ENDPOINT}"))
        finally:
            broker.thaw()
        rows = Ledger(deployment.database_url).states().total()
        bad = sum(status != httpx.codes.OK for status, _ in answers)
        return Burst(bad, max(took for _, took in answers), rss(web), rows - 1)
    finally:
        deployment.stop()


async def _send(url: str) -> list[tuple[int, float]]:
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    bodies = [stripe_delivery(stripe_event(event_id)) for event_id in new_ids(DELIVERIES)]
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:
        gate = asyncio.Semaphore(CONNECTIONS)

        async def one(body: bytes, headers: dict[str, str]) -> tuple[int, float]:
            async with gate:
                begun = time.monotonic()
                try:
                    answer = await client.post(url, content=body, headers=headers)
                except httpx.TransportError:
                    return 0, time.monotonic() - begun
                return answer.status_code, time.monotonic() - begun

        return await asyncio.gather(*(one(*delivery) for delivery in bodies))
