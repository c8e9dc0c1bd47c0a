"""Writing down how attempts ended: together where that is possible, and for as long as it takes."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta

from receiver.ledger.errors import LedgerError
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import finish_several, settle
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from worker.observing import concerning

log = logging.getLogger(__name__)

SETTLE_PAUSE = 0.5
"""Seconds between tries to settle while the ledger does not answer."""

DONE = Outcome(Move.FINISH)
"""The end of an attempt whose handler returned; several of these share a transaction."""


def settle_all(store: Store, ended: Sequence[tuple[Claim, Outcome]], *, patience: timedelta) -> None:
    """Settle attempts; while the ledger does not answer, try for `patience`: nobody else can claim them."""
    returned = [held for held, end in ended if end == DONE]
    try:
        done = finish_several(store, returned) if len(returned) > 1 else set()
    except LedgerError:
        done = set()
    except Exception:
        log.exception("Several events could not be settled together; they are settled one by one.")
        done = set()
    for held, end in ended:
        with concerning(held):
            if held.event in done:
                log.info("Event %s (%s %s): %s", held.event, held.source, held.type, end.move)
            else:
                _settle(store, held, end, time.monotonic() + patience.total_seconds())


def _settle(store: Store, held: Claim, end: Outcome, deadline: float) -> None:
    while True:
        try:
            settled = settle(store, held, end)
        except LedgerError:
            if time.monotonic() > deadline:
                log.exception("Event %s ran but could not be settled; it will run again.", held.event)
                return
            time.sleep(SETTLE_PAUSE)
            continue
        except Exception:
            log.exception("Event %s ran but could not be settled; it will run again.", held.event)
            return
        if settled:
            log.info("Event %s (%s %s): %s", held.event, held.source, held.type, end.move)
        else:
            log.warning("Event %s was taken over; this attempt settles nothing.", held.event)
        return
