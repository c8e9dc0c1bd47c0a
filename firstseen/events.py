"""Events on the command line: `events`, `show`, `stats`, `sources`, and `retry`, `rerun`, `discard`.

The three actions take one event by its names, or many by a filter: then they count, and with `--yes` carry
out a bulk operation in steps that `--resume` continues.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from config.toml import ConfigError
from firstseen import console
from firstseen.calls import call_lines
from firstseen.console import moment, plural, visible
from receiver.describe import ACTIONS
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports.models import EventInFull, Story
from receiver.ledger.states import CallState, Move, State
from receiver.service import Service, describe_sources

COLUMNS = ("source", "event_id", "type", "state", "attempts", "duplicates", "reason")

FLAGS = {
    "suspected_replay": "suspected replay",
    "calls_changed": "its handler asks for other bytes in a call that succeeded",
}

# Events of one transaction: short enough to let deliveries through on SQLite.
BATCH = 100

# Seconds to wait when every open step is in another process's hands.
PAUSE = 0.2

_action_options = console.options(
    click.argument("source", required=False),
    click.argument("event_id", required=False),
    console.filter_options,
    click.option(
        "--yes", is_flag=True, help="Act on all that the filter finds; without it they are counted."
    ),
    click.option(
        "--resume", "replay", type=click.UUID, metavar="ID", help="Go on with an interrupted bulk run."
    ),
    click.option("--generation", type=click.IntRange(0), help="Only if the event is in this generation."),
    click.option("--who", help="The name for the audit (default: the system's user)."),
    console.json_option,
    console.pass_context,
)


@click.command()
@console.filter_options
@console.page_options("Events")
@console.json_option
@console.pass_context
def events(
    context: console.Context, /, *, limit: int, cursor: str | None, as_json: bool, **given: Any
) -> None:
    """List events, newest first."""
    page = context.service.list_events(console.filter_of(given), limit=limit, cursor=cursor)
    if as_json:
        console.print_json(page)
    else:
        console.print_page(page, "received", COLUMNS)


@click.command()
@console.json_option
@console.pass_context
def stats(context: console.Context, *, as_json: bool) -> None:
    """Count events by source and state, rejections by reason, and calls by API and state."""
    found = context.counting_service.stats()
    if as_json:
        console.print_json(found)
        return
    columns = ("source", "accepted", "duplicates", "conflicts")
    rows = [
        (
            *(getattr(figures, name) for name in columns),
            *(figures.states[state] for state in State),
            moment(figures.oldest_unfinished),
            ", ".join(f"{number} {reason}" for reason, number in sorted(figures.rejections.items())),
        )
        for figures in found.data
    ]
    console.print_table((*columns, *State, "oldest unfinished", "rejected"), rows)
    if found.calls:
        click.echo()
        apis = [
            (
                figures.api,
                figures.count,
                *figures.states.values(),
                ", ".join(f"{number} {outcome}" for outcome, number in sorted(figures.outcomes.items())),
            )
            for figures in found.calls
        ]
        console.print_table(("api", "calls", *CallState, "last told"), apis)


@click.command()
@console.json_option
@console.pass_context
def sources(context: console.Context, *, as_json: bool) -> None:
    """List the configured sources, and what is wrong with them."""
    configured = describe_sources(context.sources)
    if as_json:
        console.print_json(configured)
        return
    rows = [
        (source.name, source.provider, source.path, source.secrets, source.problem or "ok")
        for source in configured.data
    ]
    console.print_table(("source", "provider", "path", "secrets", "problem"), rows)


@click.command()
@click.argument("source")
@click.argument("event_id")
@console.json_option
@console.pass_context
def show(context: console.Context, source: str, event_id: str, *, as_json: bool) -> None:
    """Tell the whole story of an event, and what happens next."""
    story = context.service.story(context.service.find_event(source, event_id))
    if as_json:
        console.print_json(story)
        return
    for line in _story_lines(story):
        click.echo(line)


def _story_lines(story: Story) -> Iterator[str]:
    yield from _event_lines(story.event)
    yield console.labelled("next", visible(story.next))
    if story.duplicates.count:
        span = f"first {moment(story.duplicates.first)}, last {moment(story.duplicates.last)}"
        yield console.labelled("duplicates", f"{story.duplicates.count}: {span}")
    for duplicate in story.duplicates.latest:
        yield f"  {moment(duplicate.at)}  {visible(duplicate.address)}".rstrip()
    if story.conflicts:
        yield console.labelled("conflicts", f"{plural(len(story.conflicts), 'conflict')} kept")
    for conflict in story.conflicts:
        fate = f", promoted to {conflict.promoted_to}" if conflict.promoted_to else ""
        yield f"  {moment(conflict.at)}  {conflict.body_hash}  {plural(conflict.size, 'byte')}{fate}"
    if story.attempts:
        yield console.labelled("attempts", str(len(story.attempts)))
    for attempt in story.attempts:
        end = f"{attempt.outcome} {moment(attempt.ended_at)}" if attempt.outcome else "running"
        number = f"{attempt.generation}.{attempt.number}"
        yield f"  {number}  {moment(attempt.started_at)}  {end}  by {visible(attempt.worker)}"
        if attempt.reason:
            yield f"       {visible(attempt.reason)}"
        for line in console.visible_lines(attempt.error or ""):
            yield click.style(f"       {line}", dim=True)
    yield from call_lines(story.calls)
    if story.actions:
        yield console.labelled("actions", str(len(story.actions)))
    for action in story.actions:
        of = f", call {action.call}" if action.call else ""
        yield f"  {moment(action.at)}  {action.what} by {visible(action.who)}, was {action.was}{of}"


def _event_lines(event: EventInFull) -> Iterator[str]:
    yield click.style(f"{visible(event.source)} {visible(event.event_id)}", bold=True)
    size = "payload erased" if event.size is None else plural(event.size, "byte")
    facts = {
        "state": console.tinted(event.state),
        "reason": visible(event.reason),
        "type": visible(event.type),
        "id": str(event.id),
        "received": f"{moment(event.received_at)} from {visible(event.address) or 'unknown'}, {size}",
        "created": moment(event.created_at),
        "finished": moment(event.finished_at),
        "generation": str(event.generation),
        "flags": ", ".join(word for name, word in FLAGS.items() if getattr(event, name)),
    }
    for name, fact in facts.items():
        if fact:
            yield console.labelled(name, fact)


@click.command()
@_action_options
def retry(context: console.Context, **given: Any) -> None:
    """Run events again in the same generation: calls keep their keys, so nothing happens twice.

    Name one event by SOURCE and EVENT_ID, or many by options.
    """
    _act(context, Move.RETRY, given)


@click.command()
@_action_options
def rerun(context: console.Context, **given: Any) -> None:
    """Run events again in a new generation, with new keys: every effect happens again, on purpose.

    Name one event by SOURCE and EVENT_ID, or many by options.
    """
    _act(context, Move.RERUN, given)


@click.command()
@_action_options
def discard(context: console.Context, **given: Any) -> None:
    """End events for good: no handler runs, and no new delivery revives them.

    Name one event by SOURCE and EVENT_ID, or many by options.
    """
    _act(context, Move.DISCARD, given)


def _act(context: console.Context, move: Move, given: dict[str, Any]) -> None:
    which = console.filter_of(given)
    wanted = [given["source"] is not None, which != EventFilter(), given["replay"] is not None]
    if sum(wanted) != 1 or (given["source"] and not given["event_id"]):
        raise click.UsageError(
            "Name one event by SOURCE and EVENT_ID, or many by a filter, or a run to resume."
        )
    who = given["who"] or console.system_user()
    if given["source"]:
        _act_on_one(context, move, who, given)
    else:
        _act_on_many(context.counting_service, move, which, who, given)


def _act_on_one(context: console.Context, move: Move, who: str, given: dict[str, Any]) -> None:
    try:
        service = context.service
    except ConfigError:
        # Wrong sources must not keep anybody from acting; with them nobody knows what to redact.
        service = context.counting_service
    event = service.find_event(given["source"], given["event_id"])
    service.act(move, event, who, generation=given["generation"])
    story = service.story(event)
    if given["as_json"]:
        console.print_json(story.event)
        return
    click.echo(f"{visible(given['event_id'])} {ACTIONS[move].command_line}. {visible(story.next)}")


def _act_on_many(service: Service, move: Move, which: EventFilter, who: str, given: dict[str, Any]) -> None:
    """Count what the filter finds; with `--yes`, or to resume a run, act on it batch by batch."""
    if given["replay"]:
        run = service.bulk_progress(given["replay"])
        if run.what != move:
            again = f"firstseen {run.what} --resume {run.id}"
            raise console.CommandFailed(f"Bulk run {run.id} is a {run.what}: say {again}.")
    elif given["yes"]:
        run = service.start_bulk(move, which, who)
        if run.total:
            again = f"`firstseen {move} --resume {run.id}` goes on."
            click.echo(f"Bulk run {run.id}: if it is interrupted, {again}", err=True)
    else:
        counted = service.count(move, which)
        if given["as_json"]:
            console.print_json(counted)
        else:
            number = plural(counted.total, "event")
            click.echo(f"{number} to {move}; nothing is done yet: add --yes to do it.")
        return
    with click.progressbar(length=run.open, file=sys.stderr) as bar:
        left = True
        while left:
            stepped = service.step_bulk(run.id, BATCH)
            left = stepped.left
            bar.update(stepped.done + stepped.skipped)
            if left and not stepped.done + stepped.skipped:
                time.sleep(PAUSE)
    ended = service.bulk_progress(run.id)
    if given["as_json"]:
        console.print_json(ended)
        return
    skipped = f", {ended.skipped} had moved on and were left alone" if ended.skipped else ""
    click.echo(f"{ended.what}: {ended.done} of {plural(ended.total, 'event')} done{skipped}.")
