"""Group commit and the duplicate cache: concurrent requests share a commit, and each gets its own result."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import IntegrityError

from receiver.ledger.counters import CounterKind, totals
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Delivery, Recorder, group_commit, record
from receiver.ledger.intake import insert as insert_module
from receiver.ledger.intake.group_commit import MEMORY, STORM, DuplicateCache
from receiver.ledger.intake.insert import insert_new
from receiver.ledger.intake.recording import _new_row
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration import steps
from tests.integration.steps import count, deliver, delivery, duplicates, end, row


@pytest.fixture(autouse=True)
def flushed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop background flushes, which would write one test's counts into another test's ledger."""
    monkeypatch.setattr(group_commit, "FLUSH", 3600.0)


@pytest.fixture
def commits(store: Store) -> Iterator[list[int]]:
    """Count the transactions that end from here on, by the connections returned to the pool."""
    ended: list[int] = []
    with steps.hooked(store, "checkin", lambda *_: ended.append(1)):
        yield ended


class Held:
    """A recorder whose transactions wait until the test releases them, so that requests meet."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.recorder = Recorder(store)
        real = Store.raw_connection

        def alone(of: Store) -> Any:
            self.begun.release()
            assert self.go_on.wait(60)
            return real(of)

        monkeypatch.setattr(Store, "raw_connection", alone)

    def together(self, batches: list[list[Delivery]], waiting: Callable[[], int]) -> list[Any]:
        """Record each batch in its own thread; all but the first start while the first commit waits."""

        def one(batch: list[Delivery]) -> Any:
            try:
                return self.recorder.record(batch)
            except Exception as error:  # noqa: BLE001 - the test inspects it
                return error

        with ThreadPoolExecutor(len(batches)) as pool:
            first = pool.submit(one, batches[0])
            assert self.begun.acquire(timeout=60)
            rest = [pool.submit(one, batch) for batch in batches[1:]]
            while waiting() < len(rest):
                threading.Event().wait(0.01)
            self.go_on.set()
            return [future.result(60) for future in [first, *rest]]


@pytest.fixture
def held(store: Store, monkeypatch: pytest.MonkeyPatch) -> Held:
    """Return a recorder whose commits wait until the test releases them."""
    return Held(store, monkeypatch)


def test_a_lone_request_is_one_transaction(store: Store, commits: list[int]) -> None:
    """One request is one transaction."""
    assert Recorder(store).record([delivery()])[0].first_seen
    assert len(commits) == 1


def test_requests_that_meet_share_a_commit(store: Store, commits: list[int], held: Held) -> None:
    """Nine requests that arrive during a commit share the next one, and each gets its own verdict."""
    batches = [[delivery(f"evt_{number}")] for number in range(10)]
    answers = held.together(batches, lambda: len(held.recorder._waiting))
    assert len(commits) == 2
    assert [verdicts[0].event_id for verdicts in answers] == [f"evt_{number}" for number in range(10)]
    assert all(verdicts[0].first_seen for verdicts in answers)
    assert count(store) == 10


def test_copies_that_meet_are_first_seen_once(store: Store, held: Held) -> None:
    """Of ten copies in two transactions one is first seen, and nine are counted as duplicates."""
    answers = held.together([[delivery()] for _ in range(10)], lambda: len(held.recorder._waiting))
    assert sum(verdicts[0].first_seen for verdicts in answers) == 1
    assert row(store, answers[0][0].event).duplicates == 9


def test_a_bad_row_fails_its_own_request_alone(store: Store, held: Held) -> None:
    """A row that the database refuses fails its own request; the others of the batch are recorded."""
    bad = delivery("evt_bad")
    object.__setattr__(bad, "body_hash", None)  # its column may not be null
    batches = [[delivery("evt_0")], [delivery("evt_1")], [bad], [delivery("evt_2")]]
    answers = held.together(batches, lambda: len(held.recorder._waiting))
    assert isinstance(answers[2], IntegrityError)
    assert [verdicts[0].first_seen for verdicts in (answers[0], answers[1], answers[3])] == [True] * 3
    assert count(store) == 3


def test_a_dead_ledger_fails_every_waiting_request(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every waiting request gets the error, and the next one tries again."""

    def alone(_: Store) -> Any:
        held.begun.release()
        assert held.go_on.wait(60)
        raise LedgerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(Store, "raw_connection", alone)
        batches = [[delivery(f"evt_{number}")] for number in range(4)]
        answers = held.together(batches, lambda: len(held.recorder._waiting))
    assert [type(answer) for answer in answers] == [LedgerUnavailable] * 4
    assert held.recorder.record([delivery("evt_0")])[0].first_seen


