"""What the dashboard stands on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from config.apis import Api
from config.credentials import User
from config.sources import Source
from receiver.ledger.store import Store


@dataclass(frozen=True)
class DashboardParts:
    """The parts. `nudge` takes event ids and never waits; `broker` tells the state of whoever nudges."""

    store: Store
    users: Sequence[User]
    sources: Mapping[str, Source]
    apis: Mapping[str, Api]
    nudge: Callable[[Iterable[UUID]], None]
    broker: Callable[[], str]
    patience: float
    """Seconds that a worker may be silent before it counts as gone."""
