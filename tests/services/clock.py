"""A clock that a test moves."""


class Clock:
    """A replacement for the module `time`. Only the test and `sleep` move it."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, 0.0

    def monotonic(self) -> float:
        """Return its time in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Advance by this many seconds at once."""
        self.now += seconds
        self.slept += seconds
