"""How calls look on a terminal: each with its key, its sends and its answer."""

from collections.abc import Iterator
from typing import Any

import click

from firstseen.output import labelled, moment, plural, tinted, visible, visible_lines
from receiver.ledger.states import CallState

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
