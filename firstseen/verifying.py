"""`verify`: is a captured delivery genuine, and if not, which step fails and why."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from config.nesting import load_json
from config.providers import Provider
from firstseen.context import Context, pass_context
from firstseen.diagnosis import Case, hints
from firstseen.options import Command, json_option
from firstseen.output import print_json, visible
from receiver.endpoints import Endpoint, build_endpoints
from receiver.signatures import CannotVerify, InvalidSignature, Request

STEPS = {
    "no_secret": "read the secret",
    "missing_signature": "find the signature",
    "malformed_signature": "read the signature",
    "repeated_value": "read the signed values",
    "missing_timestamp": "read the signed values",
    "malformed_timestamp": "read the signed values",
    "missing_value": "read the signed values",
    "unreadable_body": "read the signed values",
    "unmet_requirement": "check what must be there",
    "refused_algorithm": "read the signature",
    "foreign_key": "find the key",
    "bad_signature": "compare the signature",
    "unmet_claim": "check what the signature says",
    "stale_timestamp": "check the time",
    "future_timestamp": "check the time",
}
"""The step of a verification that each reason belongs to, in the words that a person is shown."""

UNPROVEN = "This sender proves nothing, and its source lets everything in: unverified = true."
UNEXPLAINED = (
    "None of the usual causes explains it. Compare the secret with the one that the provider shows for this"
    " endpoint, and test and live mode."
)
SIGNS_URL = (
    "The URL is signed, too: {url} was tried, and what proxies make of it. Name the one that the provider"
    " calls with --url."
)


@dataclass(frozen=True)
class Verdict:
    """What is printed; `events` are the ids and types that a verified delivery holds."""

    source: str
    provider: str
    verified: bool
    step: str | None = None
    reason: str | None = None
    detail: str | None = None
    hints: tuple[str, ...] = ()
    events: tuple[dict[str, str], ...] = ()


def _file(name: str, text: str) -> Callable[[Command], Command]:
    kind = click.Path(exists=True, dir_okay=False, path_type=Path)
    return click.option(name, name.lstrip("-"), type=kind, required=True, help=text)


@click.command()
@click.argument("source")
@_file("--headers", "The headers as JSON: an object, or a list of pairs.")
@_file("--body", "The body, byte for byte.")
@click.option("--method", default="POST", show_default=True, help="The request's method.")
@click.option("--url", help="The URL that the provider called (default: FIRSTSEEN_PUBLIC_URL's).")
@click.option("--at", type=float, metavar="UNIX-TIME", help="When it came, in seconds (default: now).")
@json_option
@pass_context
def verify(context: Context, /, source: str, *, at: float | None, as_json: bool, **what: Any) -> None:
    """Verify a captured delivery, and say which step fails and why.

    Exits 0 when it is genuine, 1 when it is rejected, 2 when that cannot be found out.
    """
    endpoint = _endpoint(context, source)
    verdict = _judge(endpoint, _request(context, source, what), time.time() if at is None else at)
    if as_json:
        print_json(asdict(verdict))
    else:
        _print(verdict)
    if not verdict.verified:
        raise click.exceptions.Exit(1)


def _endpoint(context: Context, name: str) -> Endpoint:
    if name not in context.sources:
        known = ", ".join(sorted(context.sources)) or "none"
        raise click.UsageError(f"There is no source {name!r}; configured are {known}.")
    source = context.sources[name]
    if source.problem:
        raise click.UsageError(f"{source.problem}.")
    return build_endpoints({name: source})[name]


def _request(context: Context, name: str, what: dict[str, Any]) -> Request:
    base = context.settings.public_url or f"http://localhost:{context.settings.port}"
    url = what["url"] or f"{base}/webhooks/{name}"
    return Request(what["method"], url, _read_headers(what["headers"]), what["body"].read_bytes())


def _read_headers(file: Path) -> tuple[tuple[str, str], ...]:
    try:
        found = load_json(file.read_text(encoding="utf-8-sig"))
        pairs = found.items() if isinstance(found, dict) else [(name, value) for name, value in found]
        flat = [
            (name, one) for name, value in pairs for one in (value if isinstance(value, list) else [value])
        ]
    except (OSError, ValueError, TypeError):
        flat = [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, str) for name, value in flat):
        raise click.BadParameter(
            'write {"Name": "value"}, or [["Name", "value"]] where one comes twice', param_hint="--headers"
        )
    return tuple(flat)


def _judge(endpoint: Endpoint, request: Request, now: float) -> Verdict:
    source = endpoint.source
    verdict = Verdict(source.name, source.provider.name, verified=True)
    try:
        endpoint.verify(request, now)
    except CannotVerify as error:
        raise click.UsageError(f"It cannot be verified now: {error}.") from None
    except InvalidSignature as error:
        found = tuple(hints(Case(source, endpoint.scheme, request, now, error)))
        told = found or tuple(_unexplained(source.provider, request, error.reason))
        step = STEPS[error.reason]
        return Verdict(source.name, source.provider.name, False, step, error.reason, str(error), told)  # noqa: FBT003
    items = endpoint.items(request)
    unproven = [UNPROVEN] if source.provider.verification is not None else []
    problems = dict.fromkeys(f"It would be parked. {item.problem}" for item in items if item.problem)
    told = (*unproven, *problems)
    events = tuple({"event_id": item.event_id, "type": item.type} for item in items)
    return Verdict(**{**asdict(verdict), "events": events, "hints": told})


def _unexplained(provider: Provider, request: Request, reason: str) -> Iterator[str]:
    if reason == "bad_signature":
        if provider.signs_url:
            yield SIGNS_URL.format(url=request.url)
        yield UNEXPLAINED


def _print(verdict: Verdict) -> None:
    word, colour = ("verified", "green") if verdict.verified else ("rejected", "red")
    lines = [("source", f"{verdict.source} ({verdict.provider})"), ("verdict", click.style(word, fg=colour))]
    if not verdict.verified:
        lines += [("step", f"{verdict.step} ({verdict.reason})"), ("why", f"{verdict.detail}.")]
    lines += [("hint", hint) for hint in verdict.hints]
    lines += [("event", f"{event['event_id']}  {event['type']}") for event in verdict.events]
    for name, text in lines:
        click.echo(f"{click.style(name.ljust(9), bold=True)}{text if name == 'verdict' else visible(text)}")
