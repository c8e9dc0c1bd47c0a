"""The management API on a real deployment: several web processes, and workers of which one is killed."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.conftest import ON_SQLITE
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.site import API_KEY
from tests.services.waiting import wait_until

HEADERS = {"Authorization": f"Bearer {API_KEY}"}


def call(deployment: Deployment, method: str, path: str, *, web: int = -1, **options: Any) -> httpx.Response:
    """Send one request with the API key to one of the web processes."""
    headers = HEADERS | options.pop("headers", {})
    return deployment.client.request(method, deployment.urls[web] + path, headers=headers, **options)


def done(deployment: Deployment, ledger: Ledger, events: list[str]) -> None:
    """Deliver these events and wait until all are done."""
    deployment.deliver_many(events)
    wait_until(lambda: ledger.states() == {"done": len(events)}, lambda: f"all done: {ledger.states()}")


def test_a_rerun_is_nudged_after_its_commit(deployment: Deployment) -> None:
    """The nudge alone starts the second run: the sweeper sleeps for an hour."""
    deployment.start_worker(FIRSTSEEN_SWEEP="1h")
    ledger = Ledger(deployment.database_url)
    done(deployment, ledger, ["evt_1"])
    event = call(deployment, "GET", "/v1/events").json()["data"][0]["id"]
    answer = call(deployment, "POST", f"/v1/events/{event}/rerun", json={"generation": 0})
    assert answer.status_code == 200, answer.text
    wait_until(lambda: deployment.handlers.lines().count("evt_1") == 2, lambda: "the second run")


def test_copies_at_several_web_processes_have_one_effect(deployment: Deployment) -> None:
    """Copies under one idempotency key, sent to two processes by many threads, start one bulk operation."""
    deployment.start(web=2, worker=0)

    def start(number: int) -> httpx.Response:
        body = {"what": "retry", "filter": {"source": "stripe"}}
        key = {"Idempotency-Key": "k1"}
        return call(deployment, "POST", "/v1/replays", web=number % 2, json=body, headers=key)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(start, range(32)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.content for answer in answers if answer.status_code == 202}) == 1
    assert len(Ledger(deployment.database_url).rows("SELECT id FROM replay")) == 1


def test_a_bulk_run_survives_its_worker(deployment: Deployment) -> None:
    """A second worker finishes a bulk operation whose worker was killed, and each event is rerun once."""
    deployment.env |= {"FIRSTSEEN_SWEEP": "1s", "FIRSTSEEN_LEASE": "5s"}
    deployment.start()
    ledger, events = Ledger(deployment.database_url), [f"evt_{number}" for number in range(400)]
    done(deployment, ledger, events)
    started = call(deployment, "POST", "/v1/replays", json={"what": "rerun", "filter": {"state": "done"}})
    path = started.headers["Location"]
    wait_until(lambda: call(deployment, "GET", path).json()["done"] > 0, lambda: "its first step")
    deployment.forget(deployment.workers[0])
    deployment.start_worker()
    wait_until(lambda: call(deployment, "GET", path).json()["finished_at"], lambda: "the end of it")
    wait_until(lambda: ledger.states() == {"done": 400}, lambda: f"all done: {ledger.states()}", timeout=90)
    assert ledger.rows("SELECT DISTINCT generation FROM event") == [{"generation": 1}]
    assert len(ledger.rows("SELECT event FROM action WHERE what = 'rerun'")) == 400


@ON_SQLITE
def test_a_body_without_a_length_is_bounded_too(deployment: Deployment) -> None:
    """A chunked body over the limit is 413, not cut and read."""
    connection = http.client.HTTPConnection(deployment.url.removeprefix("http://"), timeout=30)
    chunks = [b'{"what": "retry", "filter": {}}', b" " * 65_536]
    headers = HEADERS | {"Content-Type": "application/json", "Idempotency-Key": "k1"}
    connection.request("POST", "/v1/replays", iter(chunks), headers, encode_chunked=True)
    answer = connection.getresponse()
    assert (answer.status, answer.read().find(b"body_too_large") > 0) == (413, True)
    connection.close()
    assert Ledger(deployment.database_url).rows("SELECT id FROM replay") == []
