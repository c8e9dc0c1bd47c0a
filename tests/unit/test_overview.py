"""The overview's cache: an answer is computed once and shared."""

import threading

import pytest

from receiver.dashboard.overview import LIFE_LEAST, LIFE_SHARE, Cached
from tests.services.clock import Clock


def test_an_answer_is_kept_for_longer_the_longer_it_took() -> None:
    """An answer that took a second is kept for LIFE_SHARE seconds."""
    clock, computed = Clock(), list[int]()

    def compute() -> int:
        clock.now += 1.0
        computed.append(1)
        return len(computed)

    answer = Cached(compute, clock.monotonic)
    assert [answer.get() for _ in range(5)] == [1] * 5
    clock.now += LIFE_SHARE - 0.5
    assert answer.get() == 1
    clock.now += 1
    assert answer.get() == 2
    assert LIFE_LEAST < LIFE_SHARE


def test_answers_can_share_a_turn() -> None:
    """The turn is held while an answer is computed, and free afterwards."""
    turn = threading.Lock()
    assert Cached(turn.locked, Clock().monotonic, turn).get()
    assert not turn.locked()


def test_a_failure_is_not_kept() -> None:
    """The next caller computes again."""
    failures = [ValueError("no")]

    def compute() -> int:
        if failures:
            raise failures.pop()
        return 7

    answer = Cached(compute, Clock().monotonic)
    with pytest.raises(ValueError, match="no"):
        answer.get()
    assert answer.get() == 7
