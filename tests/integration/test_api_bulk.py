"""Bulk operations through the API: counted first, planned in one transaction, stepped by every sweeper."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from sqlalchemy import func, select, update

from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, EVENT
from tests.integration.steps import change, count, deliver, deliver_all
from tests.services.api import BOARD, Api, problem
from worker.sweeper import REPLAY_BATCH, REPLAY_ROUNDS, continue_bulk_operations

RETRY_DEAD = {"what": "retry", "filter": {"state": "dead"}}
KILLED = """
import os, signal, sys
from receiver.ledger.control import bulk
from receiver.ledger.store import Store
from worker import sweeper

real, left = bulk.BulkStep, [{rounds}]

def step(*arguments):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)

bulk.BulkStep = step
sweeper.continue_bulk_operations(Store(sys.argv[1]))
"""
"""Dies after the actions of its last batch and before their commit."""


def dead_events(store: Store, number: int) -> list[UUID]:
    """Record this many events and make them dead."""
    events = deliver_all(store, number)
    with store.write() as connection:
        connection.execute(
            update(EVENT).where(EVENT.c.id.in_(events)).values(state="dead", finished_at=store.now())
        )
    return events


def acted(store: Store) -> tuple[int, int]:
    """Count the actions, and the events with an action."""
    with store.read() as connection:
        counted = select(func.count(), func.count(ACTION.c.event.distinct()))
        return tuple(connection.execute(counted).one())


def test_a_dry_run_counts_and_does_nothing(api: Api, store: Store) -> None:
    """It answers 200 with the count and plans no bulk operation."""
    dead_events(store, 3)
    deliver(store, "evt_alive")
    answer = api.post("/v1/replays", {**RETRY_DEAD, "dry_run": True})
    expected = {"what": "retry", "filter": {"state": "dead"}, "dry_run": True, "total": 3}
    assert (answer.status_code, answer.json) == (200, expected)
    assert continue_bulk_operations(store) == 0
    assert count(store, EVENT.c.state == "dead") == 3


def test_a_bulk_run_is_listed_at_once_and_done_by_a_sweeper(api: Api, store: Store) -> None:
    """A sweep finishes the operation; events that die after the 202 are not part of it."""
    dead_events(store, REPLAY_BATCH + 1)
    started = api.post("/v1/replays", RETRY_DEAD)
    late = deliver(store, "evt_late").event
    change(store, late, state="dead")
    assert (started.status_code, started.json["total"], started.json["open"]) == (
        202,
        REPLAY_BATCH + 1,
        REPLAY_BATCH + 1,
    )
    assert continue_bulk_operations(store) == REPLAY_BATCH + 1
    ended = api.get(started.headers["Location"]).json
    assert (ended["done"], ended["skipped"], ended["open"]) == (REPLAY_BATCH + 1, 0, 0)
    assert ended["finished_at"]
    assert ended["who"] == "api:ops"
    assert count(store, EVENT.c.state == "dead") == 1
    assert continue_bulk_operations(store) == 0


def test_events_that_moved_on_are_skipped(api: Api, store: Store) -> None:
    """A bulk rerun skips an event whose generation changed since it was planned."""
    events = dead_events(store, 3)
    started = api.post("/v1/replays", {"what": "rerun", "filter": {"source": "stripe"}})
    change(store, events[0], generation=1)
    continue_bulk_operations(store)
    ended = api.get(started.headers["Location"]).json
    assert (ended["total"], ended["done"], ended["skipped"], ended["open"]) == (3, 2, 1, 0)


def test_sweepers_at_once_do_nothing_twice(api: Api, store: Store) -> None:
    """Concurrent sweepers share the steps of two bulk operations."""
    dead_events(store, 450)
    paths = [api.post("/v1/replays", {**RETRY_DEAD, "filter": {"type": "invoice.paid"}}).headers["Location"]]
    paths.append(
        api.post("/v1/replays", {"what": "discard", "filter": {"state": "received"}}).headers["Location"]
    )
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: continue_bulk_operations(store), range(4)))
    continue_bulk_operations(store)
    assert [api.get(path).json["finished_at"] is not None for path in paths] == [True, True]
    assert acted(store) == (450, 450)


def test_a_pass_ends_though_much_is_left(api: Api, store: Store) -> None:
    """One pass does a bounded number of steps, and the next continues."""
    number = REPLAY_BATCH * REPLAY_ROUNDS + 1
    dead_events(store, number)
    api.post("/v1/replays", RETRY_DEAD)
    assert continue_bulk_operations(store) == number - 1
    assert continue_bulk_operations(store) == 1


def test_a_killed_sweeper_costs_nothing(api: Api, store: Store) -> None:
    """A sweeper killed in its third batch leaves two done; another does the rest, and nothing twice."""
    dead_events(store, 350)
    path = api.post("/v1/replays", RETRY_DEAD).headers["Location"]
    url = store.url.render_as_string(hide_password=False)
    argv = [sys.executable, "-c", KILLED.format(rounds=3), url]
    ended = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    halfway = api.get(path).json
    assert (halfway["done"], halfway["open"], halfway["finished_at"]) == (200, 150, None)
    continue_bulk_operations(store)
    assert api.get(path).json["done"] == 350
    assert acted(store) == (350, 350)


def test_the_same_key_starts_one_bulk_run(api: Api, store: Store) -> None:
    """A repeated request gets the stored response, with the first operation's id."""
    dead_events(store, 2)
    first = api.post("/v1/replays", RETRY_DEAD, once="k1")
    continue_bulk_operations(store)
    again = api.post("/v1/replays", RETRY_DEAD, once="k1")
    assert again.data == first.data
    assert again.headers["Location"] == first.headers["Location"]


def test_a_filter_of_nothing_ends_at_once(api: Api, store: Store) -> None:
    """A bulk operation without events is finished after one pass."""
    path = api.post("/v1/replays", RETRY_DEAD).headers["Location"]
    assert continue_bulk_operations(store) == 0
    assert api.get(path).json["finished_at"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"what": "retry"}, "filter is missing"),
        ({"what": "promote", "filter": {}}, "what is wrong"),
        ({"what": "retry", "filter": {"stat": "dead"}}, "filter.stat is unknown"),
        ({"what": "retry", "filter": {"state": "asleep"}}, "filter.state is wrong"),
        ({"what": "retry", "filter": {"since": 5}}, "filter.since is wrong"),
        ({"what": "retry", "filter": {}, "dry_run": 1}, "dry_run is wrong"),
    ],
)
def test_a_wrong_bulk_run_is_refused(api: Api, body: dict[str, object], sentence: str) -> None:
    """The filter has no default, and an unknown part is refused."""
    refused = api.post("/v1/replays", body)
    assert problem(refused) == (422, "invalid-request")
    assert sentence in refused.json["detail"]


def test_a_read_only_key_sees_how_far_it_is(api: Api, store: Store) -> None:
    """A read-only key may read the progress."""
    dead_events(store, 1)
    path = api.post("/v1/replays", RETRY_DEAD).headers["Location"]
    assert api.get(path, key=BOARD).json["open"] == 1
