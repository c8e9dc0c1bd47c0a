"""What commands share: the context of one run, output for terminals and programs, and options.

`Context` makes each part when it is first asked for, since `firstseen version` needs none of it.
`print_json`, `print_table` and `print_page` write; `visible` lets nothing through that a sender could smuggle
in. `options` adds several options to a command; `filter_options` are those that `filter_of` reads.
"""

import getpass
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import click

from config.apis import Api, load_apis
from config.dialects import load_dialects
from config.providers import load_providers
from config.settings import Settings, environment, load_settings
from config.sources import Source, load_sources
from config.toml import parse_duration
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports.models import CallsView, EventsView, Shape
from receiver.ledger.schema import check_schema
from receiver.ledger.states import State
from receiver.ledger.store import Store
from receiver.requests import Which
from receiver.service import Service


class CommandFailed(click.ClickException):
    """Exit 1: not found, not allowed, or refused by the other side."""

    exit_code = 1


class Context:
    """One run of the command line."""

    @cached_property
    def settings(self) -> Settings:
        """What the environment says; raises ConfigError."""
        return load_settings()

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The configured sources by name; raises ConfigError."""
        return load_sources(self.settings.sources_path, load_providers(), environment())

    @cached_property
    def apis(self) -> Mapping[str, Api]:
        """The configured APIs by name; raises ConfigError."""
        return load_apis(self.settings.apis_path, load_dialects(), environment())

    @cached_property
    def database(self) -> Store:
        """The ledger's database, whatever its schema."""
        return Store(self.settings.database, pool=self.settings.db_pool)

    @cached_property
    def ledger(self) -> Store:
        """The ledger, its schema checked; raises LedgerUnavailable or SchemaBehind."""
        check_schema(self.database)
        return self.database

    @cached_property
    def service(self) -> Service:
        """What people may see and do; actions nudge nobody, and the sweeper finds what is due."""
        # The ledger first: if both are broken, its error says more than the configuration's.
        return Service(self.ledger, self.sources)

    @cached_property
    def counting_service(self) -> Service:
        """The service for commands that show no event: counts and bulk operations."""
        # It needs no sources, and so works while they are misconfigured.
        return Service(self.ledger, {})

    def source(self, name: str) -> Source:
        """Return a configured source. Raises CommandFailed."""
        if name not in self.sources:
            raise CommandFailed(
                f"There is no source {name!r}; configured are {', '.join(sorted(self.sources)) or 'none'}."
            )
        return self.sources[name]

    def close(self) -> None:
        """Close what was opened."""
        if "database" in self.__dict__:
            self.database.close()


pass_context = click.make_pass_decorator(Context)


def system_user() -> str:
    """Return the system's name of the user, for the audit. Raises CommandFailed."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise CommandFailed("The system has no name for this user: say --who, for the audit.") from None


Command = Callable[..., Any]

COLOURS = {
    "received": "white",
    "processing": "cyan",
    "waiting": "blue",
    "done": "green",
    "parked": "yellow",
    "dead": "red",
    "ignored": "bright_black",
    "pending": "blue",
    "succeeded": "green",
    "rejected": "red",
    "replaced": "bright_black",
    "given up": "bright_black",
    "ok": "green",
    "warn": "yellow",
    "FAIL": "red",
}


def print_json(value: Any) -> None:
    """Print a read model, or a value, as JSON, one line, ASCII only."""
    click.echo(json.dumps(value.as_json() if isinstance(value, Shape) else value))


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows under a head in columns; the last column keeps its length."""
    lines = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (head, *lines)]
    click.echo(click.style("  ".join(padded[0]).rstrip(), bold=True))
    for row in padded[1:]:
        click.echo("  ".join(tinted(cell) for cell in row).rstrip())


def print_page(page: EventsView | CallsView, time: str, columns: Sequence[str]) -> None:
    """Print a page as a table: the items' `<time>_at`, these columns, and how to get the next page."""
    rows = [
        (moment(getattr(item, f"{time}_at")), *(getattr(item, name) for name in columns))
        for item in page.data
    ]
    print_table((time, *columns), rows)
    if page.next:
        click.echo(f"More: the same command with --cursor {page.next}", err=True)


def labelled(label: str, fact: str) -> str:
    """Return a line that begins with a label, in a column of its own."""
    return click.style(label.ljust(12) if fact else label, bold=True) + fact


def tinted(text: str) -> str:
    """Return a word in its colour, if it has one; blanks around it stay."""
    colour = COLOURS.get(text.strip())
    return click.style(text, fg=colour) if colour else text


def visible(value: Any) -> str:
    """Return a value as one line without control characters: ids and reasons come from outside."""
    text = "" if value is None else str(value)
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def visible_lines(text: str) -> list[str]:
    """Return a longer text as lines, each without control characters."""
    return [visible(line) for line in text.splitlines()]


def moment(at: datetime | None) -> str:
    """Write a time as RFC 3339, cut to whole seconds."""
    return "" if at is None else f"{at:%Y-%m-%dT%H:%M:%SZ}"


def plural(number: int, word: str) -> str:
    """Return `1 event`, `2 events`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


class TimeParam(click.ParamType[datetime]):
    """A point in time: RFC 3339 (`2026-11-21T10:00:00Z`), or how long ago (`90s`, `2h`, `30d`)."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return an aware time; refuse what is neither."""
        if isinstance(value, datetime):
            return value
        with suppress(ValueError, OverflowError):
            return datetime.now(UTC) - parse_duration(value)
        with suppress(ValueError):
            at = datetime.fromisoformat(value)
            # Without an offset it could be anybody's noon.
            if at.utcoffset() is not None:
                return at
        raise click.BadParameter(
            f"{value!r} is neither a duration such as 2h nor a time such as 2026-11-21T10:00:00Z", ctx, param
        )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1 returns it.")


def options(*added: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Add options to a command, in the order in which its help lists them."""

    def add(command: Command) -> Command:
        for option in reversed(added):
            command = option(command)
        return command

    return add


def page_options(items: str) -> Callable[[Command], Command]:
    """Add `--limit` and `--cursor` of a list of `items`."""
    return options(
        click.option(
            "--limit", type=click.IntRange(1, 500), default=50, show_default=True, help=f"{items} on a page."
        ),
        click.option("--cursor", help="Where the page starts; the previous one prints it."),
    )


filter_options = options(
    click.option("--source", "by_source", metavar="NAME", help="Only events of this source."),
    click.option("--state", type=click.Choice([str(state) for state in State]), help="Only in this state."),
    click.option("--type", "event_type", metavar="TYPE", help="Only of this type."),
    click.option("--since", type=TimeParam(), help="Received since: 2h, 30d, or 2026-11-21T10:00:00Z."),
    click.option("--until", type=TimeParam(), help="Received before; written likewise."),
)


def filter_of(given: dict[str, Any]) -> EventFilter:
    """Return the filter that a command's options make."""
    which = Which(
        source=given["by_source"],
        state=given["state"],
        type=given["event_type"],
        since=given["since"],
        until=given["until"],
    )
    return which.as_filter()
