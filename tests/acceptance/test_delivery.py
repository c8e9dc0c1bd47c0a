"""From delivery to handler: each event runs once, however often it is delivered."""

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from typing import NamedTuple

from tests.conftest import ON_EVERY_BROKER
from tests.services.deployment import Deployment
from tests.services.ledger import Ledger
from tests.services.signing import stripe_delivery, stripe_event
from tests.services.waiting import wait_until

EVENTS, COPIES, THREADS = 400, 3, 16


class Answer(NamedTuple):
    """The response to one delivery."""

    event_id: str
    status: int
    replayed: bool
    body: bytes


def deliver_copies(deployment: Deployment, ids: list[str]) -> list[Answer]:
    """Deliver each event three times, shuffled, over kept connections of several threads."""
    signed = {event_id: stripe_delivery(stripe_event(event_id)) for event_id in ids}
    order = ids * COPIES
    random.Random(7).shuffle(order)
    urls = deployment.urls
    with ThreadPoolExecutor(THREADS) as pool:
        lanes = [
            pool.submit(
                deliver, urls[lane % len(urls)], [(name, *signed[name]) for name in order[lane::THREADS]]
            )
            for lane in range(THREADS)
        ]
        return [answer for lane in lanes for answer in lane.result()]


def deliver(url: str, deliveries: list[tuple[str, bytes, dict[str, str]]]) -> list[Answer]:
    """Post these deliveries one after another over one connection."""
    answers = []
    with closing(HTTPConnection(url.removeprefix("http://"), timeout=30)) as connection:
        for event_id, body, headers in deliveries:
            connection.request("POST", "/webhooks/stripe", body, headers)
            answer = connection.getresponse()
            replayed = answer.getheader("Idempotent-Replayed") == "true"
            answers.append(Answer(event_id, answer.status, replayed, answer.read()))
    return answers


@ON_EVERY_BROKER
def test_every_event_runs_once(deployment: Deployment) -> None:
    """400 events delivered three times each, concurrently, get 200 and run their handler once."""
    deployment.start(worker=2)
    ids = [f"evt_{number}" for number in range(EVENTS)]
    answers = deliver_copies(deployment, ids)
    assert Counter(answer.status for answer in answers) == {200: EVENTS * COPIES}
    firsts = Counter(answer.event_id for answer in answers if not answer.replayed)
    assert firsts == Counter(ids), "of each event's answers, one is the first's"
    assert len({answer.body for answer in answers}) == EVENTS, "a duplicate's answer is the first's"
    deployment.wait_handled(ids, 60)
    ledger = Ledger(deployment.database_url)
    wait_until(lambda: ledger.states() == {"done": EVENTS}, "every event to be done")
    assert Counter(deployment.handlers.lines()) == Counter(ids), "each event's handler ran once"
    sums = "sum(duplicates) AS duplicates, sum(conflicts) AS conflicts, max(attempts) AS attempts"
    (found,) = ledger.rows(f"SELECT {sums} FROM event")
    assert {name: int(value) for name, value in found.items()} == {
        "duplicates": EVENTS * (COPIES - 1),
        "conflicts": 0,
        "attempts": 1,
    }
