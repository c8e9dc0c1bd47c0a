"""Guessing is slow, and costs a bounded memory."""

import threading

from receiver.dashboard.auth import Throttle
from receiver.dashboard.overview import LIFE_LEAST, LIFE_SHARE, Cached


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


def test_tries_are_allowed_up_to_the_limit_and_again_later() -> None:
    """The answer is how long to wait."""
    clock = Clock()
    throttle = Throttle(span=60, clock=clock)
    for second in range(3):
        clock.now = second
        assert throttle.take({"a": 3}) == 0
    assert throttle.take({"a": 3}) == 58
    clock.now = 59.5
    assert throttle.take({"a": 3}) == 1
    clock.now = 60
    assert throttle.take({"a": 3}) == 0


def test_every_key_counts() -> None:
    """One that is used up refuses the try, and the try counts for none of them."""
    throttle = Throttle(span=60, clock=Clock())
    assert throttle.take({"ada here": 1, "here": 2}) == 0
    assert throttle.take({"ada here": 1, "here": 2}) == 60
    assert throttle.take({"bob here": 1, "here": 2}) == 0
    assert throttle.take({"eve here": 1, "here": 2}) == 60


def test_a_right_one_is_given_back() -> None:
    """Who knows the password is never slowed down; wrong tries before it still count."""
    throttle = Throttle(span=60, clock=Clock())
    for _ in range(10):
        assert throttle.take({"a": 2}) == 0
        throttle.give_back(["a"])
    assert [throttle.take({"a": 2}) for _ in range(3)] == [0, 0, 60]


def test_memory_is_bounded() -> None:
    """However many names are tried, so many are remembered."""
    throttle = Throttle(span=60, room=100, clock=Clock())
    for number in range(1_000):
        throttle.take({f"name {number}": 5})
    assert len(throttle._tries) == 100


def test_an_answer_is_found_once_in_a_while() -> None:
    """Asking often costs nothing; a slow answer is found as much more rarely."""
    clock, found = Clock(), list[int]()

    def find() -> int:
        clock.now += 1.0
        found.append(1)
        return len(found)

    answer = Cached(find, clock)
    assert [answer.get() for _ in range(5)] == [1] * 5
    clock.now += LIFE_SHARE - 0.5
    assert answer.get() == 1
    clock.now += 1
    assert answer.get() == 2
    assert LIFE_LEAST < LIFE_SHARE


def test_answers_can_take_turns() -> None:
    """Those that share a turn hold one connection together, not one each."""
    turn = threading.Lock()
    assert Cached(turn.locked, Clock(), turn).get()
    assert not turn.locked()


def test_a_failure_is_not_remembered() -> None:
    """The next one asks again."""
    answers = iter([ValueError("no"), 7])

    def find() -> int:
        found = next(answers)
        if isinstance(found, ValueError):
            raise found
        return found

    answer = Cached(find, Clock())
    try:
        answer.get()
    except ValueError:
        assert answer.get() == 7
    else:
        raise AssertionError("it hides the failure")
