"""`calls`, `call show`, `call resolve`: outbound calls on the command line, and how a person resolves one.

`call_lines` prints an event's calls for `firstseen show`.
"""

import mimetypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from config.nesting import load_json
from firstseen import console
from firstseen.console import moment, plural, visible
from receiver.describe import RESOLUTIONS
from receiver.ledger.reports.models import Call, CallStory, Content, Send, Stored, ToldCall
from receiver.ledger.states import CallState
from receiver.requests import WhichCalls
from receiver.service import Resolution, StoredResponse
from worker.calls.transport import ANSWER_MAX

# Lines of a stored request or answer that are printed; `--json` has all of it.
BODY_LINES = 40

COLUMNS = ("id", "api", "step", "state", "source", "event_id", "reason")


@click.command()
@click.option("--state", type=click.Choice([str(state) for state in CallState]), help="Only in this state.")
@click.option("--api", metavar="NAME", help="Only of this API.")
@click.option("--source", metavar="NAME", help="Only of events of this source.")
@click.option("--event", "event_id", metavar="EVENT_ID", help="Only of the event with this id.")
@console.page_options("Calls")
@console.json_option
@console.pass_context
def calls(
    context: console.Context, /, *, limit: int, cursor: str | None, as_json: bool, **given: Any
) -> None:
    """List outbound calls, newest first; `--state parked` are those that wait for a person."""
    which = WhichCalls(**given).as_filter()
    page = context.service.list_calls(which, limit=limit, cursor=cursor)
    if as_json:
        console.print_json(page)
    else:
        console.print_page(page, "created", COLUMNS)


@click.group()
def call() -> None:
    """Look at one outbound call, or say what became of it."""


@call.command("show")
@click.argument("call_id", type=click.UUID, metavar="ID")
@console.json_option
@console.pass_context
def show(context: console.Context, call_id: UUID, *, as_json: bool) -> None:
    """Tell all about one call: its sends, its answer, and what happens next."""
    story = context.service.call_story(call_id)
    if as_json:
        console.print_json(story)
        return
    for line in _story_lines(story):
        click.echo(line)


@call.command("resolve")
@click.argument("call_id", type=click.UUID, metavar="ID")
@console.options(
    *(click.option(f"--{how}", is_flag=True, help=words.command_line) for how, words in RESOLUTIONS.items())
)
@click.option("--response", type=click.Path(path_type=Path), metavar="FILE", help="The answer's body.")
@click.option("--status", type=click.IntRange(200, 299), help="The answer's status (default: 200).")
@click.option("--who", help="The name for the audit (default: the system's user).")
@console.json_option
@console.pass_context
def resolve_call(context: console.Context, /, call_id: UUID, *, as_json: bool, **given: Any) -> None:
    """Say what became of a call whose event is parked, or shall; give exactly one of the four."""
    chosen = [how for how in RESOLUTIONS if given[how.replace("-", "_")]]
    if len(chosen) != 1:
        raise click.UsageError(f"Give exactly one of {', '.join(f'--{how}' for how in RESOLUTIONS)}.")
    how, file, status = chosen[0], given["response"], given["status"]
    if how != Resolution.HAPPENED and (file or status):
        raise click.UsageError("--response and --status go with --happened.")
    response = _response(file, status or 200)
    context.service.resolve(call_id, how, given["who"] or console.system_user(), response)
    story = context.service.call_story(call_id)
    if as_json:
        console.print_json(story)
        return
    click.echo(f"Call {visible(story.call.step)}: {visible(story.call.reason)}")
    click.echo(f"Event {visible(story.event.event_id)} is {story.event.state} now.")


def _response(file: Path | None, status: int) -> StoredResponse:
    if file is None:
        return StoredResponse(status, (), b"")
    try:
        body = file.read_bytes()
    except OSError as error:
        raise console.CommandFailed(
            f"Nothing is resolved: {file} cannot be read ({error.strerror or error})."
        ) from None
    if len(body) > ANSWER_MAX:
        raise console.CommandFailed(
            f"Nothing is resolved: {file} has {len(body)} bytes, and {ANSWER_MAX} are kept at most."
        )
    return StoredResponse(status, (("content-type", _content_type(file, body)),), body)


