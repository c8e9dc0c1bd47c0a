"""Many events at once: count, list, act, show how far it is, go on where it was interrupted."""

import sys
import time
from typing import Any
from uuid import UUID

import click

from firstseen.context import CommandFailed
from firstseen.output import plural, print_json
from receiver.ledger.control import candidates, plan, progress, step
from receiver.ledger.filter import EventFilter
from receiver.ledger.states import Move
from receiver.ledger.store import Store

BATCH = 100
"""Events of one transaction: short enough to let deliveries through on SQLite."""

PAUSE = 0.2
"""Seconds to wait when every open step is in another process's hands."""


def count_first(store: Store, move: Move, which: EventFilter, *, as_json: bool) -> None:
    """Say how many events a bulk run would act on, and act on none."""
    number = candidates(store, move, which)
    if as_json:
        print_json({"what": move, "filter": which.as_json(), "dry_run": True, "total": number})
        return
    click.echo(f"{plural(number, 'event')} to {move}; nothing is done yet: add --yes to do it.")


def run_all(store: Store, move: Move, which: EventFilter, who: str, *, as_json: bool) -> None:
    """List the events of a filter and act on each once."""
    replay = plan(store, move, which, who)
    if replay.total:
        hint = f"Bulk run {replay.id}: if it is interrupted, `firstseen {move} --resume {replay.id}` goes on."
        click.echo(hint, err=True)
    _run(store, replay.id, replay.total)
    _report(progress(store, replay.id), as_json=as_json)


def resume(store: Store, move: Move, replay: UUID, *, as_json: bool) -> None:
    """Go on with a bulk run; what it has done is not done again."""
    found = progress(store, replay)
    if found["what"] != move:
        raise CommandFailed(
            f"Bulk run {replay} is a {found['what']}: say firstseen {found['what']} --resume {replay}."
        )
    _run(store, replay, found["open"])
    _report(progress(store, replay), as_json=as_json)


def _run(store: Store, replay: UUID, number: int) -> None:
    with click.progressbar(length=number, file=sys.stderr) as bar:
        left = True
        while left:
            stepped = step(store, replay, batch=BATCH)
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
