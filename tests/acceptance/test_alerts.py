"""Alerts as an operator gets them: two real workers, one message."""

import json

from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.listener import Listener
from tests.services.waiting import wait_until


def test_two_workers_tell_of_a_dead_event_once(postgres_deployment: Deployment, listener: Listener) -> None:
    """A dead event is told by one of two workers, while the address keeps everybody who asks waiting."""
    listener.answer = lambda _: (
        wait_until(lambda: len(ledger.rows("SELECT * FROM worker")) == 2) and (200, b"")
    )
    ledger = Ledger(postgres_deployment.database_url)
    postgres_deployment.env |= {
        "FIRSTSEEN_ALERT_URL": f"{listener.url}/hook",
        "FIRSTSEEN_SWEEP": "100ms",
    }
    postgres_deployment.start(worker=2)
    postgres_deployment.deliver("evt_1", type="order.paid", dead=True).raise_for_status()
    (heard,) = listener.wait(1)
    text = (
        "1 event of stripe, type order.paid, is dead. `firstseen events --source stripe --state dead` lists"
    )
    assert text in json.loads(heard.body)["text"]
    told = "SELECT told, told_at FROM alert WHERE kind = 'dead' AND told_at IS NOT NULL"
    (row,) = wait_until(lambda: ledger.rows(told), 30, postgres_deployment.logs)
    assert row["told"] == 1
    passes = ledger.rows("SELECT max(seen_at) AS at FROM worker")[0]["at"]
    later = "SELECT name FROM worker WHERE seen_at > :at"
    wait_until(lambda: len(ledger.rows(later, at=passes)) == 2, 30, "both workers to go on sweeping")
    assert len(listener.heard) == 1
