"""`show`: the whole story of one event, for a person to read."""

from collections.abc import Iterator
from typing import Any

import click

from firstseen.context import Context, pass_context
from firstseen.options import json_option
from firstseen.output import labelled, moment, plural, print_json, tinted, visible, visible_lines
from firstseen.showing_calls import told_calls
from receiver.ledger.reports import find_event, story

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
    for line in _told(told):
        click.echo(line)


def _told(told: dict[str, Any]) -> Iterator[str]:
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
