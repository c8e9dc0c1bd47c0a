"""Alerts: their topics, which worker sends them, and how often; on both databases."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.reports import DueAlert, Topic, mark_sent, take_alert
from receiver.ledger.reports.alerts import AGAIN, SPIKE_LEAST, TAKEN, Subject
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.steps import LEASE, deliver
from tests.services.claiming import claim
from tests.services.listener import Listener
from worker.notifier import AT_ONCE, Notifier, SlackWebhook, sentence

BACKLOG = timedelta(minutes=10)
DEAD = Subject(Topic.DEAD, "stripe", "invoice.paid")


def kill(store: Store, event_id: str, *, move: Move = Move.GIVE_UP, **change: str) -> None:
    """Record an event and end it with its only attempt."""
    held = claim(store, deliver(store, event_id, **change).event, lease=LEASE, worker="w")
    assert held
    assert settle(store, [(held, Outcome(move, reason="no such customer: Jane"))])


def tell(store: Store) -> list[DueAlert]:
    """Take every due alert and mark it sent."""
    taken = []
    while alert := take_alert(store, BACKLOG):
        mark_sent(store, alert)
        taken.append(alert)
    return taken


def test_the_first_dead_event_is_sent_at_once_and_then_a_count_per_hour(store: Store) -> None:
    """The first dead event of a source and type is sent at once, later ones as one count per hour."""
    kill(store, "evt_1")
    assert tell(store) == [DueAlert(DEAD, 1, 1)]
    kill(store, "evt_2")
    kill(store, "evt_3")
    assert tell(store) == []
    store.shift += AGAIN
    assert tell(store) == [DueAlert(DEAD, 2, 3)]
    store.shift += AGAIN
    assert tell(store) == [], "nothing new, so no alert"


def test_each_source_and_type_has_its_own_alert(store: Store) -> None:
    """Parked events count too, whether a worker or an unparsable delivery parked them."""
    kill(store, "evt_1")
    kill(store, "evt_2", type="other")
    kill(store, "evt_3", move=Move.PARK)
    record(store, [Delivery("shop", "sha", "unknown", b"{", problem="Its body does not parse.")])
    subjects = {(alert.subject.topic, alert.subject.name, alert.subject.what) for alert in tell(store)}
    assert subjects == {
        ("dead", "stripe", "invoice.paid"),
        ("dead", "stripe", "other"),
        ("parked", "stripe", "invoice.paid"),
        ("parked", "shop", "unknown"),
    }


def test_one_of_many_workers_takes_an_alert(store: Store) -> None:
    """Of many concurrent takers the database gives an alert to one."""
    kill(store, "evt_1")
    with ThreadPoolExecutor(4) as pool:
        given = [alert for alert in pool.map(lambda _: take_alert(store, BACKLOG), range(8)) if alert]
    assert given == [DueAlert(DEAD, 1, 1)]


def test_an_alert_of_a_dead_worker_is_taken_again(store: Store) -> None:
    """An alert that is not marked sent within a minute is given to another worker."""
    kill(store, "evt_1")
    assert take_alert(store, BACKLOG) == DueAlert(DEAD, 1, 1)
    assert take_alert(store, BACKLOG) is None
    store.shift += TAKEN
    kill(store, "evt_2")
    assert take_alert(store, BACKLOG) == DueAlert(DEAD, 2, 2)


def test_an_old_backlog_is_an_alert(store: Store) -> None:
    """An event due for longer than the threshold is a backlog; one that waits for its back-off is not."""
    held = claim(store, deliver(store, "evt_1").event, lease=LEASE, worker="w")
    assert held
    settle(store, [(held, Outcome(Move.RETRY_LATER, timedelta(days=1)))])
    store.shift += BACKLOG * 2
    assert take_alert(store, BACKLOG) is None
    deliver(store, "evt_2")
    assert take_alert(store, BACKLOG) is None
    store.shift += BACKLOG
    (alert,) = tell(store)
    assert (alert.subject, alert.count, round(alert.seconds)) == (Subject(Topic.BACKLOG), 1, 600)
    assert tell(store) == []


def test_a_spike_of_rejections_is_an_alert(store: Store) -> None:
    """A spike is many more rejections in five minutes than in the hour before."""
    for _ in range(12):
        record_rejections(store, [Rejected("noisy", "bad_signature")] * SPIKE_LEAST)
        store.shift += timedelta(minutes=5)
    record_rejections(store, [Rejected("noisy", "bad_signature")] * SPIKE_LEAST)
    record_rejections(store, [Rejected("quiet", "bad_signature")] * (SPIKE_LEAST - 1))
    assert tell(store) == []
    record_rejections(store, [Rejected("quiet", "expired")])
    assert tell(store) == [DueAlert(Subject(Topic.REJECTIONS, "quiet"), SPIKE_LEAST, 0)]


@pytest.fixture
def notifier(store: Store, listener: Listener) -> Notifier:
    """Send alerts to the listener."""
    return Notifier(store, SlackWebhook(f"{listener.url}/hook/secret"), BACKLOG)


def test_alerts_are_posted_as_slack_takes_them(store: Store, notifier: Notifier, listener: Listener) -> None:
    """The body is one JSON object with an escaped text, and contains no event data."""
    kill(store, "evt_1", type="<!channel> & more")
    assert notifier.run_once() == 1
    (heard,) = listener.heard
    assert (heard.method, heard.path) == ("POST", "/hook/secret")
    assert heard.headers["Content-Type"] == "application/json"
    assert json.loads(heard.body) == {
        "text": "Firstseen: 1 event of stripe, type &lt;!channel&gt; &amp; more, is dead."
        " `firstseen events --source stripe --state dead` lists them."
    }


def test_a_failed_alert_is_sent_again_and_logged_once(
    store: Store, notifier: Notifier, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """A failed alert is sent again after a minute; failures are logged once, without the address."""
    kill(store, "evt_1")
    kill(store, "evt_2", type="other")
    replies = iter([(500, b""), None, (302, b"")])
    listener.answer = lambda _: next(replies, (200, b"ok"))
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            assert notifier.run_once() == 0
            store.shift += TAKEN
        assert notifier.run_once() == 2
    assert len(listener.heard) == 5, "a failure ends the round"
    assert caplog.text.count("takes no alerts: it answered 500") == 1
    assert caplog.text.count("takes no alerts") == 1
    assert "takes alerts again" in caplog.text
    assert "secret" not in caplog.text


def test_one_round_is_bounded(store: Store, notifier: Notifier, listener: Listener) -> None:
    """One round sends a bounded number of alerts; the next round sends the rest."""
    for number in range(AT_ONCE + 1):
        kill(store, f"evt_{number}", type=f"type-{number}")
    assert [notifier.run_once(), notifier.run_once(), notifier.run_once()] == [AT_ONCE, 1, 0]
    assert len({heard.body for heard in listener.heard}) == AT_ONCE + 1


def test_sentences() -> None:
    """Each topic's sentence has its count and the next step."""
    assert sentence(DueAlert(Subject(Topic.PARKED, "shop", "order"), 3, 9)).startswith(
        "Firstseen: 3 events of shop, type order, are parked since the last alert."
    )
    assert "2 events wait for a worker, the first for 15 minutes" in sentence(
        DueAlert(Subject(Topic.BACKLOG), 2, 0, 900.0)
    )
    assert "shop refused 70 deliveries" in sentence(DueAlert(Subject(Topic.REJECTIONS, "shop"), 70, 0))
