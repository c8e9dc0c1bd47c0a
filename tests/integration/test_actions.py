"""People's actions on events: each is one guarded change with one audit row."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from receiver.ledger.control import discard, promote, rerun, retry
from receiver.ledger.errors import NotAllowed, UnknownEvent
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import expire, settle
from receiver.ledger.reports import story
from receiver.ledger.states import Move, State, leaves
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION
from tests.integration.steps import change, conflicts, count, deliver, end, later, row, rows_of, state, take
from tests.services.claiming import claim

ACTIONS = {Move.RETRY: retry, Move.RERUN: rerun, Move.DISCARD: discard}


def act(store: Store, move: Move, event: Any, **guard: Any) -> Any:
    """Act as Ann; a rerun expects generation 0 by default."""
    return ACTIONS[move](store, event, "ann", **({"generation": 0} | guard if move == Move.RERUN else guard))


def test_retry_makes_a_dead_event_due_with_fresh_attempts(store: Store) -> None:
    """A retry keeps the generation, resets attempts and crashes, and makes the event claimable."""
    event = deliver(store).event
    end(store, event, Move.GIVE_UP, reason="All 15 attempts failed.")
    change(store, event, attempts=15, crashes=3, nudges=4)
    acted = retry(store, event, "ann")
    now = row(store, event)
    assert (acted.was, acted.state, acted.nudge) == (State.DEAD, State.WAITING, True)
    assert (now.state, now.generation, now.attempts, now.crashes, now.nudges) == ("waiting", 0, 0, 0, 0)
    assert (now.finished_at, now.reason, now.discarded) == (None, None, False)
    assert take(store, event).attempt == 1


def test_retry_of_a_waiting_event_brings_it_forward(store: Store) -> None:
    """A retry makes an event due that would back off for an hour."""
    event = deliver(store).event
    end(store, event, Move.RETRY_LATER, delay=timedelta(hours=1))
    assert claim(store, event, lease=timedelta(seconds=9), worker="w") is None
    retry(store, event, "ann")
    assert take(store, event).generation == 0


def test_rerun_starts_the_next_generation(store: Store) -> None:
    """A done event runs again one generation later."""
    event = deliver(store).event
    end(store, event)
    assert rerun(store, event, "ann", generation=0).generation == 1
    assert take(store, event).generation == 1


def test_rerun_with_a_stale_generation_is_refused(store: Store) -> None:
    """Of two reruns from the same view, the second is refused, even after the first has ended."""
    event = deliver(store).event
    end(store, event)
    rerun(store, event, "ann", generation=0)
    end(store, event)
    with pytest.raises(NotAllowed, match="is in generation 1, not 0"):
        rerun(store, event, "bob", generation=0)
    assert row(store, event).generation == 1


def test_concurrent_reruns_start_one_generation(store: Store) -> None:
    """Of eight concurrent reruns from the same view, one succeeds."""
    event = deliver(store).event
    end(store, event)

    def attempt(_: int) -> bool:
        try:
            return rerun(store, event, "ann", generation=0).generation == 1
        except NotAllowed:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1
    assert len(rows_of(store, ACTION, event)) == 1


def test_discard_ends_an_event_for_good(store: Store) -> None:
    """A discarded event is dead, its reason names the person, and no delivery revives it."""
    event = deliver(store).event
    discard(store, event, "ann")
    later(store, days=2)
    deliver(store)
    now = row(store, event)
    assert (now.state, now.discarded, now.reason) == ("dead", True, "Discarded by ann.")
    assert now.finished_at is not None


def test_a_retry_undoes_a_discard(store: Store) -> None:
    """A retry makes a discarded event due, and lets deliveries revive it again."""
    event = deliver(store).event
    discard(store, event, "ann")
    retry(store, event, "ann")
    now = row(store, event)
    assert (now.state, now.discarded, now.finished_at) == ("waiting", False, None)


@pytest.mark.parametrize("move", ACTIONS)
@pytest.mark.parametrize("start", State)
def test_every_state_allows_just_what_the_table_says(store: Store, move: Move, start: State) -> None:
    """An action is allowed exactly in the states of the transition table; a refusal names the state."""
    event = deliver(store).event
    lease = row(store, event).due_at if start == State.PROCESSING else None
    change(store, event, state=start, lease_until=lease)
    if start in leaves(move):
        assert act(store, move, event).was == start
        return
    with pytest.raises(NotAllowed) as refused:
        act(store, move, event)
    assert str(refused.value).startswith(f"Event evt_1 is {start}; ")
    assert state(store, event) == start, "a refused action changed the state"
    assert rows_of(store, ACTION, event) == []


@pytest.mark.parametrize("move", [Move.RETRY, Move.RERUN])
def test_an_erased_payload_cannot_run_again(store: Store, move: Move) -> None:
    """The refusal says that the payload was erased."""
    event = deliver(store).event
    end(store, event, Move.GIVE_UP)
    change(store, event, body=None, headers=None)
    with pytest.raises(NotAllowed, match=f"cannot {move}: its payload was erased"):
        act(store, move, event)


@pytest.mark.parametrize("move", ACTIONS)
def test_an_unknown_event_is_named(store: Store, move: Move) -> None:
    """The error of an action on an unknown event contains the id."""
    missing = uuid4()
    with pytest.raises(UnknownEvent, match=str(missing)):
        act(store, move, missing)


def test_every_action_leaves_an_audit_row(store: Store) -> None:
    """The row has the person, the action, the generation, and the state before it."""
    event = deliver(store).event
    discard(store, event, "ann")
    later(store, minutes=1)
    rerun(store, event, "bob\x00" * 100, generation=0)
    rows = sorted(rows_of(store, ACTION, event), key=lambda one: one.at)
    assert [(one.what, one.was, one.generation) for one in rows] == [
        ("discard", "received", 0),
        ("rerun", "dead", 1),
    ]
    assert rows[0].who == "ann"
    assert rows[1].who.startswith("bob\\x00bob"), "a name that no column holds was not made storable"


def test_an_action_overtakes_no_running_worker(store: Store) -> None:
    """Actions are refused while a worker holds the event, and allowed once its lease has expired."""
    event = deliver(store).event
    held = take(store, event)
    with pytest.raises(NotAllowed, match="a worker is running it now"):
        discard(store, event, "ann")
    later(store, minutes=5)
    expire(store)
    discard(store, event, "ann")
    assert not settle(store, [(held, Outcome(Move.FINISH))]), "a late worker settled a discarded event"


def test_a_conflicting_body_becomes_an_event(store: Store) -> None:
    """The new event has the body, headers and type of the conflict, a derived id, and is due."""
    event = deliver(store, body=b"first").event
    deliver(store, body=b"other", headers={"X-Shop": "a"}, content_type="text/plain")
    kept = conflicts(store, event)[0]
    made = promote(store, event, kept.body_hash, "ann")
    assert (made.created, made.event_id) == (True, f"evt_1#{kept.body_hash[:12]}")
    held = take(store, made.id)
    assert (held.body, held.content_type, held.type) == (b"other", "text/plain", "invoice.paid")
    assert held.headers == '{"X-Shop": "a"}'


def test_a_second_promotion_returns_the_same_event(store: Store) -> None:
    """Concurrent promotions of one body make one event and one audit row."""
    event = deliver(store, body=b"first").event
    deliver(store, body=b"other")
    body_hash = conflicts(store, event)[0].body_hash
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: promote(store, event, body_hash, "ann"), range(6)))
    assert len({item.id for item in made}) == 1
    assert sum(item.created for item in made) == 1
    assert count(store) == 2
    report = story(store, event).as_json()
    assert report["conflicts"][0]["promoted_to"] == str(made[0].id)
    assert [action["what"] for action in report["actions"]] == ["promote"]


def test_an_id_at_the_limit_still_gets_its_suffix(store: Store) -> None:
    """The derived id fits the column, however long the original id is."""
    event = deliver(store, "e" * 255, body=b"first").event
    deliver(store, "e" * 255, body=b"other")
    made = promote(store, event, conflicts(store, event)[0].body_hash, "ann")
    assert len(row(store, made.id).event_id) == 255


def test_an_unknown_body_cannot_be_promoted(store: Store) -> None:
    """An unknown body is refused, and so is an unknown event."""
    event = deliver(store).event
    with pytest.raises(NotAllowed, match="keeps no conflicting body abc"):
        promote(store, event, "abc", "ann")
    with pytest.raises(UnknownEvent):
        promote(store, uuid4(), "abc", "ann")
