"""The notifier: posts the ledger's alerts, each by one worker.

`Notifier.run_once` posts what is due and returns how many items that was; `run` repeats it until the worker
stops. `sentence` writes one item for people.
"""

import json
import logging
import threading
from datetime import timedelta
from http import HTTPStatus
from typing import Final, assert_never
from urllib.parse import urlsplit

from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import DueAlert, Topic, mark_sent, take_alert
from receiver.ledger.store import Store
from worker.calls.transport import HttpTransport, NoReply, Outgoing

log = logging.getLogger(__name__)

# Items of one pass: a bad release may kill every type of event at once.
AT_ONCE = 20

# Of one post, and of its connecting and reading: well under the minute that a worker has an item for.
DEADLINE, STEP_TIMEOUT = timedelta(seconds=10), timedelta(seconds=5)

# What Slack reads as markup: a sender's type must not name people or make links.
ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


class SlackWebhook:
    """Posts `{"text": ...}` to an address, as Slack's incoming webhooks take it. The address is a secret."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._transport = HttpTransport(
            url,
            deadline=DEADLINE,
            connect_timeout=STEP_TIMEOUT,
            read_timeout=STEP_TIMEOUT,
            max_connections=1,
        )
        self._works = True

    def post(self, text: str) -> bool:
        """Post one text, in bounded time; return whether it was taken. Each outage is logged once."""
        body = json.dumps({"text": text}).encode()
        headers = {
            "Host": urlsplit(self._url).netloc,
            "User-Agent": "Firstseen",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        request = Outgoing("POST", self._url, tuple(headers.items()), body)
        reply = self._transport.send(request, before_send=lambda: None)
        if isinstance(reply, NoReply):
            failure = reply.error
        else:
            taken = HTTPStatus.OK <= reply.status < HTTPStatus.MULTIPLE_CHOICES
            failure = "" if taken else f"it answered {reply.status}"
        if failure and self._works:
            log.warning("FIRSTSEEN_ALERT_URL takes no alerts: %s; they are tried again.", failure)
        elif not failure and not self._works:
            log.info("FIRSTSEEN_ALERT_URL takes alerts again.")
        self._works = not failure
        return self._works


class Notifier:
    """Posts the ledger's alerts. Any number of workers may: the database gives each item to one."""

    def __init__(self, store: Store, webhook: SlackWebhook, backlog: timedelta) -> None:
        self._store, self._webhook, self._backlog = store, webhook, backlog

    def run_once(self) -> int:
        """Post what is due and return how many items were taken. Raises LedgerError."""
        for count in range(AT_ONCE):
            alert = take_alert(self._store, self._backlog)
            if alert is None or not self._webhook.post(sentence(alert)):
                return count
            # Noted after the post: if this worker dies in between, another one repeats it.
            mark_sent(self._store, alert)
        return AT_ONCE


def run(notifier: Notifier, pause: timedelta, stopping: threading.Event) -> None:
    """Make passes until the worker stops, on a thread of their own: a slow address must hold up no sweep."""
    while not stopping.wait(pause.total_seconds()):
        try:
            notifier.run_once()
        except LedgerError as error:
            log.warning("No alerts: %s", error)
        except Exception:
            log.exception("Alerts failed; they are tried again.")


def sentence(alert: DueAlert) -> str:
    """Write one item for people: source, type and numbers, nothing of an event's payload."""
    count, state = alert.count, alert.subject.topic
    source, event_type = _plain(alert.subject.name), _plain(alert.subject.what)
    events = "1 event" if count == 1 else f"{count} events"
    match alert.subject.topic:
        case Topic.BACKLOG:
            text = (
                f"{events} wait for a worker, the first for {alert.seconds / 60:.0f} minutes."
                " Are workers running, and enough of them?"
            )
        case Topic.REJECTIONS:
            text = (
                f"{source} refused {count} deliveries in five minutes, far more than before."
                " Was a secret rotated at the provider? `firstseen stats` has the reasons."
            )
        case Topic.DEAD | Topic.PARKED:
            verb = "is" if count == 1 else "are"
            more = "" if count == alert.total else " since the last alert"
            text = (
                f"{events} of {source}, type {event_type}, {verb} {state}{more}."
                f" `firstseen events --source {source} --state {state}` lists them."
            )
        case _ as never:
            assert_never(never)
    return f"Firstseen: {text}"


def _plain(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text if character.isprintable())
