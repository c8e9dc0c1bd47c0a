"""Time that a test moves."""


class Clock:
    """Stands in for the module `time`: it moves when a test says so, and whoever sleeps on it moves it."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, 0.0

    def monotonic(self) -> float:
        """Return its time, in seconds."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move on at once."""
        self.now += seconds
        self.slept += seconds
