"""`calls`, `call show`, `call resolve`: what handlers asked of other APIs, and what a person says of it."""

import mimetypes
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from config.nesting import load_json
from firstseen.context import Context, No, pass_context, system_user
from firstseen.options import json_option
from firstseen.output import moment, print_json, print_table, visible
from firstseen.showing_calls import told_call
from receiver.ledger.calls.reading import CallFilter, list_calls
from receiver.ledger.calls.resolving import Resolution, Response, resolve
from receiver.ledger.calls.states import CallState
from receiver.ledger.calls.story import call_story
from receiver.redaction import redacted_calls
from worker.calls.wire import ANSWER_MAX

PAGE = 50
SHOWN = ("id", "api", "step", "state", "source", "event_id", "reason")
WAYS = {
    Resolution.HAPPENED: "It happened: the handler goes on with --response.",
    Resolution.RESEND_AS_NEW: "Send it as a new call, under a new key.",
    Resolution.USE_STORED: "Send the stored bytes, though the handler asks for others now.",
    Resolution.GIVE_UP: "Leave it, and end its event.",
}
SUCCESS = click.IntRange(200, 299)


@click.command()
@click.option("--state", type=click.Choice([str(state) for state in CallState]), help="Only in this state.")
@click.option("--api", metavar="NAME", help="Only of this API.")
@click.option("--source", metavar="NAME", help="Only of events of this source.")
@click.option("--event", "event_id", metavar="EVENT_ID", help="Only of the event with this id.")
@click.option(
    "--limit", type=click.IntRange(1, 500), default=PAGE, show_default=True, help="Calls on a page."
)
@click.option("--cursor", help="Where the page starts; the previous one prints it.")
@json_option
@pass_context
def calls(
    context: Context, /, *, state: str | None, limit: int, cursor: str | None, as_json: bool, **given: Any
) -> None:
    """List outbound calls, newest first; `--state parked` are those that wait for a person."""
    which = CallFilter(state=CallState(state) if state else None, **given)
    page = list_calls(context.ledger, which, limit=limit, cursor=cursor)
    data = redacted_calls(context.sources, context.ledger, page.data)
    if as_json:
        print_json({"data": data, "next": page.next})
        return
    rows = [(moment(one["created_at"]), *(one[name] for name in SHOWN)) for one in data]
    print_table(("created", *SHOWN), rows)
    if page.next:
        click.echo(f"More: the same command with --cursor {page.next}", err=True)


@click.group()
def call() -> None:
    """Look at one outbound call, or say what became of it."""


@call.command("show")
@click.argument("call_id", type=click.UUID, metavar="ID")
@json_option
@pass_context
def show(context: Context, call_id: UUID, *, as_json: bool) -> None:
    """Tell all about one call: its sends, its answer, and what happens next."""
    told = _told(context, call_id)
    if as_json:
        print_json(told)
        return
    for line in told_call(told):
        click.echo(line)


def _told(context: Context, call_id: UUID) -> Any:
    told = call_story(context.ledger, call_id)
    return context.shown(UUID(told["call"]["event"]), told)


def _ways(command: Any) -> Any:
    for how, text in reversed(WAYS.items()):
        command = click.option(f"--{how}", is_flag=True, help=text)(command)
    return command


@call.command("resolve")
@click.argument("call_id", type=click.UUID, metavar="ID")
@_ways
@click.option("--response", type=click.Path(path_type=Path), metavar="FILE", help="The answer's body.")
@click.option("--status", type=SUCCESS, help="The answer's status (default: 200).")
@click.option("--who", help="The name for the audit (default: the system's user).")
@json_option
@pass_context
def resolve_call(context: Context, /, call_id: UUID, *, as_json: bool, **given: Any) -> None:
    """Say what became of a call whose event is parked, or shall; give exactly one of the four."""
    chosen = [how for how in WAYS if given[how.replace("-", "_")]]
    if len(chosen) != 1:
        raise click.UsageError(f"Give exactly one of {', '.join(f'--{how}' for how in WAYS)}.")
    how, file, status = chosen[0], given["response"], given["status"]
    if how != Resolution.HAPPENED and (file or status):
        raise click.UsageError("--response and --status go with --happened.")
    response = _response(file, status or Response.status)
    resolve(context.ledger, call_id, how, given["who"] or system_user(), response=response)
    now = _told(context, call_id)
    if as_json:
        print_json(now)
        return
    event = now["event"]
    click.echo(f"Call {visible(now['call']['step'])}: {visible(now['call']['reason'])}")
    click.echo(f"Event {visible(event['event_id'])} is {event['state']} now.")


def _response(file: Path | None, status: int) -> Response:
    if file is None:
        return Response(status)
    try:
        body = file.read_bytes()
    except OSError as error:
        raise No(f"Nothing is resolved: {file} cannot be read ({error.strerror or error}).") from None
    if len(body) > ANSWER_MAX:
        raise No(f"Nothing is resolved: {file} has {len(body)} bytes, and {ANSWER_MAX} are kept at most.")
    return Response(status, (("content-type", _content_type(file, body)),), body)


def _content_type(file: Path, body: bytes) -> str:
    named, _ = mimetypes.guess_type(file.name)
    if named not in (None, "text/plain"):
        return named
    try:
        load_json(body)
    except ValueError:
        return named or "application/octet-stream"
    return "application/json"
