"""The log lines of web and worker: the fields of each line, and no secret or payload in any."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.services.databases import Databases
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.listener import Heard, Listener
from tests.services.signing import stripe_delivery, stripe_event, stripe_headers
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until

MARK = "canary7d0c"
"""Part of every secret and of all personal data in this test."""

API_KEY, TOKEN, SECRET = f"{MARK}-api-key-0123", f"{MARK}-metrics-token", f"whsec_{MARK}"
PERSON = {"email": f"jane@{MARK}.example", "name": f"Jane {MARK}", "iban": f"DE00{MARK}"}

HANDLERS = """
import threading

from worker import Dead, handles


@handles("stripe", "raises")
def raises(event, calls):
    raise ValueError(f"cannot ship {event.data}") from KeyError(event.raw)


@handles("stripe", "dies")
def dies(event, calls):
    raise Dead(f"no such customer: {event.data}")


@handles("stripe", "thread")
def thread(event, calls):
    other = threading.Thread(target=lambda: {}[event.raw])
    other.start()
    other.join()
    raise TypeError(event.raw)


@handles("stripe", "refused")
def refused(event, calls):
    calls.shop.post("/no such/" + str(event.data), json={})


@handles("stripe", "*")
def calls(event, calls):
    person = event.data["data"]["object"]
    sent = {"params": {"who": person["email"]}, "headers": {"X-Person": person["iban"]}, "json": person}
    calls.shop.post(f"/{event.type}/{person['email']}", **sent)
"""

APIS = """
[shop]
base_url = "{url}"
dialect = "ietf"
auth = {{ type = "header", name = "X-Shop-Key", value_env = "SHOP_KEY" }}
quiet = "100ms"
deadline = "2s"
"""

HAPPENED = (
    "could not be recorded",
    "could not be settled",
    "raises failed",
    "thread failed",
    "Nothing caught this",
    "A send to shop: unknown",
    "A send to shop: rejected",
    "takes no alerts: it answered 500",
    "Broker unreachable",
    "Connection to broker lost",
)
"""Messages that must be logged, which proves that the test took every intended path."""

LEAKY = """
CREATE TRIGGER leaky_{table} BEFORE {verb} ON {table} WHEN {condition} BEGIN
    SELECT RAISE(ABORT, 'cannot store {mark}');
END
"""


def answer(heard: Heard) -> tuple[int, bytes] | None:
    """Answer a call by the first segment of its path, and echo its body."""
    echo = json.dumps({"echo": heard.body.decode(), "you": PERSON}).encode()
    return {"drops": None, "rejects": (400, echo), "hook": (500, echo)}.get(
        heard.path.split("/")[1], (201, echo)
    )


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    """Start a broker whose password is the canary."""
    server = Valkey().start()
    with server.client() as client:
        client.config_set("requirepass", MARK)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def deployment(
    databases: Databases, broker: Valkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Deploy on SQLite with the canary in every secret, a handler for each way to fail, and an API."""
    api = Listener(answer)
    url = broker.url.replace("://", f"://:{MARK}@")
    made = Deployment(tmp_path_factory.mktemp("logs"), databases.migrated("sqlite"), url)
    (made.handlers.folder / f"{made.handlers.module}.py").write_text(HANDLERS)
    (made.folder / "apis.toml").write_text(APIS.format(url=api.url))
    made.env |= {
        "FIRSTSEEN_APIS": str(made.folder / "apis.toml"),
        "SHOP_KEY": f"{MARK}-shop-key",
        "STRIPE_WEBHOOK_SECRET": SECRET,
        "FIRSTSEEN_SECRET_KEY": f"{MARK}-secret-key-of-thirty-two-characters",
        "FIRSTSEEN_API_KEYS": f"ops={API_KEY}",
        "FIRSTSEEN_METRICS_TOKEN": TOKEN,
        "FIRSTSEEN_ALERT_URL": f"{api.url}/hook/{MARK}",
        "FIRSTSEEN_SWEEP": "200ms",
        "FIRSTSEEN_ATTEMPTS": "2",
        "FIRSTSEEN_BACKOFF_MAX": "100ms",
    }
    yield made.start()
    made.stop()
    api.stop()


def lines(deployment: Deployment, name: str) -> list[dict[str, Any]]:
    """Return every complete line of a process; each is one JSON object."""
    ended = deployment.logs(name).splitlines(keepends=True)
    return [json.loads(line) for line in ended if line.endswith("\n")]


def send(deployment: Deployment, kind: str, data: dict[str, str] = PERSON, **headers: str) -> str:
    """Deliver an event of this type about a person; return its request id."""
    body, signed = stripe_delivery(stripe_event(f"evt_{kind}", kind, **data), secret=SECRET)
    given = {"Authorization": f"Bearer {MARK}", "Cookie": f"session={MARK}", "X-Note": MARK, **headers}
    url = f"{deployment.url}/webhooks/stripe?token={MARK}"
    answer = deployment.client.post(url, content=body, headers=signed | given)
    return str(answer.headers["X-Request-Id"])


