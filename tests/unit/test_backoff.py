"""Back-off between attempts."""

from datetime import timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.attempt import BASE, backoff

HOUR = timedelta(hours=1)


class Top(Random):
    """Randomness that always draws the upper end."""

    def uniform(self, a: float, b: float) -> float:  # noqa: ARG002
        """Return the upper end."""
        return b


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 2), (2, 4), (3, 8), (10, 1024), (12, 3600), (10_000, 3600)]
)
def test_the_ceiling_doubles_up_to_the_cap(attempt: int, seconds: float) -> None:
    """Huge attempt numbers do not overflow."""
    assert backoff(attempt, cap=HOUR, rng=Top()) == timedelta(seconds=seconds)


def test_a_handlers_first_wait_replaces_the_default() -> None:
    """The cap still applies."""
    minute = timedelta(minutes=1)
    assert backoff(2, cap=HOUR, rng=Top(), base=minute) == 2 * minute
    assert backoff(1, cap=minute, rng=Top(), base=HOUR) == minute


@given(attempt=st.integers(1, 10_000), seed=st.integers())
def test_every_wait_is_within_bounds(attempt: int, seed: int) -> None:
    """Never negative, never longer than the cap."""
    assert timedelta(0) <= backoff(attempt, cap=HOUR, rng=Random(seed)) <= HOUR


def test_jitter_is_full() -> None:
    """Waits spread over the whole range, so that events that failed together are not retried together."""
    rng = Random(1)
    waits = [backoff(1, cap=HOUR, rng=rng) / BASE for _ in range(200)]
    assert min(waits) < 0.1
    assert max(waits) > 0.9
    assert len(set(waits)) == len(waits)
