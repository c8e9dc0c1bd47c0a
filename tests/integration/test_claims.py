"""The claim protocol: one holder at a time, fencing tokens, and attempts counted right."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from receiver.ledger.counters import CounterKind, totals
from receiver.ledger.errors import NotAllowed
from receiver.ledger.intake import record
from receiver.ledger.lease import Claim, Outcome
from receiver.ledger.queue import claim_due, expire, renew, settle, unattended
from receiver.ledger.queue.claims import EXPIRE_BATCH
from receiver.ledger.states import CRASH_LIMIT, Move, State, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import EVENT
from tests.integration.call_steps import planned
from tests.integration.steps import (
    LEASE,
    ONLY_POSTGRES,
    SWEEP,
    attempts,
    change,
    count,
    deliver,
    deliver_all,
    delivery,
    end,
    hooked,
    later,
    row,
    state,
    take,
    worst_plan,
)
from tests.services.claiming import claim

DONE = Outcome(Move.FINISH)


def test_a_claim_carries_what_a_handler_needs(store: Store) -> None:
    """A claim has the exact body, the headers, the attempt's number and a fencing token."""
    first = deliver(store, body=b"\x00\xff", headers={"a": "b"}, content_type="text/plain")
    held = take(store, first.event)
    assert (held.body, held.headers, held.content_type) == (b"\x00\xff", '{"a": "b"}', "text/plain")
    assert (held.event_id, held.source, held.type, held.generation) == ("evt_1", "stripe", "invoice.paid", 0)
    assert (held.attempt, held.token) == (1, 1)
    found = row(store, first.event)
    assert (found.state, found.attempts) == ("processing", 1)
    assert LEASE - timedelta(seconds=5) < found.lease_until - found.received_at < LEASE + timedelta(seconds=5)
    story = attempts(store, first.event)
    assert [(item.claim, item.number, item.worker, item.ended_at) for item in story] == [
        (1, 1, "worker-1", None)
    ]


def test_a_claim_shows_no_payload_when_printed(store: Store) -> None:
    """A claim's repr, which logs may print, has neither body nor headers."""
    shown = repr(take(store, deliver(store, body=b"secret-body", headers={"h": "secret-header"}).event))
    assert "secret" not in shown


def test_a_held_event_cannot_be_claimed(store: Store) -> None:
    """While the lease lasts no other worker can claim the event, by id or by turn."""
    first = deliver(store)
    take(store, first.event)
    later(store, seconds=59)
    assert claim(store, first.event, lease=LEASE, worker="other") is None
    assert claim_due(store, limit=1, lease=LEASE, worker="other") == []


@pytest.mark.parametrize("move", [Move.FINISH, Move.PARK, Move.GIVE_UP, Move.IGNORE])
def test_an_ended_event_cannot_be_claimed(store: Store, move: Move) -> None:
    """A repeated or late nudge claims nothing."""
    first = deliver(store)
    end(store, first.event, move)
    assert claim(store, first.event, lease=LEASE, worker="other") is None
    assert claim_due(store, limit=1, lease=LEASE, worker="other") == []


def test_an_unknown_event_cannot_be_claimed(store: Store) -> None:
    """A nudge for a pruned event claims nothing."""
    first = deliver(store)
    with store.write() as connection:
        connection.execute(EVENT.delete())
    assert claim(store, first.event, lease=LEASE, worker="other") is None


def test_an_event_is_not_claimed_before_it_is_due(store: Store) -> None:
    """A delay starts at the settlement, by the ledger's clock."""
    first = deliver(store)
    end(store, first.event, Move.RETRY_LATER, delay=timedelta(minutes=5))
    later(store, minutes=4)
    assert claim(store, first.event, lease=LEASE, worker="early") is None
    later(store, minutes=2)
    assert take(store, first.event).attempt == 2


