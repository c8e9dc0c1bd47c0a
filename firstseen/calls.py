"""`calls`, `call show`, `call resolve`: what handlers asked of other APIs, and what a person says of it."""

import mimetypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from config.nesting import load_json
from firstseen.console import (
    CommandFailed,
    Context,
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
from receiver.ledger.control import Resolution, StatedResponse, resolve
from receiver.ledger.filter import CallFilter
from receiver.ledger.reports import call_story, list_calls
from receiver.ledger.states import CallState
from receiver.redaction import redacted_calls
from worker.calls.transport import ANSWER_MAX

# How calls look on a terminal: each with its key, its sends and its answer.


BODY_LINES = 40
"""Lines of a stored request or answer that are printed; `--json` has all of it."""


def told_calls(calls: list[dict[str, Any]]) -> Iterator[str]:
    """Yield an event's calls, in their order, as `story` has them."""
    if calls:
        yield labelled("calls", str(len(calls)))
    for one in calls:
        yield f"  {one['generation']}.{one['position'] + 1}  {_headline(one)}"
        for name, fact in _facts(one, one).items():
            if fact:
                yield f"       {name.ljust(9)}{fact}"
        yield from _sends(one["sends"], one["generation"], "       ")


def told_call(told: dict[str, Any]) -> Iterator[str]:
    """Yield all about one call, as `call_story` has it."""
    one, event = told["call"], told["event"]
    yield click.style(_headline(one), bold=True)
    yield labelled("next", visible(told["next"]))
    yield labelled("event", f"{visible(event['source'])} {visible(event['event_id'])}, {event['state']}")
    yield labelled("call", f"{one['generation']}.{one['position'] + 1}, created {moment(one['created_at'])}")
    for name, fact in _facts(one, told).items():
        if fact:
            yield labelled(name, fact)
    if told["sends"]:
        yield labelled("sends", str(one["send_count"]))
    yield from _sends(told["sends"], one["generation"], "  ")
    yield from _content("body sent", told["request"])
    yield from _content("body got", told["answer"])
    if told["actions"]:
        yield labelled("actions", str(len(told["actions"])))
    for action in told["actions"]:
        yield f"  {moment(action['at'])}  {action['what']} by {visible(action['who'])}"


def _sends(sends: list[dict[str, Any]], generation: int, indent: str) -> Iterator[str]:
    for send in sends:
        by = f"attempt {generation}.{send['attempt']}"
        end = send["outcome"] or ("no answer yet" if send["open"] else "not open any more")
        still = click.style(", open", fg="yellow") if send["open"] and send["outcome"] else ""
        reason = f": {visible(send['reason'])}" if send["reason"] else ""
        yield f"{indent}send {send['number']}  {moment(send['at'])}  {by}  {end}{still}{reason}"


def _headline(one: dict[str, Any]) -> str:
    again = f" (successor {one['successor']})" if one["successor"] else ""
    return f"{visible(one['step'])}{again}  {visible(one['api'])}  {tinted(one['state'])}"


def _facts(one: dict[str, Any], told: dict[str, Any]) -> dict[str, str]:
    protection = one["protection"] if one["key"] is None else f"{one['key']}, {_life(one)}"
    # What its last send says already is not said twice.
    known = told["sends"][-1]["reason"] if told["sends"] else None
    return {
        "id": one["id"],
        "request": visible(f"{one['method']} {one['url']}"),
        "key": protection,
        "once": visible(one["once"]),
        "shares": f"the answer of call {one['shares']}" if one["shares"] else "",
        "changed": _changed(one),
        "reason": "" if one["reason"] == known else visible(one["reason"]),
        "due": moment(one["due_at"]) if one["state"] == CallState.PENDING else "",
        "answer": _answer(one, told["answer"]),
    }


def _life(one: dict[str, Any]) -> str:
    return f"until {moment(one['expires_at'])}" if one["expires_at"] else "not sent yet"


def _changed(one: dict[str, Any]) -> str:
    if not one["changed_to"]:
        return ""
    return f"the handler asks for {one['changed_to'][:12]}, stored is {one['fingerprint'][:12]}"


def _answer(one: dict[str, Any], answer: dict[str, Any] | None) -> str:
    if one["status"] is None:
        return ""
    kept = f"{plural(answer['size'], 'byte')} {visible(answer['content_type'])}" if answer else "not kept"
    return f"{one['status']}, {kept}".rstrip()


def _content(name: str, content: dict[str, Any] | None) -> Iterator[str]:
    if content is None or not content["size"]:
        return
    if content["encoding"] != "utf-8":
        yield labelled(name, f"{plural(content['size'], 'byte')}, no text")
        return
    lines = visible_lines(content["body"])
    yield labelled(name, "")
    for line in lines[:BODY_LINES]:
        yield f"  {line}"
    if len(lines) > BODY_LINES:
        yield f"  ... and {plural(len(lines) - BODY_LINES, 'line')} more"


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
    response = _response(file, status or StatedResponse.status)
    resolve(context.ledger, call_id, how, given["who"] or system_user(), response=response)
    now = _told(context, call_id)
    if as_json:
        print_json(now)
        return
    event = now["event"]
    click.echo(f"Call {visible(now['call']['step'])}: {visible(now['call']['reason'])}")
    click.echo(f"Event {visible(event['event_id'])} is {event['state']} now.")


def _response(file: Path | None, status: int) -> StatedResponse:
    if file is None:
        return StatedResponse(status)
    try:
        body = file.read_bytes()
    except OSError as error:
        raise CommandFailed(
            f"Nothing is resolved: {file} cannot be read ({error.strerror or error})."
        ) from None
    if len(body) > ANSWER_MAX:
        raise CommandFailed(
            f"Nothing is resolved: {file} has {len(body)} bytes, and {ANSWER_MAX} are kept at most."
        )
    return StatedResponse(status, (("content-type", _content_type(file, body)),), body)


def _content_type(file: Path, body: bytes) -> str:
    named, _ = mimetypes.guess_type(file.name)
    if named not in (None, "text/plain"):
        return named
    try:
        load_json(body)
    except ValueError:
        return named or "application/octet-stream"
    return "application/json"
