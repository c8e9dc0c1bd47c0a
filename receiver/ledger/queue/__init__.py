"""Events out: claim, renew, settle, expire; nudge, reopen, prune."""

from receiver.ledger.queue.claims import claim_due, expire, renew
from receiver.ledger.queue.settlement import settle
from receiver.ledger.queue.sweep import (
    Retention,
    forget_worker,
    ignored_types,
    prune,
    record_heartbeat,
    reopen,
    starved,
    take_nudges,
    unattended,
)

__all__ = [
    "Retention",
    "claim_due",
    "expire",
    "forget_worker",
    "ignored_types",
    "prune",
    "record_heartbeat",
    "renew",
    "reopen",
    "settle",
    "starved",
    "take_nudges",
    "unattended",
]