def _content_type(file: Path, body: bytes) -> str:
    named, _ = mimetypes.guess_type(file.name)
    if named not in (None, "text/plain"):
        return named
    try:
        load_json(body)
    except ValueError:
        return named or "application/octet-stream"
    return "application/json"


def call_lines(calls: Sequence[ToldCall]) -> Iterator[str]:
    """Yield an event's calls as lines for a terminal, each with its key, its sends and its answer."""
    if calls:
        yield console.labelled("calls", str(len(calls)))
    for call in calls:
        yield f"  {call.generation}.{call.position + 1}  {_headline(call)}"
        for name, fact in _facts(call, call.sends, call.answer).items():
            if fact:
                yield f"       {name.ljust(9)}{fact}"
        yield from _send_lines(call.sends, call.generation, "       ")


def _story_lines(story: CallStory) -> Iterator[str]:
    call, event = story.call, story.event
    yield click.style(_headline(call), bold=True)
    yield console.labelled("next", visible(story.next))
    yield console.labelled("event", f"{visible(event.source)} {visible(event.event_id)}, {event.state}")
    yield console.labelled(
        "call", f"{call.generation}.{call.position + 1}, created {moment(call.created_at)}"
    )
    for name, fact in _facts(call, story.sends, story.answer).items():
        if fact:
            yield console.labelled(name, fact)
    if story.sends:
        yield console.labelled("sends", str(call.send_count))
    yield from _send_lines(story.sends, call.generation, "  ")
    yield from _content_lines("body sent", story.request)
    yield from _content_lines("body got", story.answer)
    if story.actions:
        yield console.labelled("actions", str(len(story.actions)))
    for action in story.actions:
        yield f"  {moment(action.at)}  {action.what} by {visible(action.who)}"


def _send_lines(sends: Sequence[Send], generation: int, indent: str) -> Iterator[str]:
    for send in sends:
        by = f"attempt {generation}.{send.attempt}"
        end = send.outcome or ("no answer yet" if send.open else "not open any more")
        still = click.style(", open", fg="yellow") if send.open and send.outcome else ""
        reason = f": {visible(send.reason)}" if send.reason else ""
        yield f"{indent}send {send.number}  {moment(send.at)}  {by}  {end}{still}{reason}"


def _headline(call: Call) -> str:
    again = f" (successor {call.successor})" if call.successor else ""
    return f"{visible(call.step)}{again}  {visible(call.api)}  {console.tinted(call.state)}"


def _facts(call: Call, sends: Sequence[Send], answer: Stored | Content | None) -> dict[str, str]:
    key = call.protection if call.key is None else call.key
    if call.key is not None:
        key += f", until {moment(call.expires_at)}" if call.expires_at else ", not sent yet"
    changed = reply = ""
    if call.changed_to:
        changed = f"the handler asks for {call.changed_to[:12]}, stored is {call.fingerprint[:12]}"
    if call.status is not None:
        kept = f"{plural(answer.size, 'byte')} {visible(answer.content_type)}" if answer else "not kept"
        reply = f"{call.status}, {kept}".rstrip()
    # A reason that the last send gives already is not repeated.
    known = sends[-1].reason if sends else None
    return {
        "id": str(call.id),
        "request": visible(f"{call.method} {call.url}"),
        "key": key,
        "once": visible(call.once),
        "shares": f"the answer of call {call.shares}" if call.shares else "",
        "changed": changed,
        "reason": "" if call.reason == known else visible(call.reason),
        "due": moment(call.due_at) if call.state == CallState.PENDING else "",
        "answer": reply,
    }


def _content_lines(name: str, content: Content | None) -> Iterator[str]:
    if content is None or not content.size:
        return
    if content.encoding != "utf-8":
        yield console.labelled(name, f"{plural(content.size, 'byte')}, no text")
        return
    lines = console.visible_lines(content.body)
    yield console.labelled(name, "")
    for line in lines[:BODY_LINES]:
        yield f"  {line}"
    if len(lines) > BODY_LINES:
        yield f"  ... and {plural(len(lines) - BODY_LINES, 'line')} more"
