"""The worker's runner, sweeper, reopener and nudges, on real ledgers and brokers."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest

from config.logs import line_formatter
from config.settings import Settings
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Delivery, record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due, expire, sweep
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.services.databases import driver_url
from tests.services.ledger import Ledger
from tests.services.valkey import Valkey
from tests.services.waiting import wait_until
from worker import runner as runner_module
from worker.attempt import AttemptPolicy, attempt
from worker.consumer import Worker
from worker.registry import Handler, Registry
from worker.runner import Limits, Runner
from worker.sweeper import Pruner, Reopener, Sweeper, Swept
from worker.sweeper import run as run_sweeps

LEASE, SWEEP = timedelta(seconds=60), timedelta(seconds=5)
DONE = Outcome(Move.FINISH)
MakeRunner = Callable[..., Runner]


@pytest.fixture
def store(migrated_url: str) -> Iterator[Store]:
    """Open the ledger of an empty, migrated database."""
    opened = Store(driver_url(migrated_url), pool=5)
    yield opened
    opened.close()


class GatedHandler:
    """An attempt that notes its claims and waits while `go_on` is cleared."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, held: Claim) -> Outcome:
        """Note, wait, finish."""
        self.ran.append(held.event_id)
        self.begun.release()
        assert self.go_on.wait(60)
        return DONE


@pytest.fixture
def handler() -> GatedHandler:
    """Return a new gated handler."""
    return GatedHandler()


@pytest.fixture
def make_runner(store: Store) -> Iterator[MakeRunner]:
    """Make runners with a lease of a minute and four slots; their threads end with the test."""
    made: list[Runner] = []

    def make(handler: Callable[[Claim], Outcome], **changes: Any) -> Runner:
        limits = {"lease": LEASE, "max_runtime": timedelta(minutes=10), "sweep": SWEEP, "concurrency": 4}
        made.append(Runner(store, handler, Limits(**limits | changes)))
        return made[-1]

    yield make
    for runner in made:
        runner.stopping.set()
        runner._own.shutdown()


def add(store: Store, *event_ids: str) -> list[UUID]:
    """Record events and return their ids in the ledger."""
    deliveries = [Delivery("stripe", name, "invoice.paid", b"{}") for name in event_ids]
    return [verdict.event for verdict in record(store, deliveries)]


