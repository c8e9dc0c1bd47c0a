"""What a handler may raise to say how its attempt ended."""

from datetime import timedelta

AFTER_MAX = timedelta(hours=24)
"""A longer wait is cut to this: whoever asked for more is asked again."""


class Retry(Exception):
    """Run this event again after a while. `after` is in seconds; left out, the handler's back-off decides."""

    def __init__(
        self, after: float | None = None, reason: str = "The handler asked for another run."
    ) -> None:
        super().__init__(reason)
        self.after = (
            None if after is None else timedelta(seconds=min(max(0.0, after), AFTER_MAX.total_seconds()))
        )


class Dead(Exception):
    """This event can never succeed: keep it, dead, with this reason."""

    def __init__(self, reason: str = "The handler gave this event up.") -> None:
        super().__init__(reason)