def test_the_first_waiting_request_records_for_the_others(store: Store, held: Held) -> None:
    """The first waiting request writes the next batch as soon as the transaction before it ends."""
    batches = [[delivery(f"evt_{number}")] for number in range(3)]
    threads = [threading.Thread(target=held.recorder.record, args=(item,), daemon=True) for item in batches]
    threads[0].start()
    assert held.begun.acquire(timeout=60)
    for thread in threads[1:]:
        thread.start()
    while len(held.recorder._waiting) < 2:
        threading.Event().wait(0.01)
    held.go_on.set()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    with store.read() as connection:
        assert [total.count for total in totals(connection, CounterKind.DELIVERY)] == [3]


def test_a_request_of_several_stands_as_a_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ledger fails in the middle of a request, none of its events is recorded."""
    deliver(store, "evt_old")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", Mock(side_effect=LedgerUnavailable))
        with pytest.raises(LedgerUnavailable):
            Recorder(store).record([delivery("evt_new"), delivery("evt_old")])
    assert count(store) == 1


@pytest.mark.parametrize(**steps.ONLY_POSTGRES)
def test_an_id_in_an_open_transaction_is_unavailable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open transaction with the same id gives LedgerUnavailable within the lock timeout."""
    monkeypatch.setattr(insert_module, "_ALONE", insert_module._ALONE.replace("'5s'", "'300ms'"))
    with store.engine.connect() as other:
        insert_new(store, other, [_new_row(delivery())])
        release = threading.Timer(60, other.rollback)
        release.start()
        with pytest.raises(LedgerUnavailable):
            Recorder(store).record([delivery()])
        release.cancel()
        release.join()


def done(store: Store, copies: int) -> Delivery:
    """Record an event, finish it and deliver it so many times more; return another copy."""
    first = deliver(store, address="192.0.2.1")
    end(store, first.event, Move.FINISH)
    for _ in range(copies):
        deliver(store, address="192.0.2.1")
    return delivery(address="192.0.2.7")


def test_a_storm_is_answered_without_the_ledger(store: Store, commits: list[int]) -> None:
    """Copies of a done event are answered from the cache, and their counts are written in one batch."""
    storms, copy = DuplicateCache(store), done(store, STORM)
    storms.learn([copy], record(store, [copy]))
    commits.clear()
    answers = [storms.answer([copy]) for _ in range(30)]
    assert not commits
    assert all(found and not found[0].first_seen and not found[0].nudge for found in answers)
    assert storms.flush() == 30
    assert len(commits) == 1
    found = row(store, record(store, [copy])[0].event)
    assert found.duplicates == STORM + 1 + 30 + 1
    assert {duplicate.address for duplicate in duplicates(store, found.id)} == {"192.0.2.7"}


@pytest.mark.parametrize("change", ["few", "body", "unfinished", "old", "source", "batch"])
def test_anything_else_asks_the_ledger(store: Store, change: str) -> None:
    """Few duplicates, another body, an unfinished event or an expired entry is not answered from cache."""
    clock = Mock(return_value=1000.0)
    storms, copy = DuplicateCache(store, clock), done(store, 1 if change == "few" else STORM)
    if change == "unfinished":
        with store.write() as connection:
            connection.execute(EVENT.update().values(state="waiting"))
    storms.learn([copy], record(store, [copy]))
    asked = {"body": [replace(copy, body=b"other")], "source": [replace(copy, source="github")]}
    asked["batch"] = [copy, delivery("evt_2")]
    clock.return_value += MEMORY + 1 if change == "old" else 0
    assert storms.answer(asked.get(change, [copy])) is None


def test_counts_outlast_an_outage(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """During an outage the cache keeps its counts, and writes them afterwards."""
    storms, copy = DuplicateCache(store), done(store, STORM)
    storms.learn([copy], record(store, [copy]))
    assert storms.answer([copy])
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", Mock(side_effect=LedgerUnavailable))
        assert storms.flush() == 0
    assert storms.answer([copy])
    assert storms.flush() == 2


def test_learning_an_event_again_keeps_its_counts(store: Store) -> None:
    """Learning an event again keeps the counts that are not written yet."""
    storms, copy = DuplicateCache(store), done(store, STORM)
    for _ in range(2):
        storms.learn([copy], record(store, [copy]))
        assert storms.answer([copy, copy])
    assert storms.flush() == 4
    assert row(store, record(store, [copy])[0].event).duplicates == STORM + 2 + 4 + 1


def test_a_rerun_is_noticed_within_a_minute(store: Store) -> None:
    """An entry expires after a minute, and the ledger answers again."""
    clock = Mock(return_value=1000.0)
    storms, copy = DuplicateCache(store, clock), done(store, STORM)
    storms.learn([copy], record(store, [copy]))
    clock.return_value += MEMORY - 1
    assert storms.answer([copy])
    clock.return_value += 2
    assert storms.answer([copy]) is None
