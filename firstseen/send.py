"""`send`: a delivery signed as its provider would sign it, to try a deployment without an account.

`sample` makes a realistic event of a source's provider, or signs the bytes of a file; `Layout` knows where
the provider has an event's id, type and time.
"""

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from uuid import uuid4

import click

from config.nesting import load_json
from config.providers import PUBLIC_KEY, Locator, Locators, Provider
from config.sources import Source
from firstseen.console import CommandFailed, Context, json_option, pass_context, print_json, visible
from receiver.endpoints import POSITION, Extractor, build_scheme
from receiver.payload import FORM
from receiver.signatures import CannotSign, Request
from receiver.signatures.request import put
from receiver.signatures.timestamps import format_time
from receiver.verifiers.remote_keys import FetchedKeys

PAYLOADS = Path(__file__).with_name("samples.json")

# The entry of `samples.json` for providers that have none of their own.
ANY_OTHER = ""

URL = "http://localhost:8000/webhooks/"

# Seconds for one answer: more than any provider waits, so that a slow answer is seen, not cut.
TIMEOUT = 30.0


@dataclass(frozen=True)
class DeliveryAnswer:
    """The receiver's answer to one delivery; `answer` is its body, parsed where it is JSON."""

    event_id: str
    status: int
    duplicate: bool
    answer: Any

    @property
    def accepted(self) -> bool:
        """Whether the delivery was acknowledged."""
        return HTTPStatus.OK <= self.status < HTTPStatus.MULTIPLE_CHOICES


@dataclass(frozen=True)
class Sample:
    """A signed delivery, ready to be posted to `url`; some schemes put their signature into it."""

    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    event_id: str
    url: str
    method: str = "POST"


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
    context: Context, /, source: str, *, times: int, url: str | None, as_json: bool, **options: Any
) -> None:
    """Deliver a realistic, signed event to a source, and print each answer.

    Exits 1 when a delivery is not accepted.
    """
    base = url or f"http://{context.settings.local_address}"
    if urlsplit(base).scheme not in {"http", "https"} or not urlsplit(base).hostname:
        raise click.BadParameter("write it like http://127.0.0.1:8000", param_hint="--url")
    base, public = base.rstrip("/"), "" if url else context.settings.public_url
    signed = _delivery(context.source(source), f"{public or base}/webhooks/{source}", options)
    # Signed for the URL that providers call, and delivered to where that leads.
    delivery = replace(signed, url=base + signed.url.removeprefix(public or base))
    answers = []
    for number in range(1, times + 1):
        answers.append(_post(delivery))
        if not as_json:
            _print(number, answers[-1])
    if as_json:
        print_json({"data": [asdict(answer) for answer in answers], "next": None})
    if not all(answer.accepted for answer in answers):
        raise click.exceptions.Exit(1)


def _delivery(source: Source, url: str, options: Mapping[str, Any]) -> Sample:
    file, key = options["file"], options["key"]
    event = {"type": options["event_type"], "event_id": options["event_id"], "now": time.time(), "url": url}
    try:
        event["key"] = key.read_text(encoding="ascii").strip() if key else ""
        return sample(source, file=file.read_bytes() if file else None, **event)
    except UnicodeDecodeError:
        raise CommandFailed(
            f"Nothing was sent to {source.name}: {key} is no key, which is plain text."
        ) from None
    except CannotSign as error:
        raise CommandFailed(f"Nothing was sent to {source.name}: {error}.") from None


