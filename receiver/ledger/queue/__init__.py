"""Events out: claim, renew, settle, release, sweep."""

from receiver.ledger.queue.claims import claim, claim_due, claim_next, expire, renew
from receiver.ledger.queue.settlement import finish_several, settle
from receiver.ledger.queue.sweep import (
    Retention,
    forget_worker,
    ignored_types,
    note_worker,
    prune,
    reopen,
    starved,
    take_nudges,
    unattended,
)

__all__ = [
    "Retention",
    "claim",
    "claim_due",
    "claim_next",
    "expire",
    "finish_several",
    "forget_worker",
    "ignored_types",
    "note_worker",
    "prune",
    "renew",
    "reopen",
    "settle",
    "starved",
    "take_nudges",
    "unattended",
]
