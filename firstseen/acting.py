"""`retry`, `rerun`, `discard`: one event by its name, or many by a filter."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import click

from firstseen.bulk import count_first, resume, run_all
from firstseen.context import Context, pass_context, system_user
from firstseen.options import filter_of, filter_options, json_option
from firstseen.output import print_json, visible
from receiver.ledger.control import actions as ledger
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports import find_event, story
from receiver.ledger.states import Move

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
        ledger.retry(context.ledger, event, who, generation=generation)
    elif move == Move.DISCARD:
        ledger.discard(context.ledger, event, who, generation=generation)
    else:
        seen = story(context.ledger, event)["event"]["generation"] if generation is None else generation
        ledger.rerun(context.ledger, event, who, generation=seen)
