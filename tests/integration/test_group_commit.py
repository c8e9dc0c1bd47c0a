"""Group commit and the duplicate cache: concurrent requests share a commit, and each gets its own result."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import IntegrityError

from receiver.ledger.counters import CounterKind, totals
from receiver.ledger.errors import CommitUncertain, LedgerUnavailable
from receiver.ledger.intake import Delivery, GroupCommit, Recorder, Verdict, group_commit, record
from receiver.ledger.intake import insert as insert_module
from receiver.ledger.intake.group_commit import LEAST, MEMORY, STORM, DuplicateCache
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
    """A group commit whose transactions wait until the test releases them, so that requests meet.

    `nudged` collects the verdicts that are handed on after a commit.
    """

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.nudged = store, list[str]()
        self.begun, self.go_on = threading.Semaphore(0), threading.Event()
        self.recorder = Recorder(
            store, lambda verdicts: self.nudged.extend(verdict.event_id for verdict in verdicts)
        )
        real = Store.raw_connection

        def held(of: Store) -> Any:
            self.begun.release()
            assert self.go_on.wait(60)
            return real(of)

        monkeypatch.setattr(Store, "raw_connection", held)

    def together(self, batches: list[list[Delivery]]) -> list[Any]:
        """Record each batch as a request; all but the first arrive while the first commit waits."""

        async def meet() -> list[Any]:
            commits = GroupCommit(self.recorder)
            first = asyncio.create_task(self.record(commits, batches[0]))
            await self.committing()
            rest = [asyncio.create_task(self.record(commits, batch)) for batch in batches[1:]]
            await asyncio.sleep(0)  # each comes as far as its commit
            assert len(commits._waiting) == len(rest)
            self.go_on.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

        return asyncio.run(meet())

    async def committing(self) -> None:
        """Wait until a transaction begins."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=60)

    async def record(self, commits: GroupCommit, batch: list[Delivery]) -> Sequence[Verdict]:
        """Record one request, and prove that its own rows stand when it is answered."""
        verdicts = await commits.record(batch, 60)
        assert count(self.store, EVENT.c.id.in_([verdict.event for verdict in verdicts])) == len(batch)
        return verdicts


async def alone(recorder: Recorder, *deliveries: Delivery) -> Sequence[Verdict]:
    """Record one request in a group of its own."""
    return await GroupCommit(recorder).record(deliveries, 60)


@pytest.fixture
def held(store: Store, monkeypatch: pytest.MonkeyPatch) -> Held:
    """Return a group commit whose transactions wait until the test releases them."""
    return Held(store, monkeypatch)


def test_a_lone_request_is_one_transaction(store: Store, commits: list[int]) -> None:
    """One request is one transaction, with and without a group."""
    assert Recorder(store).record([delivery("evt_1")])[0].first_seen
    assert len(commits) == 1
    assert asyncio.run(alone(Recorder(store), delivery("evt_2")))[0].first_seen
    assert len(commits) == 2