def _post(delivery: Sample) -> DeliveryAnswer:
    parts = urlsplit(delivery.url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    try:
        with closing(connect(str(parts.hostname), parts.port, timeout=TIMEOUT)) as connection:
            connection.request(delivery.method, target, delivery.body, dict(delivery.headers))
            response = connection.getresponse()
            body = response.read()
    except (OSError, HTTPException, ValueError) as error:
        where = f"{parts.scheme}://{parts.netloc}"
        raise CommandFailed(
            f"No answer from {where}: {error or type(error).__name__}. Is web running there?"
        ) from None
    try:
        answer = load_json(body)
    except ValueError:
        answer = body.decode(errors="replace")
    replayed = response.headers.get("Idempotent-Replayed") == "true"
    return DeliveryAnswer(delivery.event_id, response.status, replayed, answer)


def _print(number: int, answer: DeliveryAnswer) -> None:
    word, colour, reason = "first seen", "green", ""
    if answer.duplicate:
        word, colour = "duplicate", "cyan"
    if not answer.accepted:
        body = answer.answer
        word, colour = "refused", "red"
        reason = str(body.get("detail", body)) if isinstance(body, dict) else str(body)
    styled = click.style(word.ljust(10), fg=colour)
    line = f"{number:>3}  {answer.status}  {styled}  {visible(answer.event_id)}  {visible(reason)}"
    click.echo(line.rstrip())


def sample(
    source: Source,
    *,
    type: str | None,  # noqa: A002 - the event's type, as everywhere
    event_id: str | None,
    now: float,
    url: str = "",
    key: str = "",
    file: bytes | None = None,
) -> Sample:
    """Make a delivery of a type (default: the provider's usual one) under an id (default: a new one).

    `now` is the time of signing in seconds, `key` the private key for providers that sign with one. The bytes
    of a `file` are signed as they are; type and id then go into headers, where the provider has them there.
    Raise CannotSign with a sentence when the source has no secret, when we cannot sign its provider's
    deliveries, or when a file's bytes would have to change.
    """
    described, layout = _described(source.provider.name), Layout(source.provider)
    wanted = type or described["type"]
    made_id = event_id or str(described["id"].format(secrets.token_hex(12), uuid=uuid4()))
    headers, body = {"Content-Type": "application/json", **described.get("headers", {})}, file
    if body is None:
        payloads: dict[str, Any] = described["payloads"]
        # A type of which there is no payload gets one whose type has as many parts: a `ping` has no action.
        alike = (payload for name, payload in payloads.items() if name.count(".") == wanted.count("."))
        body = layout.body(payloads.get(wanted) or next(alike, payloads[described["type"]]))
        headers = {"Content-Type": FORM} if layout.is_form else headers
    request = Request("POST", url or URL + source.name, tuple(headers.items()), body)
    request = layout.put_type(wanted, request, headers_only=file is not None and type is None)
    if file is None:
        request = layout.put_time(now, request)
    if event_id:
        request = layout.put_id(event_id, request)
    elif file is None or layout.has_ids_in_headers:
        # An id in a file's body stands there already, and changing it would change the file.
        request = layout.put_new_id(made_id, request)
    signed = _signed(source, layout.packed(request) if file is None else request, now, made_id, key)
    if file is not None and signed.body != file:
        raise CannotSign("the file's bytes would have to change for this id, type or signature")
    return signed


@cache
def _described(provider: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = json.loads(PAYLOADS.read_text(encoding="utf-8"))
    return known.get(provider, known[ANY_OTHER])


def _signed(source: Source, request: Request, now: float, event_id: str, key: str) -> Sample:
    table, secret = source.provider.scheme, key or next(iter(source.secrets), "")
    if source.provider.needs_secret and not secret:
        raise CannotSign(source.problem or f"[{source.name}] has no secret")
    if table and table.type in PUBLIC_KEY and not key:
        raise CannotSign(
            f"{source.provider.name} signs with a private key of its own; make a pair, put its public key"
            " into the source's variable, and name the private key's file with --key"
        )
    scheme = build_scheme(source, FetchedKeys())
    try:
        signed = scheme.sign(secret, request, now, event_id)
    except CannotSign:
        raise
    except ValueError as error:
        raise CannotSign(str(error)) from None
    found = Extractor(source).items(signed)
    return Sample(dict(signed.headers), signed.body, found[0].event_id if found else event_id, signed.url)


class Layout:
    """Where one provider's deliveries have an event's id, type and time; of alternatives, the first."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        kind, _, path = (provider.batch or "").partition(":")
        # The field of a form that holds the array of a batch; empty where the array is in a JSON body.
        self._field = path if kind == "form" else ""
        # Where a batch has its array, a sample has one element: entry.*.changes becomes entry.0.changes.0.
        steps = path.replace("*", "0").split(".") if kind == "json" else []
        self._element = [*filter(None, steps), "0"] if provider.batch else []
        self._types = [self._place(where) for where in provider.type_places]
        self._time = self._place(provider.created_at.places) if provider.created_at else None
        parts = [where for where in provider.id_places if where != POSITION]
        self._ids = [self._place(where) for where in parts if not where.optional]
        # A made-up id fills the parts that are neither type nor time.
        self._free = [place for place in self._ids if place not in (*self._types, self._time)]
        self._free = self._free or [self._place(where) for where in parts if where.optional][:1]
        self.is_form = any(place.kind == "form" for place in (*self._types, *self._ids))
        self.has_ids_in_headers = all(place.kind == "header" for place in self._ids)

    def _place(self, where: Locators) -> Locator:
        place = where.places[0]
        return Locator("json", ".".join([*self._element, place.name])) if place.kind == "item" else place

    def body(self, payload: Any) -> bytes:
        """Write a payload as one delivery of it: alone, as the one element of a batch, or not at all."""
        if self.is_form or self._provider.empty_body:
            return b""
        for step in reversed(self._element):
            payload = [payload] if step == "0" else {step: payload}
        return json.dumps(payload, separators=(",", ":")).encode()

    def packed(self, request: Request) -> Request:
        """Put the array into its field, where this provider sends its batches in forms."""
        if not self._field:
            return request
        body = urlencode({self._field: request.body}).encode()
        return replace(request, headers=(("Content-Type", FORM),), body=body)

    def put_type(self, wanted: str, request: Request, *, headers_only: bool = False) -> Request:
        """Put a type, in as many parts as the provider has."""
        parts = wanted.split(".", len(self._types) - 1) if self._types else []
        for place, part in zip(self._types, parts, strict=False):
            if place.kind == "header" or not headers_only:
                request = put(place, part, request)
        return request

    def put_time(self, now: float, request: Request) -> Request:
        """Put the event's time, where the provider has it."""
        if self._time is None or self._provider.created_at is None:
            return request
        unit = self._provider.created_at.unit
        text = format_time(now, unit)
        number = self._time.kind == "json" and unit != "iso8601"
        return put(self._time, int(text) if number else text, request)

    def put_new_id(self, event_id: str, request: Request) -> Request:
        """Put an id that was made up into the parts of it that are neither type nor time."""
        for place in self._free:
            request = put(place, event_id, request)
        return request

    def put_id(self, event_id: str, request: Request) -> Request:
        """Put an id that was asked for; raise CannotSign where the provider's events have none."""
        if not self._ids:
            raise CannotSign(f"{self._provider.name}'s events have no ids of their own, so none can be given")
        parts = event_id.split("+") if len(self._ids) > 1 else [event_id]
        if len(parts) != len(self._ids):
            return self.put_new_id(event_id, request)
        for place, part in zip(self._ids, parts, strict=True):
            request = put(place, part, request)
        return request
