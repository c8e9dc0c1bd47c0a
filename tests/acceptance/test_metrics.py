"""`/metrics` of a real server with several processes, and of a real worker through the ledger."""

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Deploy
from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.signing import stripe_delivery, stripe_event
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

TOKEN = "metrics-token-0123456789"
COUNT = 12


def scrape(deployment: Deployment) -> dict[tuple[str, ...], float]:
    """Return the samples by name and label values, over a connection of its own."""
    answer = httpx.get(f"{deployment.url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return {
        (one.name, *sorted(one.labels.values())): one.value for family in families for one in family.samples
    }


def test_any_process_answers_for_all(
    databases: Databases, valkey: Valkey, deploy: Deploy, tmp_path: Path
) -> None:
    """Whichever of two server processes is asked tells what both measured, and what the worker did."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    deployment = deploy(databases.migrated("sqlite"), valkey.url)
    deployment.env |= {
        "FIRSTSEEN_METRICS_TOKEN": TOKEN,
        "WEB_CONCURRENCY": "2",
        "TMPDIR": str(temporary),
        "FIRSTSEEN_SWEEP": "200ms",
    }
    deployment.start()
    ids = [f"evt_{number}" for number in range(COUNT)]
    for event_id in ids:
        # A connection for each, so that both processes get some.
        body, headers = stripe_delivery(stripe_event(event_id))
        deployment.post("stripe", body, headers | {"Connection": "close"}).raise_for_status()
    deployment.wait_handled(ids)
    wait_until(lambda: scrape(deployment).get(("firstseen_attempts_total", "finish", "stripe")) == COUNT, 30)
    for _ in range(6):
        read = scrape(deployment)
        assert read["firstseen_record_batch_events_count",] == COUNT
        assert read["firstseen_deliveries_total", "first seen", "stripe"] == COUNT
        assert read["firstseen_nudges_total", "taken"] == COUNT
        assert read["firstseen_workers",] == 1
    (folder,) = temporary.glob("firstseen-metrics-*")
    assert len(list(folder.glob("histogram_*.db"))) == 2
    (web,) = deployment.webs
    web.terminate()
    assert web.wait_exit() == 0
    assert not folder.exists()
