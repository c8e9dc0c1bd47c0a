"""Options that several commands share."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from config.toml import parse_duration
from receiver.ledger import Filter, State

Command = Callable[..., Any]


class Moment(click.ParamType[datetime]):
    """A point in time: RFC 3339 (`2026-11-21T10:00:00Z`), or how long ago (`90s`, `2h`, `30d`)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return an aware time; refuse what is neither."""
        if isinstance(value, datetime):
            return value
        moment = _ago(value) or _written(value)
        if moment is None:
            self.fail(
                f"{value!r} is neither a duration such as 2h nor a time such as 2026-11-21T10:00:00Z",
                param,
                ctx,
            )
        return moment


def _ago(text: str) -> datetime | None:
    try:
        return datetime.now(UTC) - parse_duration(text)
    except (ValueError, OverflowError):
        return None


def _written(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    # Without an offset it could be anybody's noon.
    return moment if moment.utcoffset() is not None else None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1 returns it.")

_FILTERS = (
    click.option("--source", "by_source", metavar="NAME", help="Only events of this source."),
    click.option("--state", type=click.Choice([str(state) for state in State]), help="Only in this state."),
    click.option("--type", "event_type", metavar="TYPE", help="Only of this type."),
    click.option("--since", type=Moment(), help="Received since: 2h, 30d, or 2026-11-21T10:00:00Z."),
    click.option("--until", type=Moment(), help="Received before; written likewise."),
)


def filter_options(command: Command) -> Command:
    """Add the options that `filter_of` reads."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def filter_of(given: dict[str, Any]) -> Filter:
    """Return the filter that a command's options make."""
    state = given["state"]
    return Filter(
        source=given["by_source"],
        state=State(state) if state else None,
        type=given["event_type"],
        since=given["since"],
        until=given["until"],
    )
