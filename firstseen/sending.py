"""`send`: a delivery signed as its provider would sign it, to try a deployment without an account."""

import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from config.nesting import load_json
from firstseen.context import Context, No, pass_context
from firstseen.options import json_option
from firstseen.output import print_json, visible
from firstseen.samples import Sample, sample, signed_file
from receiver.signatures import CannotSign

TIMEOUT = 30.0
"""Seconds for one answer: more than any provider waits, so that a slow answer is seen, not cut."""


@dataclass(frozen=True)
class Answer:
    """What the receiver said to one delivery; `answer` is its body, parsed where it is JSON."""

    event_id: str
    status: int
    duplicate: bool
    answer: Any

    @property
    def accepted(self) -> bool:
        """Whether it was acknowledged."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


@click.command()
@click.argument("source")
@click.option(
    "--type", "event_type", metavar="TYPE", help="The event's type (default: the provider's usual one)."
)
@click.option("--times", type=click.IntRange(1), default=1, help="Deliver the same event so many times.")
@click.option("--id", "event_id", metavar="ID", help="The event's id (default: a new one).")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Send these bytes, not a sample.",
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The private key to sign with, where the provider has one of its own.",
)
@click.option("--url", help="Where the receiver is (default: this machine, at PORT).")
@json_option
@pass_context
def send(
    context: Context, /, source: str, *, times: int, url: str | None, as_json: bool, **what: Any
) -> None:
    """Deliver a realistic, signed event to a source, and print each answer.

    Exits 1 when a delivery is not accepted.
    """
    base = url or f"http://{_host(context.settings.host)}:{context.settings.port}"
    if urlsplit(base).scheme not in {"http", "https"} or not urlsplit(base).hostname:
        raise click.BadParameter("write it like http://127.0.0.1:8000", param_hint="--url")
    base, public = base.rstrip("/"), "" if url else context.settings.public_url
    signed = _delivery(context, source, f"{public or base}/webhooks/{source}", what)
    # Signed for the URL that providers call, and delivered to where that leads.
    delivery = replace(signed, url=base + signed.url.removeprefix(public or base))
    answers = []
    for number in range(times):
        answers.append(_post(delivery))
        if not as_json:
            click.echo(_told(number + 1, answers[-1]))
    if as_json:
        print_json({"data": [asdict(answer) for answer in answers], "next": None})
    if not all(answer.accepted for answer in answers):
        raise click.exceptions.Exit(1)


def _host(host: str) -> str:
    # What listens everywhere is reached here.
    return "127.0.0.1" if host in {"", "0.0.0.0", "::"} else host  # noqa: S104 - compared, never bound


def _delivery(context: Context, name: str, url: str, what: dict[str, Any]) -> Sample:
    source, file = context.source(name), what["file"]
    told = {"type": what["event_type"], "event_id": what["event_id"], "now": time.time(), "url": url}
    try:
        told["key"] = what["key"].read_text(encoding="ascii").strip() if what["key"] else ""
        return signed_file(source, file.read_bytes(), **told) if file else sample(source, **told)
    except UnicodeDecodeError:
        raise No(f"Nothing was sent to {name}: {what['key']} is no key, which is plain text.") from None
    except CannotSign as error:
        raise No(f"Nothing was sent to {name}: {error}.") from None


def _post(delivery: Sample) -> Answer:
    parts = urlsplit(delivery.url)
    make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        with closing(make(str(parts.hostname), parts.port, timeout=TIMEOUT)) as connection:
            connection.request(delivery.method, target, delivery.body, dict(delivery.headers))
            response = connection.getresponse()
            replayed = response.headers.get("Idempotent-Replayed") == "true"
            return Answer(delivery.event_id, response.status, replayed, _parsed(response.read()))
    except (OSError, HTTPException, ValueError) as error:
        where = f"{parts.scheme}://{parts.netloc}"
        raise No(f"No answer from {where}: {error or type(error).__name__}. Is web running there?") from None


def _parsed(body: bytes) -> Any:
    with suppress(ValueError):
        return load_json(body)
    return body.decode(errors="replace")


def _told(number: int, answer: Answer) -> str:
    word = ("duplicate" if answer.duplicate else "first seen") if answer.accepted else "refused"
    colour = ("cyan" if answer.duplicate else "green") if answer.accepted else "red"
    reason = "" if answer.accepted else _reason(answer.answer)
    line = (
        f"{number:>3}  {answer.status}  {click.style(word.ljust(10), fg=colour)}  {visible(answer.event_id)}"
    )
    return f"{line}  {visible(reason)}".rstrip()


def _reason(answer: Any) -> str:
    return str(answer.get("detail", answer)) if isinstance(answer, dict) else str(answer)
