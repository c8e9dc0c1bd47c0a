"""An example to replace: says in the worker's log who paid."""

import logging
from typing import Any

from worker import Event, handles

log = logging.getLogger(__name__)


@handles("stripe", "invoice.paid")
def invoice_paid(event: Event, _calls: Any) -> None:
    """Handle a paid invoice. Whatever it raises is retried; raise `worker.Dead` to give the event up."""
    log.info("Invoice %s is paid.", event.data["data"]["object"]["id"])
