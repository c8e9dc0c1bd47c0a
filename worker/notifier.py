"""Alerts: what the ledger says people should know, posted to one address by one worker."""

import json
import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import News, Topic, next_news, told
from receiver.ledger.store import Store
from worker.calls.transport import HttpWire, NoReply, Outgoing, Wire

log = logging.getLogger(__name__)

AT_ONCE = 20
"""Alerts of one round: a bad release may kill every type of event at once."""

ESCAPES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
"""What Slack reads as markup: a sender's type must not name people or make links."""


@dataclass(frozen=True)
class Connect:
    """How long an alert may take, all in all well under the minute that a worker has it for."""

    base_url: str
    deadline: timedelta = timedelta(seconds=10)
    connect_timeout: timedelta = timedelta(seconds=5)
    read_timeout: timedelta = timedelta(seconds=5)
    max_connections: int = 1


class Post:
    """Posts `{"text": ...}` to an address, as Slack's incoming webhooks take it. The address is a secret."""

    def __init__(self, url: str, wire: Wire | None = None) -> None:
        self._url = url
        self._wire = wire or HttpWire(Connect(url))
        self._works = True

    def send(self, text: str) -> bool:
        """Post one text, in bounded time; False when it was not taken, which is said once."""
        body = json.dumps({"text": text}).encode()
        headers = {
            "Host": urlsplit(self._url).netloc,
            "User-Agent": "Firstseen",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        got = self._wire.send(Outgoing("POST", self._url, tuple(headers.items()), body), lambda: None)
        if isinstance(got, NoReply):
            return self._note(got.error)
        return self._note(None if 200 <= got.status < 300 else f"it answered {got.status}")  # noqa: PLR2004

    def _note(self, failure: str | None) -> bool:
        if failure and self._works:
            log.warning("FIRSTSEEN_ALERT_URL takes no alerts: %s; they are tried again.", failure)
        elif not failure and not self._works:
            log.info("FIRSTSEEN_ALERT_URL takes alerts again.")
        self._works = failure is None
        return self._works


class Alerts:
    """Tells what there is to tell; any number of workers may, and the database gives each to one."""

    def __init__(self, store: Store, post: Post, backlog: timedelta) -> None:
        self._store, self._post, self._backlog = store, post, backlog

    def run_once(self) -> int:
        """Tell what is due and return how many were told. Raises LedgerError."""
        for count in range(AT_ONCE):
            news = next_news(self._store, self._backlog)
            if news is None or not self._post.send(sentence(news)):
                return count
            told(self._store, news)
        return AT_ONCE


def run(alerts: Alerts, pause: timedelta, stopping: threading.Event) -> None:
    """Tell for ever, on a thread of its own: a slow address must hold up no sweep."""
    while not stopping.wait(pause.total_seconds()):
        try:
            alerts.run_once()
        except LedgerError as error:
            log.warning("No alerts: %s", error)
        except Exception:
            log.exception("Alerts failed; they are tried again.")


def sentence(news: News) -> str:
    """Write one alert for people: source, type and numbers, nothing of an event's payload."""
    subject, count = news.subject, news.count
    source, what, state = _plain(subject.name), _plain(subject.what), subject.topic
    match subject.topic:
        case Topic.BACKLOG:
            text = (
                f"{_events(count)} wait for a worker, the first for {news.seconds / 60:.0f} minutes."
                " Are workers running, and enough of them?"
            )
        case Topic.REJECTIONS:
            text = (
                f"{source} refused {count} deliveries in five minutes, far more than before."
                " Was a secret rotated at the provider? `firstseen stats` has the reasons."
            )
        case Topic.DEAD | Topic.PARKED:
            verb, more = "is" if count == 1 else "are", "" if count == news.total else " since the last alert"
            text = (
                f"{_events(count)} of {source}, type {what}, {verb} {state}{more}."
                f" `firstseen events --source {source} --state {state}` lists them."
            )
    return f"Firstseen: {text}"


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count} events"


def _plain(text: str) -> str:
    return "".join(ESCAPES.get(character, character) for character in text if character.isprintable())
