"""The waist that web, worker and command line share: the ledger of events, and the rules for changing it."""

from receiver.ledger.claims import Claim, Outcome, claim, claim_next, due, expire, renew, settle
from receiver.ledger.errors import LedgerError, LedgerUnavailable, NotAllowed, SchemaBehind, UnknownEvent
from receiver.ledger.record import Delivery, Verdict, record
from receiver.ledger.schema import check_schema, migrate
from receiver.ledger.states import Move, State
from receiver.ledger.store import Store
from receiver.ledger.sweep import Windows, ignored_types, prune, reopen, starved, take_nudges, unattended

__all__ = [
    "Claim",
    "Delivery",
    "LedgerError",
    "LedgerUnavailable",
    "Move",
    "NotAllowed",
    "Outcome",
    "SchemaBehind",
    "State",
    "Store",
    "UnknownEvent",
    "Verdict",
    "Windows",
    "check_schema",
    "claim",
    "claim_next",
    "due",
    "expire",
    "ignored_types",
    "migrate",
    "prune",
    "record",
    "renew",
    "reopen",
    "settle",
    "starved",
    "take_nudges",
    "unattended",
]
