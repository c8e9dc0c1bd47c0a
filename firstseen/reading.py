"""`events`, `stats`, `sources`: what there is."""

from typing import Any

import click

from firstseen.context import Context, pass_context
from firstseen.options import filter_of, filter_options, json_option
from firstseen.output import moment, print_json, print_table
from receiver.api.views import describe
from receiver.ledger.reports import list_events
from receiver.ledger.reports import stats as figures
from receiver.ledger.states import CallState, State
from receiver.redaction import redacted_rows

PAGE = 50
SHOWN = ("source", "event_id", "type", "state", "attempts", "duplicates", "reason")


@click.command()
@filter_options
@click.option(
    "--limit", type=click.IntRange(1, 500), default=PAGE, show_default=True, help="Events on a page."
)
@click.option("--cursor", help="Where the page starts; the previous one prints it.")
@json_option
@pass_context
def events(context: Context, /, *, limit: int, cursor: str | None, as_json: bool, **given: Any) -> None:
    """List events, newest first."""
    page = list_events(context.ledger, filter_of(given), limit=limit, cursor=cursor)
    data = redacted_rows(context.sources, context.ledger, page.data)
    if as_json:
        print_json({"data": data, "next": page.next})
        return
    rows = [(moment(event["received_at"]), *(event[name] for name in SHOWN)) for event in data]
    print_table(("received", *SHOWN), rows)
    if page.next:
        click.echo(f"More: the same command with --cursor {page.next}", err=True)


@click.command()
@json_option
@pass_context
def stats(context: Context, *, as_json: bool) -> None:
    """Count events by source and state, rejections by reason, and calls by API and state."""
    found = figures(context.ledger)
    if as_json:
        print_json(found)
        return
    states = [str(state) for state in State]
    head = ("source", "accepted", "duplicates", "conflicts", *states, "oldest unfinished", "rejected")
    print_table(head, [_figures_row(row, states) for row in found["data"]])
    if found["calls"]:
        click.echo()
        kinds = [str(state) for state in CallState]
        rows = [(row["api"], row["count"], *row["states"].values(), _told(row)) for row in found["calls"]]
        print_table(("api", "calls", *kinds, "last told"), rows)


def _figures_row(row: dict[str, Any], states: list[str]) -> tuple[Any, ...]:
    refused = ", ".join(f"{number} {reason}" for reason, number in sorted(row["rejections"].items()))
    counts = (row["states"][state] for state in states)
    plain = (row["source"], row["accepted"], row["duplicates"], row["conflicts"])
    return (*plain, *counts, moment(row["oldest_unfinished"]), refused)


def _told(row: dict[str, Any]) -> str:
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(row["outcomes"].items()))


@click.command()
@json_option
@pass_context
def sources(context: Context, *, as_json: bool) -> None:
    """List the configured sources, and what is wrong with them."""
    configured = [describe(source) for source in context.sources.values()]
    if as_json:
        print_json({"data": configured, "next": None})
        return
    rows = [(s["name"], s["provider"], s["path"], s["secrets"], s["problem"] or "ok") for s in configured]
    print_table(("source", "provider", "path", "secrets", "problem"), rows)
