"""`/metrics`: authentication, counters and gauges, on both databases."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

from receiver import metrics
from receiver.ledger.counters import Rejected, count_sweep, record_rejections
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import Retention, expire, prune, record_heartbeat, settle
from receiver.ledger.reports import figures
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.metrics import Instruments, metrics_views
from receiver.problems import answer_problems
from receiver.telemetry import Observer
from tests.integration.steps import LEASE, deliver, hooked, statements
from tests.services.claiming import claim

TOKEN = "metrics-token-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
Samples = dict[tuple[str, tuple[str, ...]], float]


def client_of(store: Store, token: str = TOKEN) -> FlaskClient:
    """Serve /metrics alone."""
    app = Flask(__name__)
    instruments = Instruments()
    Observer(instruments).watch(app)
    app.register_blueprint(metrics_views(store, token, instruments))
    answer_problems(app)
    return app.test_client()


def scrape(client: FlaskClient) -> Samples:
    """Return every sample by its name and sorted label values."""
    answer = client.get("/metrics", headers=BEARER)
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture
def client(store: Store, monkeypatch: pytest.MonkeyPatch) -> FlaskClient:
    """Serve /metrics of an empty ledger, without its cache."""
    monkeypatch.setattr(metrics, "CACHE_SECONDS", -1.0)
    return client_of(store)


@pytest.mark.parametrize(
    ("token", "given", "status"),
    [
        ("", BEARER, 404),
        ("", {}, 404),
        (TOKEN, {}, 401),
        (TOKEN, {"Authorization": "Bearer "}, 401),
        (TOKEN, {"Authorization": f"Basic {TOKEN}"}, 401),
        (TOKEN, {"Authorization": f"Bearer {TOKEN}x"}, 401),
        (TOKEN, {"Authorization": "Bearer \udcff"}, 401),
        (TOKEN, {"Authorization": f"bearer {TOKEN}"}, 200),
    ],
)
def test_only_the_token_opens_it(tmp_path: Path, token: str, given: dict[str, str], status: int) -> None:
    """Without a configured token it is 404; any other token is 401."""
    store = Store(f"sqlite:///{tmp_path}/none.db")
    answer = client_of(store, token).get("/metrics", headers=given)
    store.close()
    assert answer.status_code == status
    assert TOKEN not in answer.text
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


def test_every_process_is_counted(store: Store, client: FlaskClient) -> None:
    """Deliveries, attempts, rejections and sweeps of every process are counted."""
    held = claim(store, deliver(store, "evt_1").event, lease=LEASE, worker="w")
    assert held
    settle(store, [(held, Outcome(Move.FINISH))])
    deliver(store, "evt_1")
    deliver(store, "evt_1", b'{"other": 1}')
    claim(store, deliver(store, "evt_2").event, lease=LEASE, worker="w")
    store.shift += LEASE
    assert expire(store) == 1
    record_rejections(store, [Rejected("stripe", "expired")] * 3)
    count_sweep(store, {"expired": 1, "set_to_work": 0})
    record_heartbeat(store, "w")
    read = scrape(client)
    ages = {key for key in read if key[0].endswith("_seconds")}
    measured = {key for key in read if key[0].endswith(("_created", "_sum", "_count", "_bucket"))}
    assert {key: read[key] for key in read.keys() - ages - measured if read[key]} == {
        ("firstseen_ledger_up", ()): 1,
        ("firstseen_deliveries_total", ("first seen", "stripe")): 2,
        ("firstseen_deliveries_total", ("duplicate", "stripe")): 1,
        ("firstseen_deliveries_total", ("conflict", "stripe")): 1,
        ("firstseen_attempts_total", ("finish", "stripe")): 1,
        ("firstseen_attempts_total", ("expire", "stripe")): 1,
        ("firstseen_rejections_total", ("expired", "stripe")): 3,
        ("firstseen_sweeps_total", ("expired",)): 1,
        ("firstseen_events", ("stripe", "waiting")): 1,
        ("firstseen_due_events", ()): 1,
        ("firstseen_workers", ()): 1,
    }
    assert read["firstseen_oldest_unfinished_seconds", ()] >= 60


def test_totals_only_grow(store: Store, client: FlaskClient) -> None:
    """Pruning does not lower a total, which Prometheus would take for a restart."""
    held = claim(store, deliver(store, "evt_1").event, lease=LEASE, worker="w")
    assert held
    settle(store, [(held, Outcome(Move.FINISH))])
    deliver(store, "evt_1")
    record_rejections(store, [Rejected("stripe", "expired")])
    before = scrape(client)
    store.shift += timedelta(days=500)
    pruned = prune(store, {"stripe": Retention(timedelta(days=400), timedelta(days=30))})
    assert (pruned["ids"], pruned["rejections"]) == (1, 1)
    after = scrape(client)
    totals = {key for key in before if key[0].endswith("_total")}
    assert {key: after[key] for key in totals} == {key: before[key] for key in totals}


def test_an_attempt_that_was_taken_over_counts_once(store: Store, client: FlaskClient) -> None:
    """A settlement without a claim is not counted."""
    held = claim(store, deliver(store, "evt_1").event, lease=LEASE, worker="w")
    assert held
    assert [bool(settle(store, [(held, Outcome(Move.FINISH))])) for _ in range(2)] == [True, False]
    assert scrape(client)["firstseen_attempts_total", ("finish", "stripe")] == 1


def test_scrapes_share_one_look_at_the_ledger(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrapes within a few seconds query the ledger once."""
    monkeypatch.setattr(metrics, "CACHE_SECONDS", 3600.0)
    client = client_of(store)
    with statements(store) as asked:
        scrape(client)
        once = len(asked)
        scrape(client)
    assert len(asked) == once > 0


