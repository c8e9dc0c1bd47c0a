"""`events`, `stats`, `sources`: what there is."""

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import click

from firstseen.calls import told_calls
from firstseen.console import (
    CommandFailed,
    Context,
    filter_of,
    filter_options,
    json_option,
    labelled,
    moment,
    pass_context,
    plural,
    print_json,
    print_table,
    system_user,
    tinted,
    visible,
    visible_lines,
)
from receiver.api.routes import describe
from receiver.ledger import control
from receiver.ledger.control import (
    bulk_candidates,
    bulk_progress,
    plan_bulk,
    step_bulk,
)
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports import find_event, list_events, story
from receiver.ledger.reports import stats as figures
from receiver.ledger.states import CallState, Move, State
from receiver.ledger.store import Store
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


# Many events at once: count, list, act, show how far it is, go on where it was interrupted.


BATCH = 100
"""Events of one transaction: short enough to let deliveries through on SQLite."""

PAUSE = 0.2
"""Seconds to wait when every open step is in another process's hands."""


def count_first(store: Store, move: Move, which: EventFilter, *, as_json: bool) -> None:
    """Say how many events a bulk run would act on, and act on none."""
    number = bulk_candidates(store, move, which)
    if as_json:
        print_json({"what": move, "filter": which.as_json(), "dry_run": True, "total": number})
        return
    click.echo(f"{plural(number, 'event')} to {move}; nothing is done yet: add --yes to do it.")


def run_all(store: Store, move: Move, which: EventFilter, who: str, *, as_json: bool) -> None:
    """List the events of a filter and act on each once."""
    replay = plan_bulk(store, move, which, who)
    if replay.total:
        hint = f"Bulk run {replay.id}: if it is interrupted, `firstseen {move} --resume {replay.id}` goes on."
        click.echo(hint, err=True)
    _run(store, replay.id, replay.total)
    _report(bulk_progress(store, replay.id), as_json=as_json)


def resume(store: Store, move: Move, replay: UUID, *, as_json: bool) -> None:
    """Go on with a bulk run; what it has done is not done again."""
    found = bulk_progress(store, replay)
    if found["what"] != move:
        raise CommandFailed(
            f"Bulk run {replay} is a {found['what']}: say firstseen {found['what']} --resume {replay}."
        )
    _run(store, replay, found["open"])
    _report(bulk_progress(store, replay), as_json=as_json)


def _run(store: Store, replay: UUID, number: int) -> None:
    with click.progressbar(length=number, file=sys.stderr) as bar:
        left = True
        while left:
            stepped = step_bulk(store, replay, batch=BATCH)
            left = stepped.left
            bar.update(stepped.done + stepped.skipped)
            if left and not stepped.done + stepped.skipped:
                time.sleep(PAUSE)


