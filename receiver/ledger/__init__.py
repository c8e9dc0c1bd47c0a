"""The waist that web, worker and command line share: the ledger of events, and the rules for changing it."""

from receiver.ledger.actions import Acted, discard, rerun, retry
from receiver.ledger.claimed import Claim, Outcome
from receiver.ledger.claims import claim, claim_due, claim_next, claim_several, due, expire, renew, settle
from receiver.ledger.committing import Recorder
from receiver.ledger.errors import LedgerError, LedgerUnavailable, NotAllowed, SchemaBehind, UnknownEvent
from receiver.ledger.finishing import finish_several
from receiver.ledger.original import Original, original
from receiver.ledger.pace import Again, count_duplicates, flow, pace
from receiver.ledger.pending import pending
from receiver.ledger.presence import forget_worker, note_worker, workers
from receiver.ledger.promotion import Promoted, promote
from receiver.ledger.queries import BadCursor, EventFilter, Page, count_events, find_event, list_events
from receiver.ledger.record import Delivery, Verdict, record
from receiver.ledger.rejections import Rejected, record_rejections, rejections
from receiver.ledger.schema import check_schema, migrate
from receiver.ledger.states import Move, State
from receiver.ledger.stats import stats
from receiver.ledger.store import Store
from receiver.ledger.story import story
from receiver.ledger.sweep import Retention, ignored_types, prune, reopen, starved, take_nudges, unattended

__all__ = [
    "Acted",
    "Again",
    "BadCursor",
    "Claim",
    "Delivery",
    "EventFilter",
    "LedgerError",
    "LedgerUnavailable",
    "Move",
    "NotAllowed",
    "Original",
    "Outcome",
    "Page",
    "Promoted",
    "Recorder",
    "Rejected",
    "Retention",
    "SchemaBehind",
    "State",
    "Store",
    "UnknownEvent",
    "Verdict",
    "check_schema",
    "claim",
    "claim_due",
    "claim_next",
    "claim_several",
    "count_duplicates",
    "count_events",
    "discard",
    "due",
    "expire",
    "find_event",
    "finish_several",
    "flow",
    "forget_worker",
    "ignored_types",
    "list_events",
    "migrate",
    "note_worker",
    "original",
    "pace",
    "pending",
    "promote",
    "prune",
    "record",
    "record_rejections",
    "rejections",
    "renew",
    "reopen",
    "rerun",
    "retry",
    "settle",
    "starved",
    "stats",
    "story",
    "take_nudges",
    "unattended",
    "workers",
]