def test_without_a_ledger_it_says_so(tmp_path: Path) -> None:
    """Without a database the ledger is reported down, and the process's own metrics are served."""
    store = Store(f"sqlite:///{tmp_path}/none.db")
    client = client_of(store)
    client.get("/nowhere")
    read = scrape(client)
    store.close()
    assert read["firstseen_ledger_up", ()] == 0
    assert read["firstseen_answer_seconds_count", ("404", "unknown")] == 1
    assert ("firstseen_workers", ()) not in read


def test_no_event_that_is_done_is_read(store: Store) -> None:
    """Every query of a growing table uses an index."""
    asked: list[tuple[str, object]] = []
    with hooked(store, "before_cursor_execute", lambda *given: asked.append((given[2], given[3]))):
        figures(store)
    explain = "EXPLAIN QUERY PLAN" if store.sqlite else "EXPLAIN"
    questions = [(f"{explain} {item}", values) for item, values in asked if item.startswith("SELECT")]
    with store.read() as connection:
        if not store.sqlite:
            # On empty tables a scan would be the cheaper plan.
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        steps = [str(step) for item in questions for step in connection.exec_driver_sql(*item)]
    assert len(steps) > 5
    scans = ("SCAN event", "SCAN call", "Seq Scan on event", "Seq Scan on call")
    assert [step for step in steps if any(scan in step for scan in scans)] == []


def test_processes_share_their_measures(tmp_path: Path) -> None:
    """Each reports what all in the folder measured, ended ones too; a half written file does not count."""
    one, other = Instruments(str(tmp_path)), Instruments(str(tmp_path))
    one.answered("/readyz", 200, 0.3)
    other.answered("/readyz", 200, 0.4)
    other.recorded(2)
    other.nudged("taken", 3)
    other.flush()
    del other
    (tmp_path / "1-half.new").write_text('{"answers": [["/readyz"')
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in one.collect()
        for sample in family.samples
    }
    assert samples["firstseen_answer_seconds_count", "/readyz", "200"] == 2
    assert samples["firstseen_answer_seconds_bucket", "/readyz", "200", "0.25"] == 0
    assert samples["firstseen_answer_seconds_bucket", "/readyz", "200", "0.5"] == 2
    assert samples["firstseen_answer_seconds_sum", "/readyz", "200"] == pytest.approx(0.7)
    assert samples["firstseen_record_batch_events_sum",] == 2
    assert samples["firstseen_nudges_total", "taken"] == 3


def test_writers_of_one_file_do_not_meet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A scrape and the event loop write the same file: it is always whole, and never an older one."""
    instruments = Instruments(str(tmp_path))

    def write(_: int) -> None:
        for _ in range(200):
            instruments.answered("/readyz", 200, 0.1)
            instruments.flush()
            for file in tmp_path.glob("*.json"):
                json.loads(file.read_text())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    (file,) = tmp_path.glob("*.json")
    ((_, _, counts),) = json.loads(file.read_text())["answers"]
    assert sum(counts[:-1]) == 800
    assert caplog.messages == []
