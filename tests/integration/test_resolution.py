"""Resolutions of parked calls: call and event change together, once, or not at all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Connection, select, text

from receiver.ledger.calls import Classification, SendResult, StoredResponse, record_response
from receiver.ledger.control import Resolution, resolve
from receiver.ledger.errors import NotAllowed, UnknownCall
from receiver.ledger.lease import Outcome as End
from receiver.ledger.queue import settle
from receiver.ledger.reports import call_story, story
from receiver.ledger.states import CallState, Move, SendOutcome, State
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, EVENT, SEND
from tests.integration.call_steps import TERMS, answered, call_row, change_call, planned, with_parked_call
from tests.integration.steps import change, deliver, later, row, rows_of, state, take
from tests.services.waiting import wait_until

WAYS = list(Resolution)
OTHER = "e" * 64


@pytest.fixture
def parked(store: Store) -> tuple[UUID, UUID]:
    """Return an event parked for an unanswered call that its handler would now make differently."""
    event, call = with_parked_call(store)
    change_call(store, call, changed_to=OTHER)
    later(store, minutes=2)
    return event, call


def opened(store: Store, call: UUID) -> list[bool]:
    """Return for each send of a call whether it is open."""
    with store.read() as connection:
        return list(connection.execute(select(SEND.c.open).where(SEND.c.call == call)).scalars())


def test_it_happened(store: Store, parked: tuple[UUID, UUID]) -> None:
    """The call succeeds with the given response, and is not resent."""
    event, call = parked
    given = StoredResponse(201, (("content-type", "application/json"),), b'{"id":7}')
    acted = resolve(store, call, Resolution.HAPPENED, "ann", response=given)
    assert (acted.event, acted.was, acted.state, acted.nudge) == (event, State.PARKED, State.WAITING, True)
    assert opened(store, call) == [False]
    held = take(store, event)
    found = planned(store, held)
    assert (found.id, found.state) == (call, "succeeded")
    assert found.response == given
    assert settle(store, [(held, End(Move.FINISH))])
    assert state(store, event) == "done"


def test_resend_as_new(store: Store, parked: tuple[UUID, UUID]) -> None:
    """A successor with a new key and the handler's present bytes replaces the call."""
    event, call = parked
    resolve(store, call, Resolution.RESEND_AS_NEW, "ann")
    held = take(store, event)
    found = planned(store, held, fingerprint=OTHER)
    assert (found.state, found.key, found.sends) == ("pending", "key-letter-1", 0)
    assert (call_row(store, call).state, call_row(store, found.id).successor) == ("replaced", 1)
    answered(store, held, found.id, SendOutcome.SUCCEEDED)
    assert settle(store, [(held, End(Move.FINISH))])
    assert state(store, event) == "done"


def test_use_stored(store: Store, parked: tuple[UUID, UUID]) -> None:
    """The stored bytes are sent under the stored key, whatever the handler sends now."""
    event, call = parked
    resolve(store, call, Resolution.USE_STORED, "ann")
    found = planned(store, take(store, event), body=b"other", fingerprint=OTHER)
    assert (found.id, found.state, found.handler_changed) == (call, "pending", None)
    assert (found.key, found.body) == ("key-letter-0", b'{"to":"Ann"}')
    assert "use-stored" not in call_story(store, call).as_json()["next"]


def test_give_up(store: Store, parked: tuple[UUID, UUID]) -> None:
    """The event is dead with the person's name as reason, and is not nudged."""
    event, call = parked
    assert not resolve(store, call, Resolution.GIVE_UP, "ann").nudge
    now = row(store, event)
    assert (now.state, now.discarded, now.reason) == (
        "dead", True, "Its call 'letter' was given up by ann.",
    )  # fmt: skip
    assert now.finished_at is not None
    assert (call_row(store, call).state, call_row(store, call).ended_at is None) == ("given up", False)
    later(store, days=2)
    deliver(store)
    assert state(store, event) == "dead"


@pytest.mark.parametrize("how", WAYS)
def test_each_resolution_leaves_an_audit_row(
    store: Store, parked: tuple[UUID, UUID], how: Resolution
) -> None:
    """The audit has the person, the resolution and the call; the event is not parked for it any more."""
    event, call = parked
    resolve(store, call, how, "ann")
    (action,) = story(store, event).as_json()["actions"]
    assert (action["what"], action["who"], action["was"], action["call"]) == (how, "ann", "parked", str(call))
    (sentence,) = call_story(store, call).as_json()["actions"]
    assert (sentence["what"], sentence["who"]) == (how, "ann")
    assert call_row(store, call).reason.endswith("ann.")
    assert row(store, event).parked_call is None


def refused(store: Store, call: UUID, how: Resolution, words: str) -> None:
    """Resolve, and check that it is refused with these words and that nothing changed."""
    event = call_row(store, call).event
    before = call_row(store, call), row(store, event)
    with pytest.raises(NotAllowed, match=words):
        resolve(store, call, how, "ann")
    assert (call_row(store, call), row(store, event)) == before, "a refusal changed something"
    assert rows_of(store, ACTION, event) == []


