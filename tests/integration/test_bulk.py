"""Bulk operations: planned first, each step done at most once, by any number of processes."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from receiver.ledger.control import (
    bulk_candidates,
    bulk_progress,
    discard,
    plan_bulk,
    rerun,
    retry,
    step_bulk,
)
from receiver.ledger.errors import NotAllowed, UnknownReplay
from receiver.ledger.filter import EventFilter
from receiver.ledger.states import Move, State
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, EVENT
from tests.integration.steps import ONLY_POSTGRES, change, count, deliver, deliver_all, end, later, row
from tests.services.processes import clean_environment
from tests.services.waiting import wait_until

WORK = """
import sys
from uuid import UUID
from receiver.ledger.control import step_bulk
from receiver.ledger.store import Store
store = Store(sys.argv[1])
while step_bulk(store, UUID(sys.argv[2]), batch=int(sys.argv[3])).left:
    pass
"""


def finish(store: Store, replay: UUID, batch: int = 100) -> tuple[int, int]:
    """Step a bulk operation to its end; return how many events this caller changed and skipped."""
    done = skipped = 0
    left = True
    while left:
        stepped = step_bulk(store, replay, batch=batch)
        done, skipped, left = done + stepped.done, skipped + stepped.skipped, stepped.left
    return done, skipped


def all_done(store: Store, number: int) -> list[UUID]:
    """Record this many events and make them done."""
    events = deliver_all(store, number)
    with store.write() as connection:
        ended = {"state": State.DONE, "finished_at": store.now()}
        connection.execute(EVENT.update().values(**ended))
    return events


def reruns(store: Store) -> list[tuple[UUID, int]]:
    """Return the number of audit rows of each event."""
    with store.read() as connection:
        counted = select(ACTION.c.event, func.count()).group_by(ACTION.c.event)
        return [(item, number) for item, number in connection.execute(counted)]


def start(store: Store, replay: UUID, batch: int) -> subprocess.Popen[bytes]:
    """Step a bulk operation in a process of its own."""
    url = store.url.render_as_string(hide_password=False)
    argv = [sys.executable, "-c", textwrap.dedent(WORK), url, str(replay), str(batch)]
    return subprocess.Popen(argv, env=clean_environment(PYTHONPATH=":".join(sys.path)))


def test_a_bulk_run_acts_on_all_that_its_filter_finds(store: Store) -> None:
    """Every matching event is rerun once, in batches, and no other is changed."""
    events = all_done(store, 7)
    other = deliver(store, "evt_x", source="github").event
    replay = plan_bulk(store, Move.RERUN, EventFilter(source="stripe"), "ann")
    assert replay.total == 7
    assert finish(store, replay.id, batch=3) == (7, 0)
    assert {row(store, event).generation for event in events} == {1}
    assert row(store, other).generation == 0


def test_the_list_holds_only_what_the_action_allows(store: Store) -> None:
    """Only events that allow the action are counted and planned: none that is running or erased."""
    events = all_done(store, 4)
    change(store, events[0], body=None)
    change(store, events[1], state=State.RECEIVED)
    assert bulk_candidates(store, Move.RERUN, EventFilter()) == 2
    assert plan_bulk(store, Move.RERUN, EventFilter(), "ann").total == 2
    assert bulk_candidates(store, Move.DISCARD, EventFilter()) == 1


def test_a_doubled_run_does_nothing_twice(store: Store) -> None:
    """Of two operations on the same events, the second skips every one."""
    all_done(store, 5)
    first, second = (plan_bulk(store, Move.RERUN, EventFilter(), "ann") for _ in range(2))
    assert finish(store, first.id) == (5, 0)
    assert finish(store, second.id) == (0, 5)
    assert finish(store, first.id) == (0, 0), "a finished run did something again"
    assert {number for _, number in reruns(store)} == {1}


def test_a_step_whose_event_moved_on_is_skipped(store: Store) -> None:
    """An event that was rerun or deleted since the plan is skipped and counted as such."""
    events = all_done(store, 3)
    replay = plan_bulk(store, Move.RERUN, EventFilter(), "ann")
    rerun(store, events[0], "bob", generation=0)
    end(store, events[0])
    with store.write() as connection:
        connection.execute(EVENT.delete().where(EVENT.c.id == events[1]))
    assert finish(store, replay.id) == (1, 2)
    found = bulk_progress(store, replay.id).as_json()
    assert (found["done"], found["skipped"], found["open"], found["total"]) == (1, 2, 0, 3)


def test_a_retry_step_is_done_once_though_the_generation_stays(store: Store) -> None:
    """An event that dies again after its step is not retried by the same operation."""
    event = deliver(store).event
    end(store, event, Move.GIVE_UP)
    replay = plan_bulk(store, Move.RETRY, EventFilter(state=State.DEAD), "ann")
    assert finish(store, replay.id) == (1, 0)
    end(store, event, Move.GIVE_UP)
    assert finish(store, replay.id) == (0, 0)
    assert row(store, event).state == "dead"


def test_concurrent_threads_do_each_event_once(store: Store) -> None:
    """Four threads share the steps of one operation."""
    all_done(store, 200)
    replay = plan_bulk(store, Move.RERUN, EventFilter(), "ann")
    with ThreadPoolExecutor(4) as pool:
        shares = list(pool.map(lambda _: finish(store, replay.id, batch=7), range(4)))
    assert sum(done for done, _ in shares) == 200
    assert sum(skipped for _, skipped in shares) == 0
    assert {number for _, number in reruns(store)} == {1}


def test_two_processes_do_each_event_once(store: Store) -> None:
    """Two processes share the steps of one operation, and both end."""
    all_done(store, 600)
    replay = plan_bulk(store, Move.RERUN, EventFilter(), "ann")
    runners = [start(store, replay.id, 5) for _ in range(2)]
    assert [runner.wait(60) for runner in runners] == [0, 0]
    assert sorted(number for _, number in reruns(store)) == [1] * 600
    assert count(store, EVENT.c.generation == 1) == 600
    assert bulk_progress(store, replay.id).as_json()["finished_at"] is not None


def test_a_killed_run_resumes_and_nothing_is_done_twice(store: Store) -> None:
    """Kill -9 loses no step and repeats none."""
    all_done(store, 3000)
    replay = plan_bulk(store, Move.RERUN, EventFilter(), "ann")
    runner = start(store, replay.id, 1)
    wait_until(lambda: bulk_progress(store, replay.id).as_json()["done"] > 20, "the run to be under way")
    runner.kill()
    runner.wait(60)
    before = bulk_progress(store, replay.id).as_json()
    assert before["open"] > 0, "it was over before it was killed"
    assert before["done"] == count(store, EVENT.c.generation == 1), "marks and actions differ"
    finish(store, replay.id)
    assert count(store, EVENT.c.generation == 1) == 3000
    assert {number for _, number in reruns(store)} == {1}


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_locked_event_is_left_for_later(store: Store) -> None:
    """A step does not wait for an event that another transaction has locked."""
    events = all_done(store, 3)
    replay = plan_bulk(store, Move.RERUN, EventFilter(), "ann")
    with store.write() as connection:
        connection.execute(select(EVENT.c.id).where(EVENT.c.id == events[1]).with_for_update())
        first = step_bulk(store, replay.id)
    assert (first.done, first.skipped, first.left) == (2, 0, True)
    assert finish(store, replay.id) == (1, 0)


def test_discarding_many_says_by_whom(store: Store) -> None:
    """A bulk discard sets the same reason as a single one."""
    events = deliver_all(store, 2)
    finish(store, plan_bulk(store, Move.DISCARD, EventFilter(), "ann").id)
    assert {row(store, event).reason for event in events} == {"Discarded by ann."}


def test_a_run_of_nothing_is_over_at_once(store: Store) -> None:
    """An operation without events is finished by its first step."""
    replay = plan_bulk(store, Move.RETRY, EventFilter(), "ann")
    assert (replay.total, finish(store, replay.id)) == (0, (0, 0))
    assert bulk_progress(store, replay.id).as_json()["finished_at"] is not None


def test_an_event_that_dies_during_the_run_is_not_on_its_list(store: Store) -> None:
    """Events that match only after the plan are not part of the operation."""
    dead = deliver(store, "evt_1").event
    end(store, dead, Move.GIVE_UP)
    replay = plan_bulk(store, Move.RETRY, EventFilter(state=State.DEAD), "ann")
    late = deliver(store, "evt_2").event
    end(store, late, Move.GIVE_UP)
    assert finish(store, replay.id) == (1, 0)
    assert row(store, late).state == "dead"


def test_only_peoples_actions_run_in_bulk(store: Store) -> None:
    """A worker's move and an unknown operation are refused."""
    with pytest.raises(NotAllowed, match="not claim"):
        plan_bulk(store, Move.CLAIM, EventFilter(), "ann")
    with pytest.raises(UnknownReplay):
        step_bulk(store, uuid4())


def test_progress_tells_what_was_asked_and_by_whom(store: Store) -> None:
    """The progress has the filter, the person's name and the times, besides the counts."""
    later(store, days=-3)
    discard(store, deliver(store).event, "bob")
    replay = plan_bulk(store, Move.RETRY, EventFilter(source="stripe", state=State.DEAD), "ann")
    found = bulk_progress(store, replay.id).as_json()
    assert found["filter"] == {"source": "stripe", "state": "dead"}
    assert (found["what"], found["who"], found["open"], found["finished_at"]) == ("retry", "ann", 1, None)
    assert retry(store, only_event(store), "ann").was == State.DEAD
    assert finish(store, replay.id) == (1, 0), "a waiting event may be retried too"


def only_event(store: Store) -> UUID:
    """Return the id of the only event."""
    with store.read() as connection:
        found: UUID = connection.execute(select(EVENT.c.id)).scalar_one()
    return found