def test_only_one_of_many_workers_gets_an_event(store: Store) -> None:
    """Of sixteen concurrent claims of one event one succeeds, and one attempt is counted."""
    first = deliver(store)
    gate = threading.Barrier(16)

    def grab(n: int) -> Claim | None:
        gate.wait()
        return claim(store, first.event, lease=LEASE, worker=f"w{n}")

    with ThreadPoolExecutor(16) as pool:
        held = [item for item in pool.map(grab, range(16)) if item]
    assert (len(held), row(store, first.event).attempts, len(attempts(store, first.event))) == (1, 1, 1)


def test_many_workers_empty_the_queue_without_meeting(store: Store) -> None:
    """Eight threads that claim by turn claim every event exactly once."""
    events = deliver_all(store, 60)

    def drain(n: int) -> list[Any]:
        mine = []
        while held := claim_due(store, limit=1, lease=LEASE, worker=f"w{n}"):
            mine += [item.event for item in held]
        return mine

    with ThreadPoolExecutor(8) as pool:
        taken = [item for mine in pool.map(drain, range(8)) for item in mine]
    assert sorted(taken) == sorted(events)
    assert count(store, EVENT.c.attempts != 1) == 0


def test_the_longest_waiting_event_goes_first(store: Store) -> None:
    """Claims by turn are ordered by `due_at`."""
    old, young = deliver(store, "old").event, deliver(store, "young").event
    later(store, minutes=10)
    change(store, young, due_at=row(store, old).due_at - timedelta(minutes=1))
    (held,) = claim_due(store, limit=1, lease=LEASE, worker="w")
    assert held.event == young


def test_a_fresh_delivery_is_left_to_its_nudge(store: Store) -> None:
    """The `unattended` rule selects events that nobody claimed for a sweep, and none that is newer."""
    first = deliver(store)
    assert claim_due(store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP)) == []
    later(store, seconds=6)
    (held,) = claim_due(store, limit=1, lease=LEASE, worker="w", where=unattended(store, SWEEP))
    assert held.event == first.event


def test_a_settlement_ends_the_attempt(store: Store) -> None:
    """The event has its state, reason and time; the attempt has its outcome and traceback."""
    first = deliver(store)
    end(store, first.event, Move.GIVE_UP, reason="No such customer.", error="Traceback ...")
    found = row(store, first.event)
    assert (found.state, found.reason, found.lease_until) == ("dead", "No such customer.", None)
    assert found.finished_at is not None
    attempt = attempts(store, first.event)[0]
    assert (attempt.outcome, attempt.reason, attempt.error) == (
        "give up",
        "No such customer.",
        "Traceback ...",
    )
    assert attempt.ended_at >= attempt.started_at


@pytest.mark.parametrize("move", [move for move in Move if State.PROCESSING in leaves(move)])
def test_a_stale_token_settles_nothing(store: Store, move: Move) -> None:
    """A worker whose lease expired changes neither the event nor its successor's attempt."""
    first = deliver(store)
    stale = take(store, first.event, "frozen")
    later(store, seconds=61)
    fresh = take(store, first.event, "successor")
    before, story = row(store, first.event), attempts(store, first.event)
    assert not settle(store, [(stale, Outcome(move, reason="too late"))])
    assert (row(store, first.event), attempts(store, first.event)) == (before, story)
    assert settle(store, [(fresh, DONE)]) == {fresh.event}


def test_attempts_that_end_together_are_looked_at_each(store: Store) -> None:
    """In one batch of three, one is done, one waits for its call, and one has lost its claim."""
    done, waits, lost = events = deliver_all(store, 3)
    held = [take(store, event) for event in events]
    planned(store, held[1])
    change(store, lost, lease_until=store.now())
    take(store, lost, "worker-2")
    assert settle(store, [(item, DONE) for item in held]) == {done, waits}
    assert [state(store, event) for event in events] == ["done", "waiting", "processing"]


