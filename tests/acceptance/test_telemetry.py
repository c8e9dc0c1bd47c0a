"""Telemetry of two server processes and two workers: one set of metrics, one alert."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.listener import Heard, Listener
from tests.services.signing import stripe_delivery, stripe_event
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

TOKEN = "metrics-token-0123456789"
COUNT = 12
SWEEPING = "SELECT count(*) AS n FROM worker"


class Running(Deployment):
    """Two server processes and two workers on PostgreSQL; the alert's address answers slowly."""

    def __init__(self, folder: Path, databases: Databases, broker: Valkey) -> None:
        super().__init__(folder, databases.migrated("postgres"), broker.url)
        self.ledger = Ledger(self.database_url)
        self.alerts = Listener(self._answer)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.env |= {
            "FIRSTSEEN_METRICS_TOKEN": TOKEN,
            "FIRSTSEEN_ALERT_URL": f"{self.alerts.url}/hook",
            "FIRSTSEEN_SWEEP": "200ms",
            "WEB_CONCURRENCY": "2",
            "TMPDIR": str(self.temporary),
        }

    def _answer(self, _: Heard) -> tuple[int, bytes]:
        # Slow enough for the other worker to look for alerts too; the sender's own timeout is 5 s.
        with suppress(AssertionError):
            self.wait_swept(3)
        return 200, b"ok"

    def wait_swept(self, timeout: float) -> None:
        """Wait until both workers have swept once more."""
        at = self.ledger.rows("SELECT max(seen_at) AS at FROM worker")[0]["at"]
        later = f"{SWEEPING} WHERE seen_at > :at"
        wait_until(
            lambda: self.ledger.rows(later, at=at)[0]["n"] == 2, "both workers to sweep", timeout=timeout
        )

    def scrape(self) -> dict[tuple[str, ...], float]:
        """Return the samples by name and label values, fetched over a new connection."""
        answer = httpx.get(f"{self.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == 200, answer.text
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }


@pytest.fixture(scope="module")
def running(databases: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start the deployment."""
    broker = Valkey().start()
    made = Running(tmp_path_factory.mktemp("telemetry"), databases, broker)
    made.start(worker=2)
    wait_until(lambda: made.ledger.rows(SWEEPING)[0]["n"] == 2, made.logs)
    yield made
    made.stop()
    made.alerts.stop()
    broker.stop()


def test_a_dead_event_sends_one_alert(running: Running) -> None:
    """One of two workers sends the alert, and the other does not, though the first send is slow."""
    running.deliver("evt_dead", type="order.paid", dead=True).raise_for_status()
    (heard,) = running.alerts.wait(1)
    text = (
        "1 event of stripe, type order.paid, is dead. `firstseen events --source stripe --state dead` lists"
    )
    assert text in json.loads(heard.body)["text"]
    sent = "SELECT told FROM alert WHERE kind = 'dead' AND told_at IS NOT NULL"
    assert wait_until(lambda: running.ledger.rows(sent), running.logs) == [{"told": 1}]
    running.wait_swept(30)
    assert len(running.alerts.heard) == 1


def test_any_process_answers_for_all(running: Running) -> None:
    """Any server process returns the measurements of all of them, and the counts of the workers."""
    ids = [f"evt_{number}" for number in range(COUNT)]
    for event_id in ids:
        body, headers = stripe_delivery(stripe_event(event_id))
        # A connection for each request, so that both processes get some.
        running.post("stripe", body, headers | {"Connection": "close"}).raise_for_status()
    running.wait_handled(ids)
    unfinished = "SELECT id FROM event WHERE state NOT IN ('done', 'dead')"
    wait_until(lambda: not running.ledger.rows(unfinished), running.logs)
    total = len(running.ledger.rows("SELECT id FROM event"))
    nudges = ("firstseen_nudges_total", "taken")
    wait_until(lambda: running.scrape().get(nudges) == total, lambda: str(running.scrape()))
    for _ in range(6):
        read = running.scrape()
        assert read[nudges] == read["firstseen_record_batch_events_count",] == total
        assert read["firstseen_deliveries_total", "first seen", "stripe"] == total
        assert read["firstseen_attempts_total", "finish", "stripe"] == COUNT
        assert read["firstseen_workers",] == 2
    (folder,) = running.temporary.glob("firstseen-metrics-*")
    assert len(list(folder.glob("*.json"))) == 2
    (web,) = running.webs
    web.terminate()
    assert web.wait_exit() == 0
    assert not folder.exists()