@pytest.mark.parametrize("start", [item for item in State if item != State.PARKED])
def test_only_a_parked_events_call_is_resolved(store: Store, parked: tuple[UUID, UUID], start: State) -> None:
    """Unless the event is parked, the resolution is refused."""
    event, call = parked
    lease = row(store, event).due_at if start == State.PROCESSING else None
    change(store, event, state=start, lease_until=lease)
    for how in WAYS:
        refused(store, call, how, f"cannot be resolved while its event is {start}")


def test_a_call_of_another_generation_is_left_alone(store: Store, parked: tuple[UUID, UUID]) -> None:
    """Calls of an earlier generation cannot be resolved."""
    event, call = parked
    change(store, event, generation=1)
    for how in WAYS:
        refused(store, call, how, "is of generation 0; the event is in 1 now")


@pytest.mark.parametrize("ended", [item for item in CallState if item not in ("pending", "parked")])
def test_a_call_that_ended_is_not_resolved(store: Store, parked: tuple[UUID, UUID], ended: CallState) -> None:
    """Succeeded, rejected, replaced and given-up calls cannot be resolved."""
    _, call = parked
    change_call(store, call, state=ended)
    for how in WAYS:
        refused(store, call, how, f"is {ended}; there is nothing left to resolve")


def test_a_resend_as_new_waits_until_nothing_is_under_way(store: Store) -> None:
    """resend-as-new is refused until the deadline and the settle delay of the last send are over."""
    event, call = with_parked_call(store)
    refused(store, call, Resolution.RESEND_AS_NEW, "may still be under way there; resend it as new after 20")
    later(store, seconds=40)
    refused(store, call, Resolution.RESEND_AS_NEW, "may still be under way there")
    later(store, seconds=10)
    resolve(store, call, Resolution.RESEND_AS_NEW, "ann")
    assert state(store, event) == "waiting"


def test_there_are_stored_bytes_to_choose_only_if_the_handler_changed(store: Store) -> None:
    """use-stored is refused unless the handler's request changed."""
    _, call = with_parked_call(store)
    refused(store, call, Resolution.USE_STORED, "was never asked for with other bytes; retry the event")


def test_an_unknown_call_is_named(store: Store) -> None:
    """The error contains the id."""
    missing = uuid4()
    with pytest.raises(UnknownCall, match=str(missing)):
        resolve(store, missing, Resolution.GIVE_UP, "ann")


def test_of_several_people_at_once_one_decides(store: Store, parked: tuple[UUID, UUID]) -> None:
    """Of concurrent contradicting resolutions one succeeds, and the others change nothing."""
    event, call = parked

    def attempt(how: Resolution) -> Resolution | None:
        try:
            resolve(store, call, how, f"who says {how}")
        except NotAllowed:
            return None
        return how

    with ThreadPoolExecutor(len(WAYS)) as pool:
        with store.write() as connection:
            connection.execute(select(EVENT.c.id).where(EVENT.c.id == event).with_for_update())
            attempts = [pool.submit(attempt, how) for how in WAYS]
            if not store.sqlite:
                wait_until(lambda: waiting(connection) == len(WAYS), "all of them to meet at the event")
        (taken,) = [found for found in (item.result() for item in attempts) if found]
    (action,) = rows_of(store, ACTION, event)
    assert action.what == taken
    assert call_row(store, call).reason.endswith(f"who says {taken}.")
    assert state(store, event) == ("dead" if taken == Resolution.GIVE_UP else "waiting")


def waiting(connection: Connection) -> int:
    """Count the sessions of this PostgreSQL database that wait for a lock."""
    mine = "datname = current_database() AND wait_event_type = 'Lock'"
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {mine}"
    # Otherwise the transaction would keep the statistics that it read first.
    connection.execute(text("SELECT pg_stat_clear_snapshot()"))
    return int(connection.execute(text(query)).scalar_one())


def test_a_late_answer_before_the_resolution_stands(store: Store) -> None:
    """A late response ends the call, which can then not be resolved."""
    event = deliver(store).event
    held = take(store, event)
    call = planned(store, held).id
    answered(store, held, call, SendOutcome.UNKNOWN, 0, open=True, park=True)
    settle(store, [(held, End(Move.FINISH))])
    with store.read() as connection:
        send = connection.execute(select(SEND.c.id).where(SEND.c.call == call)).scalar_one()
    judged = Classification(SendOutcome.SUCCEEDED, reason="201 Created.")
    answer = StoredResponse(201, (), b"{}")
    record_response(
        store, held, call, SendResult(send, answer, lambda *_: judged, TERMS, timedelta(seconds=5))
    )
    refused(store, call, Resolution.GIVE_UP, "is succeeded; there is nothing left to resolve")
    assert state(store, event) == "waiting"


def test_a_broken_audit_resolves_nothing(
    store: Store, parked: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Call, event and audit row change in one transaction."""
    event, call = parked

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("receiver.ledger.control.resolution.note_action", broken)
    with pytest.raises(RuntimeError):
        resolve(store, call, Resolution.HAPPENED, "ann")
    assert (call_row(store, call).state, state(store, event)) == ("parked", "parked")
    assert opened(store, call) == [True]