def no_calls(_held: Claim) -> None:
    """Give handlers no call context."""


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Run a function in a new thread."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_an_event_runs_once(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """A nudge runs what is due; a repeated one does nothing."""
    runner = make_runner(handler)
    add(store, "evt_1")
    assert [runner.run_nudged(), runner.run_nudged()] == [1, 0]
    assert handler.ran == ["evt_1"]
    assert ledger.state("evt_1") == "done"
    assert runner.idle


def test_many_nudges_at_once_run_it_once(
    store: Store, make_runner: MakeRunner, handler: GatedHandler
) -> None:
    """Concurrent nudges of one event run it once."""
    runner = make_runner(handler, concurrency=8)
    add(store, "evt_1")
    threads = [in_thread(runner.run_nudged) for _ in range(8)]
    for thread in threads:
        thread.join(60)
    assert handler.ran == ["evt_1"]


def test_no_more_run_at_once_than_there_are_slots(
    store: Store, make_runner: MakeRunner, handler: GatedHandler
) -> None:
    """With every slot taken, neither a nudge nor the sweeper claims another event."""
    runner = make_runner(handler, concurrency=2)
    add(store, *(f"evt_{number}" for number in range(6)))
    store.shift = timedelta(hours=1)
    handler.go_on.clear()
    threads = [in_thread(runner.run_nudged) for _ in range(3)]
    for _ in range(2):
        assert handler.begun.acquire(timeout=60)
    assert runner.run_unattended() == 0, "no thread is idle"
    assert not handler.begun.acquire(timeout=0.3), "a third one runs"
    handler.go_on.set()
    for thread in threads:
        thread.join(60)
    assert len(handler.ran) == 6


def test_one_nudge_is_enough_for_idle_threads(
    store: Store, make_runner: MakeRunner, handler: GatedHandler
) -> None:
    """An event runs at once though its nudge was lost, or spent on another one that takes long."""
    runner = make_runner(handler)
    add(store, *(f"evt_{number}" for number in range(3)))
    handler.go_on.clear()
    thread = in_thread(runner.run_nudged)
    for _ in range(3):
        assert handler.begun.acquire(timeout=60), handler.ran
    assert sorted(handler.ran) == ["evt_0", "evt_1", "evt_2"]
    handler.go_on.set()
    thread.join(60)


def test_a_starting_worker_looks_for_work(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """What became due while no worker ran needs neither a nudge nor a sweep."""
    add(store, "evt_1", "evt_2")
    make_runner(handler).begin()
    wait_until(lambda: ledger.states() == {"done": 2}, "both to run")


def test_a_crowd_of_nudges_asks_an_empty_ledger_once(
    make_runner: MakeRunner, handler: GatedHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads that wake while one of them finds that nothing is due do not ask again."""
    asked, asking, go_on = 0, threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> list[Claim]:
        nonlocal asked
        asked += 1
        asking.set()
        assert go_on.wait(60)
        return claim_due(*arguments, **named)

    monkeypatch.setattr(runner_module, "claim_due", slow)
    runner = make_runner(handler, concurrency=16)
    first = in_thread(runner.run_nudged)
    assert asking.wait(60)
    # Their events may have been recorded after the first one asked, so one of these asks again.
    others = [in_thread(runner.run_nudged) for _ in range(15)]
    wait_until(lambda: runner._busy == 16, "all to wait for their turn")
    go_on.set()
    for thread in (first, *others):
        thread.join(60)
    assert asked == 2