def test_requests_that_meet_share_a_commit(
    store: Store, commits: list[int], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine requests that arrive during a commit share the next one, and each gets its own verdict."""
    monkeypatch.setattr(held, "record", lambda commits, batch: commits.record(batch, 60))
    answers = held.together([[delivery(f"evt_{number}")] for number in range(10)])
    assert len(commits) == 2
    assert [verdicts[0].event_id for verdicts in answers] == [f"evt_{number}" for number in range(10)]
    assert all(verdicts[0].first_seen for verdicts in answers)
    assert count(store) == 10
    with store.read() as connection:
        assert [total.count for total in totals(connection, CounterKind.DELIVERY)] == [10]


def test_each_request_is_answered_after_its_own_commit(held: Held) -> None:
    """When a request is answered, its own row is in the ledger, and every row is handed on once."""
    batches = [[delivery(f"evt_{number}")] for number in range(10)]
    answers = held.together(batches)
    assert [verdicts[0].event_id for verdicts in answers] == [f"evt_{number}" for number in range(10)]
    assert sorted(held.nudged) == [f"evt_{number}" for number in range(10)]


def test_a_batch_is_bounded_and_the_rest_follows(
    commits: list[int], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not fit into a transaction is recorded by the next one, and nothing is left behind."""
    monkeypatch.setattr(group_commit, "BATCH_MAX", 3)
    monkeypatch.setattr(held, "record", lambda commits, batch: commits.record(batch, 60))
    answers = held.together([[delivery(f"evt_{number}")] for number in range(8)])
    assert len(commits) == 4, "one, then three, three and one"
    assert all(verdicts[0].first_seen for verdicts in answers)
    assert count(held.store) == 8


def test_a_batch_is_bounded_in_bytes_too(
    commits: list[int], held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large bodies go into transactions of their own; one of any size fits alone."""
    monkeypatch.setattr(group_commit, "BATCH_BYTES", 100)
    monkeypatch.setattr(held, "record", lambda commits, batch: commits.record(batch, 60))
    bodies = [b"a", b"b" * 200, b"c" * 60, b"d" * 60, b"e"]
    held.together([[delivery(f"evt_{number}", body=body)] for number, body in enumerate(bodies)])
    assert len(commits) == 4, "one, the large one, two that fill a transaction, and one"
    assert count(held.store) == 5


def test_a_ledger_that_goes_away_is_not_asked_for_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a batch that is redone one by one, the first that finds no ledger answers for the rest."""
    monkeypatch.setattr(group_commit, "record_first_seen", Mock(side_effect=ValueError))
    monkeypatch.setattr(group_commit, "record_together", Mock(side_effect=ValueError))
    asked = Mock(side_effect=LedgerUnavailable)
    monkeypatch.setattr(group_commit, "record", asked)
    outcomes = list(Recorder(store).record_requests([[delivery(f"evt_{number}")] for number in range(3)]))
    assert [type(error) for each in outcomes for error in each.values()] == [LedgerUnavailable] * 3
    assert asked.call_count == 1


def test_copies_that_meet_are_first_seen_once(store: Store, held: Held) -> None:
    """Of ten copies in two transactions one is first seen, and nine are counted as duplicates."""
    answers = held.together([[delivery()] for _ in range(10)])
    assert sum(verdicts[0].first_seen for verdicts in answers) == 1
    assert row(store, answers[0][0].event).duplicates == 9


def test_a_bad_row_fails_its_own_request_alone(store: Store, held: Held) -> None:
    """A row that the database refuses fails its own request; the others of the batch are recorded."""
    bad = delivery("evt_bad")
    object.__setattr__(bad, "body_hash", None)  # its column may not be null
    answers = held.together([[delivery("evt_0")], [delivery("evt_1")], [bad], [delivery("evt_2")]])
    assert isinstance(answers[2], IntegrityError)
    assert [verdicts[0].first_seen for verdicts in (answers[0], answers[1], answers[3])] == [True] * 3
    assert count(store) == 3


def test_a_dead_ledger_fails_every_waiting_request(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every waiting request gets the error, and the next one tries again."""

    def dead(_: Store) -> Any:
        held.begun.release()
        assert held.go_on.wait(60)
        raise LedgerUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(Store, "raw_connection", dead)
        answers = held.together([[delivery(f"evt_{number}")] for number in range(4)])
    assert [type(answer) for answer in answers] == [LedgerUnavailable] * 4
    assert held.nudged == []
    assert asyncio.run(alone(held.recorder, delivery("evt_0")))[0].first_seen


def test_an_unforeseen_error_fails_a_batch_and_no_other(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when the committing thread itself fails, every request is answered, and the next batch too."""

    async def fail() -> tuple[Any, Any]:
        commits = GroupCommit(held.recorder)
        with monkeypatch.context() as patch:
            patch.setattr(held.recorder, "record_requests", Mock(side_effect=MemoryError))
            broken = await asyncio.gather(commits.record([delivery("evt_1")], 60), return_exceptions=True)
        held.go_on.set()
        return broken[0], await commits.record([delivery("evt_1")], 60)

    broken, verdicts = asyncio.run(fail())
    assert isinstance(broken, CommitUncertain)
    assert verdicts[0].first_seen


def test_a_request_that_waited_long_enough_is_unavailable(store: Store, held: Held) -> None:
    """While a commit hangs, every request is answered in time; its late row is handed on all the same."""

    async def hang() -> list[Any]:
        commits = GroupCommit(held.recorder)
        first = asyncio.create_task(commits.record([delivery("evt_1")], LEAST + 0.05))
        await held.committing()
        others = [asyncio.create_task(commits.record([delivery(f"evt_{n}")], LEAST + 0.05)) for n in (2, 3)]
        async with asyncio.timeout(10):
            while not all(task.done() for task in (first, *others)):
                await asyncio.sleep(0.01)
                commits.expire()
        held.go_on.set()
        # The thread is free again: what comes now is recorded after the late row, in a commit of its own.
        verdicts = await commits.record([delivery("evt_4")], 60)
        assert verdicts[0].first_seen
        return await asyncio.gather(first, *others, return_exceptions=True)

    kinds = [type(answer) for answer in asyncio.run(hang())]
    assert kinds == [CommitUncertain, LedgerUnavailable, LedgerUnavailable]
    assert held.nudged == ["evt_1", "evt_4"], "who was given up before a commit began is not recorded"
    assert count(store) == 2


def test_a_request_whose_sender_is_gone_harms_nobody(store: Store, held: Held) -> None:
    """Of cancelled requests, one under way stands all the same; those that meet them are answered."""

    async def leave() -> Any:
        commits = GroupCommit(held.recorder)
        first = asyncio.create_task(commits.record([delivery("evt_1")], 60))
        await held.committing()
        gone = asyncio.create_task(commits.record([delivery("evt_2")], 60))
        stays = asyncio.create_task(commits.record([delivery("evt_3")], 60))
        await asyncio.sleep(0)
        first.cancel()
        gone.cancel()
        await asyncio.sleep(0)
        commits.expire()
        held.go_on.set()
        return await stays

    assert asyncio.run(leave())[0].first_seen
    assert held.nudged == ["evt_1", "evt_3"]
    assert count(store) == 2


def test_a_request_of_several_stands_as_a_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the ledger fails in the middle of a request, none of its events is recorded."""
    deliver(store, "evt_old")

    async def meet() -> list[Any]:
        commits = GroupCommit(Recorder(store))
        several = commits.record([delivery("evt_new"), delivery("evt_old")], 60)
        lone = commits.record([delivery("evt_1")], 60)
        return list(await asyncio.gather(several, lone, return_exceptions=True))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", Mock(side_effect=LedgerUnavailable))
        with pytest.raises(LedgerUnavailable):
            Recorder(store).record([delivery("evt_new"), delivery("evt_old")])
        refused, recorded = asyncio.run(meet())
    assert isinstance(refused, LedgerUnavailable)
    assert recorded[0].first_seen
    assert count(store) == 2
    both, _ = asyncio.run(meet())
    assert [verdict.first_seen for verdict in both] == [True, False]


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