def _report(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    skipped = f", {found['skipped']} had moved on and were left alone" if found["skipped"] else ""
    click.echo(f"{found['what']}: {found['done']} of {plural(found['total'], 'event')} done{skipped}.")


# `retry`, `rerun`, `discard`: one event by its name, or many by a filter.


DONE = {Move.RETRY: "is due again", Move.RERUN: "runs again", Move.DISCARD: "is discarded"}

_OPTIONS = (
    click.argument("source", required=False),
    click.argument("event_id", required=False),
    filter_options,
    click.option(
        "--yes", is_flag=True, help="Act on all that the filter finds; without it they are counted."
    ),
    click.option(
        "--resume", "replay", type=click.UUID, metavar="ID", help="Go on with an interrupted bulk run."
    ),
    click.option("--generation", type=click.IntRange(0), help="Only if the event is in this generation."),
    click.option("--who", help="The name for the audit (default: the system's user)."),
    json_option,
    pass_context,
)


def _action(command: Callable[..., None]) -> click.Command:
    for option in reversed(_OPTIONS):
        command = option(command)
    return click.command()(command)


@_action
def retry(context: Context, **given: Any) -> None:
    """Run events again in the same generation: calls keep their keys, so nothing happens twice.

    Name one event by SOURCE and EVENT_ID, or many by options.
    """
    _act(context, Move.RETRY, given)


@_action
def rerun(context: Context, **given: Any) -> None:
    """Run events again in a new generation, with new keys: every effect happens again, on purpose.

    Name one event by SOURCE and EVENT_ID, or many by options.
    """
    _act(context, Move.RERUN, given)


@_action
def discard(context: Context, **given: Any) -> None:
    """End events for good: no handler runs, and no new delivery revives them.

    Name one event by SOURCE and EVENT_ID, or many by options.
    """
    _act(context, Move.DISCARD, given)


def _act(context: Context, move: Move, given: dict[str, Any]) -> None:
    which = filter_of(given)
    wanted = [given["source"] is not None, which != EventFilter(), given["replay"] is not None]
    if sum(wanted) != 1 or (given["source"] and not given["event_id"]):
        raise click.UsageError(
            "Name one event by SOURCE and EVENT_ID, or many by a filter, or a run to resume."
        )
    who = given["who"] or system_user()
    if given["source"]:
        _act_on_one(context, move, who, given)
    elif given["replay"]:
        resume(context.ledger, move, given["replay"], as_json=given["as_json"])
    elif given["yes"]:
        run_all(context.ledger, move, which, who, as_json=given["as_json"])
    else:
        count_first(context.ledger, move, which, as_json=given["as_json"])


def _act_on_one(context: Context, move: Move, who: str, given: dict[str, Any]) -> None:
    event = find_event(context.ledger, given["source"], given["event_id"])
    _carry_out(context, move, event, who, given["generation"])
    now = story(context.ledger, event)
    if given["as_json"]:
        print_json(now["event"])
        return
    click.echo(f"{visible(given['event_id'])} {DONE[move]}. {visible(now['next'])}")


def _carry_out(context: Context, move: Move, event: UUID, who: str, generation: int | None) -> None:
    if move == Move.RETRY:
        control.retry(context.ledger, event, who, generation=generation)
    elif move == Move.DISCARD:
        control.discard(context.ledger, event, who, generation=generation)
    else:
        seen = story(context.ledger, event)["event"]["generation"] if generation is None else generation
        control.rerun(context.ledger, event, who, generation=seen)


# `show`: the whole story of one event, for a person to read.


FLAGS = {
    "suspected_replay": "suspected replay",
    "calls_changed": "its handler asks for other bytes in a call that succeeded",
}


@click.command()
@click.argument("source")
@click.argument("event_id")
@json_option
@pass_context
def show(context: Context, source: str, event_id: str, *, as_json: bool) -> None:
    """Tell the whole story of an event, and what happens next."""
    event = find_event(context.ledger, source, event_id)
    told = context.shown(event, story(context.ledger, event))
    if as_json:
        print_json(told)
        return
    for line in _duplicate_lines(told):
        click.echo(line)


def _duplicate_lines(told: dict[str, Any]) -> Iterator[str]:
    yield from _event(told["event"])
    yield labelled("next", visible(told["next"]))
    yield from _duplicates(told["duplicates"])
    yield from _conflicts(told["conflicts"])
    yield from _attempts(told["attempts"])
    yield from told_calls(told["calls"])
    yield from _actions(told["actions"])


def _event(event: dict[str, Any]) -> Iterator[str]:
    yield click.style(f"{visible(event['source'])} {visible(event['event_id'])}", bold=True)
    size = "payload erased" if event["size"] is None else plural(event["size"], "byte")
    facts = {
        "state": tinted(event["state"]),
        "reason": visible(event["reason"]),
        "type": visible(event["type"]),
        "id": event["id"],
        "received": f"{moment(event['received_at'])} from {visible(event['address']) or 'unknown'}, {size}",
        "created": moment(event["created_at"]),
        "finished": moment(event["finished_at"]),
        "generation": str(event["generation"]),
        "flags": ", ".join(word for name, word in FLAGS.items() if event[name]),
    }
    for name, fact in facts.items():
        if fact:
            yield labelled(name, fact)


def _duplicates(duplicates: dict[str, Any]) -> Iterator[str]:
    if not duplicates["count"]:
        return
    span = f"first {moment(duplicates['first'])}, last {moment(duplicates['last'])}"
    yield labelled("duplicates", f"{duplicates['count']}: {span}")
    for one in duplicates["latest"]:
        yield f"  {moment(one['at'])}  {visible(one['address'])}".rstrip()


def _conflicts(conflicts: list[dict[str, Any]]) -> Iterator[str]:
    if conflicts:
        yield labelled("conflicts", f"{plural(len(conflicts), 'conflict')} kept")
    for one in conflicts:
        fate = f", promoted to {one['promoted_to']}" if one["promoted_to"] else ""
        yield f"  {moment(one['at'])}  {one['body_hash']}  {plural(one['size'], 'byte')}{fate}"


def _attempts(attempts: list[dict[str, Any]]) -> Iterator[str]:
    if attempts:
        yield labelled("attempts", str(len(attempts)))
    for one in attempts:
        number = f"{one['generation']}.{one['number']}"
        end = f"{one['outcome']} {moment(one['ended_at'])}" if one["outcome"] else "running"
        yield f"  {number}  {moment(one['started_at'])}  {end}  by {visible(one['worker'])}"
        if one["reason"]:
            yield f"       {visible(one['reason'])}"
        for line in visible_lines(one["error"] or ""):
            yield click.style(f"       {line}", dim=True)


def _actions(actions: list[dict[str, Any]]) -> Iterator[str]:
    if actions:
        yield labelled("actions", str(len(actions)))
    for one in actions:
        of = f", call {one['call']}" if one["call"] else ""
        yield f"  {moment(one['at'])}  {one['what']} by {visible(one['who'])}, was {one['was']}{of}"