def test_unattended_events_are_drained(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """Idle threads run every unattended event; a second call starts no further threads."""
    runner = make_runner(handler)
    names = [f"evt_{number}" for number in range(20)]
    add(store, *names)
    store.shift = timedelta(hours=1)
    handler.go_on.clear()
    assert runner.run_unattended() == 4
    for _ in range(4):
        assert handler.begun.acquire(timeout=60)
    assert runner.run_unattended() == 0
    handler.go_on.set()
    wait_until(lambda: ledger.states() == {"done": 20}, "all to be done")
    assert sorted(handler.ran) == sorted(names)
    wait_until(lambda: runner.run_unattended() == 4, "the threads to be idle again")


def test_a_claim_in_the_making_is_not_idle(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner is busy during a claim, so that a shutdown does not miss it."""
    claiming, go_on = threading.Event(), threading.Event()
    real = runner_module.claim_due

    def slow(*arguments: Any, **named: Any) -> list[Claim]:
        held = real(*arguments, **named)
        claiming.set()
        assert go_on.wait(60)
        return held

    monkeypatch.setattr(runner_module, "claim_due", slow)
    runner = make_runner(handler)
    add(store, "evt_1")
    thread = in_thread(runner.run_nudged)
    assert claiming.wait(60)
    assert not runner.idle
    go_on.set()
    thread.join(60)
    assert runner.idle


def test_a_stopping_process_claims_nothing(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """After `stopping` is set, neither a nudge nor the sweeper claims an event."""
    runner = make_runner(handler)
    add(store, "evt_1")
    store.shift = timedelta(hours=1)
    runner.stopping.set()
    assert runner.run_nudged() == 0
    runner.run_unattended()
    wait_until(lambda: runner.run_unattended() == 4, "the threads to come back")
    assert (handler.ran, ledger.state("evt_1"), runner.idle) == ([], "received", True)


def test_release_gives_the_attempt_back(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """A released event can be claimed at once, its attempt is uncounted, and its old run settles nothing."""
    runner = make_runner(handler)
    add(store, "evt_1")
    handler.go_on.clear()
    thread = in_thread(runner.run_nudged)
    assert handler.begun.acquire(timeout=60)
    assert runner.release() == 1
    found = ledger.event("evt_1")
    assert (found["state"], found["attempts"], found["crashes"]) == ("waiting", 0, 0)
    runner.stopping.set()
    handler.go_on.set()
    thread.join(60)
    assert ledger.state("evt_1") == "waiting", "the old run settles nothing"
    assert make_runner(handler).run_nudged() == 1
    assert ledger.outcomes("evt_1") == ["release", "finish"]


def test_renewal_keeps_a_claim(store: Store, make_runner: MakeRunner, handler: GatedHandler) -> None:
    """A renewed claim outlives its first lease; one past max_runtime is not renewed."""
    runner = make_runner(handler)
    add(store, "evt_1")
    handler.go_on.clear()
    thread = in_thread(runner.run_nudged)
    assert handler.begun.acquire(timeout=60)
    store.shift = LEASE * 0.9
    assert runner.renew() == 1
    store.shift = LEASE * 1.5
    other = make_runner(GatedHandler())
    assert (expire(store), other.run_nudged()) == (0, 0), "it was renewed"
    runner.limits = Limits(LEASE, timedelta(0), SWEEP, 4)
    assert runner.renew() == 0
    store.shift = LEASE * 3
    assert (expire(store), other.run_nudged()) == (1, 1)
    handler.go_on.set()
    thread.join(60)


def test_a_lost_claim_is_logged_once(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """A lost claim is logged once, and not at every renewal."""
    runner = make_runner(handler)
    add(store, "evt_1")
    handler.go_on.clear()
    thread = in_thread(runner.run_nudged)
    assert handler.begun.acquire(timeout=60)
    store.shift = LEASE * 2
    assert (expire(store), make_runner(lambda _held: DONE).run_nudged()) == (1, 1)
    with caplog.at_level(logging.WARNING):
        assert [runner.renew(), runner.renew()] == [0, 0]
    assert caplog.text.count("taken over") == 1
    assert not runner.idle, "its handler still runs"
    handler.go_on.set()
    thread.join(60)


def test_a_retry_waits_in_the_ledger(store: Store, make_runner: MakeRunner, ledger: Ledger) -> None:
    """A failed event cannot be claimed before it is due, whoever nudges it."""
    ends = iter([Outcome(Move.RETRY_LATER, timedelta(minutes=5)), DONE])
    runner = make_runner(lambda _held: next(ends))
    add(store, "evt_1")
    assert runner.run_nudged() == 1
    assert runner.run_nudged() == 0
    store.shift = timedelta(minutes=4, seconds=50)
    assert runner.run_nudged() == 0
    store.shift = timedelta(minutes=5, seconds=10)
    assert runner.run_nudged() == 1
    assert ledger.outcomes("evt_1") == ["retry later", "finish"]


def test_settling_outlasts_an_outage(
    store: Store,
    make_runner: MakeRunner,
    handler: GatedHandler,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """During an outage an attempt's outcome is kept, even beyond its lease, and settled afterwards."""
    failures = iter([LedgerUnavailable()] * 3)
    real = runner_module.settle

    def brittle(*arguments: Any) -> bool:
        for error in failures:
            raise error
        return real(*arguments)

    monkeypatch.setattr(runner_module, "settle", brittle)
    monkeypatch.setattr(runner_module, "SETTLE_PAUSE", 0.01)
    runner = make_runner(handler, lease=timedelta(microseconds=1))
    add(store, "evt_1")
    assert runner.run_nudged() == 1
    assert (ledger.state("evt_1"), ledger.outcomes("evt_1")) == ("done", ["finish"])


def make_sweeper(store: Store, runner: Runner, nudge: Callable[[], bool]) -> Sweeper:
    """Make a sweeper that nudges with this function."""
    return Sweeper(store, SWEEP, nudge, runner)


def test_a_sweep_nudges_what_is_due(store: Store, make_runner: MakeRunner, handler: GatedHandler) -> None:
    """A pass nudges events that waited for a sweep, and again only after their back-off."""
    nudge = Mock(return_value=True)
    sweeper = make_sweeper(store, make_runner(handler), nudge)
    add(store, "evt_1", "evt_2")
    assert sweeper.run_once() == Swept(), "web nudges what is new"
    store.shift = SWEEP
    assert sweeper.run_once() == Swept(nudged=2)
    assert nudge.call_count == 2
    store.shift = SWEEP * 2
    assert sweeper.run_once() == Swept()
    store.shift = SWEEP * 8
    assert sweeper.run_once() == Swept(nudged=2)


def test_a_sweep_takes_expired_leases_back(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """An expired lease is taken back and its event nudged in one pass."""
    add(store, "evt_1")
    handler.go_on.clear()
    runner = make_runner(handler)
    thread = in_thread(runner.run_nudged)
    assert handler.begun.acquire(timeout=60)
    sweeper = make_sweeper(store, make_runner(GatedHandler()), lambda: True)
    assert sweeper.run_once() == Swept()
    store.shift = LEASE
    assert sweeper.run_once() == Swept(expired=1, nudged=1)
    assert ledger.event("evt_1")["crashes"] == 1
    handler.go_on.set()
    thread.join(60)


def test_a_deaf_broker_starves_nothing(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """Events that were nudged twice without a claim run on the worker's own threads."""
    sweeper = make_sweeper(store, make_runner(handler), lambda: True)
    add(store, "evt_1", "evt_2")
    for sweeps in (1, 8):
        store.shift = SWEEP * sweeps
        assert sweeper.run_once().set_to_work == 0
    store.shift = SWEEP * 15
    assert sweeper.run_once().set_to_work == 4
    wait_until(lambda: ledger.states() == {"done": 2}, "both to run")


def test_a_pass_is_logged_with_its_counts(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, caplog: pytest.LogCaptureFixture
) -> None:
    """The first pass comes at once; what it did stands on its line in fields, for searches and sums."""
    stopping = threading.Event()

    def nudge() -> bool:
        stopping.set()
        return True

    add(store, "evt_1")
    store.shift = SWEEP
    sweeper = make_sweeper(store, make_runner(handler), nudge)
    pruner, reopener = Pruner(store, {}), Reopener(store, Registry([]))
    caplog.handler.setFormatter(line_formatter("json"))
    with caplog.at_level(logging.INFO, logger="worker.sweeper"):
        thread = in_thread(lambda: run_sweeps(sweeper, pruner, reopener, timedelta(hours=1), stopping))
        assert stopping.wait(60)
        thread.join(60)
    (line,) = [text for text in caplog.text.splitlines() if "Swept" in text]
    found = json.loads(line)
    assert (found["message"], found["logger"]) == ("Swept.", "worker.sweeper")
    counts = {name: found[name] for name in ("expired", "nudged", "set_to_work", "replayed")}
    assert counts == {"expired": 0, "nudged": 1, "set_to_work": 0, "replayed": 0}


def test_a_refusing_broker_stops_no_sweep(
    store: Store, make_runner: MakeRunner, handler: GatedHandler, ledger: Ledger
) -> None:
    """A broker that refuses nudges is tried once per pass, and every event still runs."""
    refuse = Mock(return_value=False)
    sweeper = make_sweeper(store, make_runner(handler), refuse)
    add(store, *(f"evt_{number}" for number in range(5)))
    for sweeps, times in ((1, 1), (8, 2), (15, 2)):
        store.shift = SWEEP * sweeps
        assert sweeper.run_once().nudged == 0
        assert refuse.call_count == times
    wait_until(lambda: ledger.states() == {"done": 5}, "all to run")


@pytest.fixture
def worker(migrated_url: str, valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Wire a worker, not started, to the test's own broker."""
    monkeypatch.setenv("DATABASE_URL", migrated_url)
    monkeypatch.setenv("BROKER_URL", valkey.url)
    monkeypatch.setenv("FIRSTSEEN_SECRET_KEY", "0" * 32)
    made = Worker(Settings(_env_file=None), Registry([]), {}, {})
    yield made
    made.publisher.close()
    made.store.close()


def test_a_nudge_never_raises(worker: Worker, valkey: Valkey, caplog: pytest.LogCaptureFixture) -> None:
    """A nudge to a full or stopped broker returns False and is logged; later nudges work."""
    assert worker.nudge()
    with valkey.client() as client:
        client.config_set("maxmemory", 1)
        assert not worker.nudge(), "out of memory"
        client.config_set("maxmemory", 0)
    assert worker.nudge()
    valkey.kill()
    assert not worker.nudge(), "gone"
    valkey.start()
    assert worker.nudge()
    assert "The broker takes no nudges" in caplog.text


def test_a_nudge_at_a_frozen_broker_is_bounded(worker: Worker, valkey: Valkey) -> None:
    """A nudge to a frozen broker fails within its timeout."""
    assert worker.nudge()
    valkey.freeze()
    begun = time.monotonic()
    assert not worker.nudge()
    assert time.monotonic() - begun < 30
    valkey.thaw()
    assert worker.nudge()


def test_a_reopened_event_without_a_handler_is_ignored_again(
    store: Store, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """A worker without a handler ignores a reopened event again."""
    policy = AttemptPolicy(3, timedelta(seconds=1))
    without = make_runner(lambda held: attempt(held, Registry([]), policy, no_calls))
    add(store, "evt_1")
    assert without.run_nudged() == 1
    assert ledger.state("evt_1") == "ignored"
    reopener = Reopener(store, Registry([Handler("stripe", "*", lambda _event, _calls: None)]))
    assert reopener.run_once() == 1
    assert without.run_nudged() == 1
    assert ledger.outcomes("evt_1") == ["ignore", "ignore"]
    assert ledger.event("evt_1")["attempts"] == 0


def test_an_attempted_event_without_its_handler_is_parked(
    store: Store, make_runner: MakeRunner, ledger: Ledger
) -> None:
    """An event whose handler is gone after an attempt is parked: calls may be open."""
    handler = GatedHandler()
    handler.go_on.clear()
    runner = make_runner(handler)
    add(store, "evt_1")
    thread = in_thread(runner.run_nudged)
    assert handler.begun.acquire(timeout=60)
    runner.release()
    runner.stopping.set()
    handler.go_on.set()
    thread.join(60)
    policy = AttemptPolicy(3, timedelta(seconds=1))
    assert make_runner(lambda held: attempt(held, Registry([]), policy, no_calls)).run_nudged() == 1
    assert ledger.outcomes("evt_1") == ["release", "park"]


def test_everything_ignored_is_reopened(
    store: Store, make_runner: MakeRunner, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All batches are reopened, and only types with a handler; a second pass reopens nothing."""
    monkeypatch.setattr(sweep, "REOPEN_BATCH", 2)
    policy = AttemptPolicy(3, timedelta(seconds=1))
    without = make_runner(lambda held: attempt(held, Registry([]), policy, no_calls))
    add(store, *(f"evt_{number}" for number in range(5)))
    without.run_nudged()
    wait_until(lambda: ledger.states() == {"ignored": 5}, "all to be ignored")
    assert Reopener(store, Registry([Handler("shopify", "*", lambda _event, _calls: None)])).run_once() == 0
    reopener = Reopener(store, Registry([Handler("stripe", "*", lambda _event, _calls: None)]))
    assert [reopener.run_once(), reopener.run_once()] == [5, 0]