def test_different_ends_share_a_transaction(store: Store) -> None:
    """One commit settles events with different outcomes, and counts each."""
    moves = [Move.GIVE_UP, Move.FINISH, Move.RETRY_LATER, Move.FINISH, Move.RELEASE]
    ends = [
        (take(store, event), Outcome(move)) for event, move in zip(deliver_all(store, 5), moves, strict=True)
    ]
    commits: list[Any] = []
    with hooked(store, "commit", commits.append):
        assert settle(store, ends) == {held.event for held, _ in ends}
    assert len(commits) == 1
    states = [state(store, held.event) for held, _ in ends]
    assert states == ["dead", "done", "waiting", "done", "waiting"]
    assert [attempts(store, held.event)[0].outcome for held, _ in ends] == moves
    with store.read() as connection:
        counted = {total.what: total.count for total in totals(connection, CounterKind.ATTEMPT)}
    assert counted == {"give up": 1, "finish": 2, "retry later": 1, "release": 1}


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_settling_and_duplicates_do_not_deadlock(store: Store) -> None:
    """Both lock many rows in the same order, so neither is aborted."""
    batch = [delivery(f"evt_{n:02}") for n in range(30)]
    record(store, batch)
    over = threading.Event()

    def recording() -> None:
        while not over.is_set():
            record(store, batch)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(recording)
        try:
            for _ in range(5):
                held = []
                while len(held) < 30:
                    # A claim leaves out what is locked.
                    held += claim_due(store, limit=30, lease=LEASE, worker="w")
                held.sort(key=lambda item: item.event_id, reverse=True)
                ends = [
                    (item, Outcome(Move.RELEASE if n % 3 else Move.FINISH)) for n, item in enumerate(held)
                ]
                assert len(settle(store, ends)) == 30
                with store.write() as connection:
                    connection.execute(text("SELECT 1 FROM event ORDER BY event_id FOR UPDATE"))
                    connection.execute(EVENT.update().values(state="waiting", finished_at=None))
        finally:
            over.set()
        job.result()


def test_a_second_settlement_changes_nothing(store: Store) -> None:
    """A repeated settlement reports a lost claim."""
    held = take(store, deliver(store).event)
    assert settle(store, [(held, DONE)])
    assert not settle(store, [(held, Outcome(Move.GIVE_UP))])
    assert state(store, held.event) == "done"


def test_an_expired_lease_without_another_claim_still_settles(store: Store) -> None:
    """A token is valid until another claim."""
    held = take(store, deliver(store).event)
    later(store, minutes=10)
    assert settle(store, [(held, DONE)])


@pytest.mark.parametrize("move", [Move.CLAIM, Move.REVIVE, Move.RERUN, Move.DISCARD, Move.REOPEN])
def test_a_move_that_does_not_start_from_processing_is_refused(store: Store, move: Move) -> None:
    """The transition table decides how an attempt may end."""
    held = take(store, deliver(store).event)
    with pytest.raises(NotAllowed):
        settle(store, [(held, Outcome(move))])
    assert state(store, held.event) == "processing"


@pytest.mark.parametrize("bad", ["nul \x00 byte", "lone \ud800 surrogate"], ids=["nul", "surrogate"])
def test_a_traceback_that_cannot_be_stored_settles_all_the_same(store: Store, bad: str) -> None:
    """An error that quotes unstorable text is escaped and stored."""
    held = take(store, deliver(store).event)
    assert settle(store, [(held, Outcome(Move.GIVE_UP, reason=bad, error=bad))])
    assert attempts(store, held.event)[0].error == bad.replace("\x00", "\\x00").replace("\ud800", "\\ud800")


def test_a_release_gives_the_attempt_back(store: Store) -> None:
    """A released event is due at once, and its attempt is not counted."""
    first = deliver(store)
    for _ in range(3):
        end(store, first.event, Move.RELEASE)
    found = row(store, first.event)
    assert (found.state, found.attempts, found.crashes) == ("waiting", 0, 0)
    held = take(store, first.event)
    assert (held.attempt, held.token) == (1, 4)


def test_an_expired_lease_keeps_the_attempt_and_counts_a_crash(store: Store) -> None:
    """The crashed attempt counts, its outcome is "expire", and the event is due at once."""
    first = deliver(store)
    take(store, first.event)
    assert expire(store) == 0
    later(store, seconds=61)
    assert expire(store) == 1
    found = row(store, first.event)
    assert (found.state, found.attempts, found.crashes, found.lease_until) == ("waiting", 1, 1, None)
    attempt = attempts(store, first.event)[0]
    assert (attempt.outcome, attempt.ended_at is not None) == ("expire", True)
    assert expire(store) == 0
    assert take(store, first.event).attempt == 2


