"""What every attempt of a worker process calls out with."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random

from config.apis import Api
from config.settings import Settings
from receiver.ledger.store import Store
from worker.calls.wire import HttpWire, Wire


@dataclass(frozen=True)
class Outbound:
    """The ledger, the APIs with their wires, and the limits. `secrets` are the secret keys, current first."""

    store: Store
    apis: Mapping[str, Api]
    wires: Mapping[str, Wire]
    secrets: tuple[bytes, ...] = field(repr=False)
    lease: timedelta
    max_runtime: timedelta
    give_up_after: timedelta
    backoff_max: timedelta
    rng: Random = field(default_factory=Random)


DEV_SECRET = b"firstseen make run"
"""Keys what `make run` calls out with when it has no secret key; elsewhere one is required."""


def outbound_of(settings: Settings, store: Store, apis: Mapping[str, Api]) -> Outbound:
    """Wire up every API."""
    secrets = tuple(key.get_secret_value().encode() for key in settings.secret_keys)
    return Outbound(
        store=store,
        apis=apis,
        wires={name: HttpWire(api) for name, api in apis.items()},
        secrets=secrets or (DEV_SECRET,),
        lease=settings.lease,
        max_runtime=settings.max_runtime,
        give_up_after=settings.give_up_after,
        backoff_max=settings.backoff_max,
    )
