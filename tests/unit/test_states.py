"""The table of transitions: complete, without dead ends, and equal to its diagram."""

import re

import pytest

from receiver.ledger.control import Resolution
from receiver.ledger.states import TRANSITIONS, UNFINISHED, CallState, Move, State, enters, leaves
from tests.services.checkout import CHECKOUT

DIAGRAM = CHECKOUT / "docs" / "states.md"
ARROW = re.compile(r"^\s+(\[\*\]|\w+) --> (\w+)(?:: ([\w ]+))?$", re.MULTILINE)
FINAL = {State.DONE, State.DEAD, State.IGNORED}


def page(part: int) -> str:
    """Return the event's part of the page (0), or the call's (1)."""
    return DIAGRAM.read_text().split("# The call's states")[part]


def arrows() -> set[tuple[str, str, str]]:
    """Return every arrow of the table as (from, to, label)."""
    return {(state, enters(move), move) for move in Move for state in leaves(move)}


def reachable(start: set[State]) -> set[State]:
    """Return the states that moves can lead to from these."""
    seen = set(start)
    while True:
        further = {State(to) for source, to, _ in arrows() if source in seen} - seen
        if not further:
            return seen
        seen |= further


def test_every_move_has_an_entry() -> None:
    """With at least one state to leave."""
    assert set(TRANSITIONS) == set(Move)
    assert all(leaves(move) for move in Move)


def test_every_state_is_reachable_from_received() -> None:
    assert reachable({State.RECEIVED}) == set(State)


@pytest.mark.parametrize("state", State)
def test_done_is_reachable_from_every_state(state: State) -> None:
    assert State.DONE in reachable({state}), f"an event that is {state} can never be handled"


def test_only_a_claim_starts_processing_and_only_from_unfinished() -> None:
    """No other move enters processing, and an event that ended is never claimed."""
    assert [move for move in Move if enters(move) == State.PROCESSING] == [Move.CLAIM]
    assert leaves(Move.CLAIM) == UNFINISHED


def test_only_its_worker_moves_a_processing_event() -> None:
    """No delivery and no person does."""
    others = {Move.REVIVE, Move.REOPEN, Move.RETRY, Move.RERUN, Move.DISCARD}
    assert {move for move in others if State.PROCESSING in leaves(move)} == set()


def test_an_event_that_ended_runs_again_only_on_purpose() -> None:
    """A done event leaves by a rerun alone, so that no retry or delivery repeats its effects."""
    assert {move for move in Move if State.DONE in leaves(move)} == {Move.RERUN}
    assert all(enters(move) == State.WAITING for move in Move if set(leaves(move)) & FINAL)


def test_the_diagram_is_the_table() -> None:
    """docs/states.md draws each arrow of the table once, and no other."""
    drawn = ARROW.findall(page(0))
    assert {(source, to, label) for source, to, label in drawn if source != "[*]"} == arrows()
    assert {to for source, to, _ in drawn if source == "[*]"} == {State.RECEIVED, State.PARKED}
    assert len(drawn) == len(set(drawn)), "an arrow is drawn twice"


@pytest.mark.parametrize(("part", "states"), [(0, State), (1, CallState)])
def test_the_page_explains_every_state(part: int, states: type[State | CallState]) -> None:
    """One row for each state of an event, and one for each of a call."""
    rows = re.findall(r"^\| (\w[\w ]*) \|", page(part), re.MULTILINE)
    assert [row for row in rows if row != "resolution"] == ["state", *states]


def test_the_page_explains_every_resolution() -> None:
    """Its effects on the call and its event."""
    assert re.findall(r"^\| `([\w-]+)` \|", page(1), re.MULTILINE) == list(Resolution)