def test_a_claim_takes_an_expired_lease_over_itself(store: Store) -> None:
    """A claim of an expired lease needs no sweep before it, and counts the crash."""
    first = deliver(store)
    take(store, first.event, "gone")
    later(store, seconds=61)
    held = take(store, first.event, "successor")
    assert (held.attempt, held.token, row(store, first.event).crashes) == (2, 2, 1)
    assert [attempt.outcome for attempt in attempts(store, first.event)] == ["expire", None]


def test_five_crashes_park(store: Store) -> None:
    """An event whose workers crash five times parks, with a reason."""
    first = deliver(store)
    for crash in range(1, CRASH_LIMIT + 1):
        take(store, first.event)
        later(store, seconds=61)
        if crash < CRASH_LIMIT:
            assert expire(store) == 1
    assert claim(store, first.event, lease=LEASE, worker="sixth") is None, "a sixth worker was given it"
    found = row(store, first.event)
    assert (found.state, found.crashes, found.attempts) == ("parked", 5, 5)
    assert "Crash loop" in found.reason


def test_more_expired_leases_than_a_batch(store: Store) -> None:
    """One pass expires a batch of leases, the next one the rest."""
    deliver_all(store, EXPIRE_BATCH + 1)
    with store.write() as connection:
        lease = {"state": "processing", "lease_until": store.after(LEASE), "claim": 1, "attempts": 1}
        connection.execute(EVENT.update().values(**lease))
    later(store, seconds=61)
    assert [expire(store), expire(store), expire(store)] == [EXPIRE_BATCH, 1, 0]


def test_renewal_keeps_a_lease_alive(store: Store) -> None:
    """A lease renewed after a third of its time never expires."""
    held = take(store, deliver(store).event)
    for _ in range(6):
        later(store, seconds=20)
        assert renew(store, [held], lease=LEASE) == set()
        assert expire(store) == 0
    assert settle(store, [(held, DONE)])


def test_a_stale_token_renews_nothing(store: Store) -> None:
    """A renewal returns the lost event and does not change its new lease; the others are renewed."""
    lost, kept = (take(store, event) for event in deliver_all(store, 2))
    later(store, seconds=61)
    renew(store, [kept], lease=LEASE)
    take(store, lost.event, "successor", lease=timedelta(seconds=30))
    before = row(store, lost.event).lease_until
    assert renew(store, [lost, kept], lease=LEASE) == {lost.event}
    assert row(store, lost.event).lease_until == before


def test_a_settled_claim_is_not_renewed(store: Store) -> None:
    """A renewal after the settlement does not restore the lease."""
    held = take(store, deliver(store).event)
    settle(store, [(held, DONE)])
    assert renew(store, [held], lease=LEASE) == {held.event}
    assert (state(store, held.event), row(store, held.event).lease_until) == ("done", None)


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_renewals_and_duplicates_do_not_deadlock(store: Store) -> None:
    """Both lock many rows in the same order, so neither is aborted."""
    names = [f"evt_{n:02}" for n in reversed(range(40))]
    held = [take(store, deliver(store, name).event) for name in names]
    batch = [delivery(name) for name in names]

    def renewing() -> None:
        for _ in range(10):
            assert renew(store, held, lease=LEASE) == set()

    def recording() -> None:
        for _ in range(10):
            record(store, batch)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(renewing), pool.submit(recording)]:
            job.result()


@pytest.mark.parametrize(**ONLY_POSTGRES)
def test_a_batch_is_a_batch_whatever_the_plan(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds even if PostgreSQL runs the subquery again for each row."""
    monkeypatch.setattr("receiver.ledger.queue.claims.EXPIRE_BATCH", 5)
    for event in deliver_all(store, 20):
        take(store, event)
    later(store, seconds=61)
    with worst_plan(store):
        assert expire(store) == 5