def send_refused_requests(deployment: Deployment) -> None:
    """Send requests that are refused: forged, too large, unparsable, to unknown paths, with wrong keys."""
    client, body = deployment.client, json.dumps(stripe_event("evt_forged", **PERSON)).encode()
    webhook = f"{deployment.url}/webhooks/stripe"
    answers = [
        client.post(webhook, content=body, headers=stripe_headers(body, secret=f"wrong-{MARK}")),
        client.post(webhook, content=body, headers={"Stripe-Signature": MARK}),
        client.post(webhook, content=MARK.encode() * 200_000, headers={"Connection": "close"}),
        client.post(webhook, content=(torn := body[:-5]), headers=stripe_headers(torn, secret=SECRET)),
        client.post(f"{deployment.url}/webhooks/{MARK}?key={MARK}", content=body),
        client.get(f"{deployment.url}/{MARK}/{PERSON['email']}?key={MARK}"),
        client.request(MARK.upper(), f"{deployment.url}/{MARK}"),
        client.get(f"{deployment.url}/v1/events", headers={"Authorization": f"Bearer {MARK}-wrong"}),
        client.get(f"{deployment.url}/metrics", headers={"Authorization": f"Bearer {MARK}-wrong"}),
        client.post(
            f"{deployment.url}/v1/events/{'0' * 8}-0000-7000-8000-{'0' * 12}/retry?{MARK}={MARK}",
            headers={"Authorization": f"Bearer {API_KEY}", "Idempotency-Key": MARK},
            json={"note": MARK},
        ),
    ]
    assert [answer.status_code for answer in answers][:4] == [401, 401, 413, 200]
    assert all(answer.status_code >= 400 for answer in answers[4:])


def test_lines_say_what_they_are_about(deployment: Deployment) -> None:
    """A well-formed request id is kept and any other replaced; lines name their event, attempt and call.

    A usual delivery leaves no line, another body under its id does.
    """
    ledger = Ledger(deployment.database_url)
    assert send(deployment, "good", **{"X-Request-Id": "router-usual-01"}) == "router-usual-01"
    made = send(deployment, "other", **{"X-Request-Id": f"{MARK} and more"})
    assert re.fullmatch("[0-9a-f]{32}", made)
    wait_until(lambda: ledger.state("evt_good") == "done", deployment.logs)
    (row,) = ledger.rows("SELECT e.id AS event, c.id AS call FROM event e JOIN call c ON c.event = e.id"
                         " WHERE e.event_id = 'evt_good'")  # fmt: skip
    event, call = (re.sub("-", "", str(row[name])) for name in ("event", "call"))

    joan = PERSON | {"name": f"Joan {MARK}"}
    assert send(deployment, "good", joan, **{"X-Request-Id": "router-0123456789"}) == "router-0123456789"

    def mine() -> list[dict[str, Any]]:
        return [
            line for line in lines(deployment, "worker") if line.get("event", "").replace("-", "") == event
        ]

    def requests() -> list[dict[str, Any]]:
        return [line for line in lines(deployment, "web") if line.get("request") == "router-0123456789"]

    # A line is written after its subject: the response, the send, the end of the attempt.
    wait_until(lambda: len(mine()) >= 2 and requests(), deployment.logs)
    (asked,) = requests()
    assert (asked["event"].replace("-", ""), asked["event_id"]) == (event, "evt_good")
    assert (asked["status"], asked["verdict"], asked["source"]) == (200, "conflict", "stripe")
    assert "router-usual-01" not in deployment.logs("web")
    assert [line["attempt"] for line in mine()] == [1, 1]
    assert [line.get("call", "").replace("-", "") for line in mine()] == [call, ""]
    assert {"time", "level", "logger", "message"} <= set(mine()[0])


def test_no_secret_and_no_payload_is_ever_logged(deployment: Deployment, broker: Valkey) -> None:
    """On every path, errors included, lines name types and places but no values."""
    ledger = Ledger(deployment.database_url)
    for table, verb, condition in (
        ("event", "INSERT", "NEW.event_id = 'evt_web_breaks'"),
        ("attempt", "UPDATE", "NEW.event IN (SELECT id FROM event WHERE event_id = 'evt_worker_breaks')"),
    ):
        ledger.change(LEAKY.format(table=table, verb=verb, condition=condition, mark=MARK))
    send_refused_requests(deployment)
    for kind in ("web_breaks", "worker_breaks", "raises", "dies", "thread", "refused", "rejects", "drops"):
        send(deployment, kind, traceparent=MARK)
    wait_until(
        lambda: ledger.state("evt_raises") == "dead" and ledger.state("evt_rejects") == "dead",
        deployment.logs,
    )
    broker.kill()
    send(deployment, "fine")
    wait_until(lambda: ledger.state("evt_fine") == "done", deployment.logs)
    wait_until(
        lambda: all(text in deployment.logs() for text in HAPPENED),
        lambda: f"{[text for text in HAPPENED if text not in deployment.logs()]} in\n{deployment.logs()}",
    )
    (kept,) = [row["error"] for row in ledger.attempts("evt_raises")][:1]
    assert PERSON["email"] in kept, "the ledger has the traceback, text and all"
    (failed,) = [line for line in lines(deployment, "worker") if "raises failed" in line["message"]][:1]
    assert [item["type"] for item in failed["failure"]] == ["ValueError", "KeyError"]
    assert re.fullmatch(rf"{deployment.handlers.module}:9 raises", failed["failure"][0]["at"][-1])
    assert any("IntegrityError" in str(line.get("failure")) for line in lines(deployment, "web"))
    found = [line for line in deployment.logs().splitlines() if MARK in line.lower()]
    assert found == []


def test_a_stopping_web_loses_no_line(deployment: Deployment) -> None:
    """Queued log lines are written before the process ends at SIGTERM."""
    web = deployment.webs[0]
    asked = [deployment.client.get(f"{deployment.url}/nothing").headers["X-Request-Id"] for _ in range(100)]
    web.terminate()
    assert web.wait_exit() == 0
    logged = [line.get("request") for line in lines(deployment, "web")]
    assert [item for item in asked if logged.count(item) != 1] == []
