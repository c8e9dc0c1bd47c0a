"""The throttle of sign-in attempts."""

from receiver.dashboard.auth import Throttle
from tests.services.clock import Clock


def throttle_of(clock: Clock, **options: int) -> Throttle:
    """Return a throttle over 60 seconds of the test's clock."""
    return Throttle(span=60, clock=clock.monotonic, **options)


def test_attempts_are_allowed_up_to_the_limit_and_again_later() -> None:
    """`take` returns how many seconds to wait."""
    clock = Clock()
    begun, throttle = clock.now, throttle_of(clock)
    for second in range(3):
        clock.now = begun + second
        assert throttle.take({"a": 3}) == 0
    assert throttle.take({"a": 3}) == 58
    clock.now = begun + 59.5
    assert throttle.take({"a": 3}) == 1
    clock.now = begun + 60
    assert throttle.take({"a": 3}) == 0


def test_every_key_counts() -> None:
    """A key at its limit refuses the attempt, and a refused attempt counts for no key."""
    throttle = throttle_of(Clock())
    assert throttle.take({"ada here": 1, "here": 2}) == 0
    assert throttle.take({"ada here": 1, "here": 2}) == 60
    assert throttle.take({"bob here": 1, "here": 2}) == 0
    assert throttle.take({"eve here": 1, "here": 2}) == 60


def test_a_successful_attempt_is_given_back() -> None:
    """The right password is never throttled; wrong attempts before it still count."""
    throttle = throttle_of(Clock())
    for _ in range(10):
        assert throttle.take({"a": 2}) == 0
        throttle.give_back(["a"])
    assert [throttle.take({"a": 2}) for _ in range(3)] == [0, 0, 60]


def test_memory_is_bounded() -> None:
    throttle = throttle_of(Clock(), room=100)
    for number in range(1_000):
        throttle.take({f"name {number}": 5})
    assert len(throttle._tries) == 100
