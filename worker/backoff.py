"""How long a failed event waits: exponential with full jitter, so that failures do not return in step."""

from datetime import timedelta
from random import Random

BASE = timedelta(seconds=2)
"""The first wait is at most this long; it doubles from there, up to FIRSTSEEN_BACKOFF_MAX."""

DOUBLINGS_MAX = 60


def backoff(attempt: int, *, cap: timedelta, rng: Random, base: timedelta = BASE) -> timedelta:
    """Return a wait between 0 and `base * 2**(attempt - 1)`, at most `cap`; attempts count from 1."""
    ceiling = min(cap.total_seconds(), base.total_seconds() * 2.0 ** min(attempt - 1, DOUBLINGS_MAX))
    return timedelta(seconds=rng.uniform(0, ceiling))
