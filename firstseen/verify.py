"""`verify`: is a captured delivery genuine, and if not, which step fails and why.

For a rejected delivery `hints` tries what usually goes wrong between a provider and a receiver: another
spelling of the body, the secret or the URL, a renamed header. A variant that verifies is the explanation.
"""

import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import click

from config.nesting import load_json
from config.providers import KeyTable, Locator
from config.sources import Source
from firstseen.console import Command, Context, json_option, pass_context, print_json, visible
from receiver.endpoints import Endpoint, build_endpoints
from receiver.payload import is_form
from receiver.signatures import CannotVerify, InvalidSignature, Request, Scheme, compile_scheme
from receiver.signatures.request import MAX_QUERY_FIELDS, put

# The step of a verification that each reason belongs to, in the words that a person is shown.
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

UNPROVEN = "This sender proves nothing, and its source lets everything in: unverified = true."

UNEXPLAINED = (
    "None of the usual causes explains it. Compare the secret with the one that the provider shows for this"
    " endpoint, and test and live mode."
)

SIGNS_URL = (
    "The URL is signed, too: {url} was tried, and what proxies make of it. Name the one that the provider"
    " calls with --url."
)

# Reasons that come after the signature was found to be good.
TIME = frozenset({"stale_timestamp", "future_timestamp"})

BOM = b"\xef\xbb\xbf"

JSON_STYLES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("without blanks", {"separators": (",", ":")}),
    ("with a blank after each comma and colon", {}),
    ("pretty-printed by two blanks", {"indent": 2}),
    ("pretty-printed by four blanks", {"indent": 4}),
)

ENCODINGS: tuple[Literal["utf8", "base64", "hex"], ...] = ("utf8", "base64", "hex")

# What many write before a secret: part of the key for some, and not for others.
PREFIX = "whsec_"


@dataclass(frozen=True)
class Diagnosis:
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
@click.option(
    "--at",
    # Up to the year 9999.
    type=click.FloatRange(0, 253_402_300_799),
    metavar="UNIX-TIME",
    help="When it came, in seconds (default: now).",
)
@json_option
@pass_context
def verify(
    context: Context,
    /,
    source: str,
    *,
    headers: Path,
    body: Path,
    method: str,
    url: str | None,
    at: float | None,
    as_json: bool,
) -> None:
    """Verify a captured delivery, and say which step fails and why.

    Exits 0 when it is genuine, 1 when it is rejected, 2 when that cannot be found out.
    """
    # A range refuses infinity, but compares with NaN as if that were inside.
    if at is not None and math.isnan(at):
        raise click.BadParameter("write the seconds since 1970, such as 1764536400.", param_hint="'--at'")
    if source not in context.sources:
        known = ", ".join(sorted(context.sources)) or "none"
        raise click.UsageError(f"There is no source {source!r}; configured are {known}.")
    if problem := context.sources[source].problem:
        raise click.UsageError(f"{problem}.")
    endpoint = build_endpoints({source: context.sources[source]})[source]
    base = context.settings.public_url or f"http://localhost:{context.settings.port}"
    request = Request(method, url or f"{base}/webhooks/{source}", _read_headers(headers), body.read_bytes())
    diagnosis = diagnose(endpoint, request, time.time() if at is None else at)
    if as_json:
        print_json(asdict(diagnosis))
    else:
        _print(diagnosis)
    if not diagnosis.verified:
        raise click.exceptions.Exit(1)


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


def diagnose(endpoint: Endpoint, request: Request, now: float) -> Diagnosis:
    """Verify a request as of `now`, in seconds; raise UsageError when that cannot be found out."""
    source = endpoint.source
    name, provider = source.name, source.provider
    try:
        endpoint.verify(request, now)
    except CannotVerify as error:
        raise click.UsageError(f"It cannot be verified now: {error}.") from None
    except InvalidSignature as error:
        advice = hints(Capture(source, endpoint.scheme, request, now, error))
        if not advice and error.reason == "bad_signature":
            advice = [SIGNS_URL.format(url=request.url)] if provider.signs_url else []
            advice.append(UNEXPLAINED)
        return Diagnosis(
            name,
            provider.name,
            verified=False,
            step=STEPS[error.reason],
            reason=error.reason,
            detail=str(error),
            hints=tuple(advice),
        )
    items = endpoint.items(request)
    unproven = [UNPROVEN] if provider.verification is not None else []
    problems = dict.fromkeys(f"It would be parked. {item.problem}" for item in items if item.problem)
    events = tuple({"event_id": item.event_id, "type": item.type} for item in items)
    return Diagnosis(name, provider.name, verified=True, hints=(*unproven, *problems), events=events)


def _print(diagnosis: Diagnosis) -> None:
    word, colour = ("verified", "green") if diagnosis.verified else ("rejected", "red")
    lines = [
        ("source", f"{diagnosis.source} ({diagnosis.provider})"),
        ("verdict", click.style(word, fg=colour)),
    ]
    if not diagnosis.verified:
        lines += [("step", f"{diagnosis.step} ({diagnosis.reason})"), ("why", f"{diagnosis.detail}.")]
    lines += [("hint", hint) for hint in diagnosis.hints]
    lines += [("event", f"{event['event_id']}  {event['type']}") for event in diagnosis.events]
    for name, text in lines:
        click.echo(f"{click.style(name.ljust(9), bold=True)}{text if name == 'verdict' else visible(text)}")


@dataclass(frozen=True)
class Capture:
    """A rejected delivery and what rejected it."""

    source: Source
    scheme: Scheme
    request: Request
    now: float
    error: InvalidSignature

    def fits(
        self,
        *,
        request: Request | None = None,
        scheme: Scheme | None = None,
        secrets: Sequence[str] | None = None,
    ) -> bool:
        """Whether the signature would be good with these instead, whatever the time."""
        asked = secrets if secrets is not None else self.source.secrets
        try:
            (scheme or self.scheme).verify(asked, request or self.request, self.now, self.source.tolerance)
        except InvalidSignature as error:
            # The time is checked last, so the signature was good.
            return error.reason in TIME
        except CannotVerify:
            return False
        return True


def hints(case: Capture) -> list[str]:
    """Return a sentence for each cause that would explain the rejection; none of them holds a secret."""
    age = case.error.age
    if case.error.reason in TIME:
        if age is None:
            return []
        when = "old" if age > 0 else "in the future"
        sentence = (
            f"The signature itself is good, and only {when}: this clock and the signed time are"
            f" {abs(age):.0f} s apart. For a delivery of the past say when it came: --at {case.now - age:.0f}"
            " verifies it."
        )
        return [sentence]
    if ":" in (case.source.provider.code or ""):
        # A user's own function: it is called once, and not with variants.
        return []
    causes: tuple[Callable[[Capture], Iterator[str]], ...] = (_body, _secret, _url, _header)
    return [hint for cause in causes for hint in cause(case)]


def _body(case: Capture) -> Iterator[str]:
    for what, body in bodies(case.request):
        if case.fits(request=replace(case.request, body=body)):
            yield (
                f"The signature fits the body {what}: something changed it on the way here or when it was"
                " saved. The raw bytes are signed, so keep and pass on those."
            )
            return


def _secret(case: Capture) -> Iterator[str]:
    for what, secret in secret_texts(case.source.secrets):
        if case.fits(secrets=[secret]):
            yield f"The signature fits the secret {what}: mend the variable that holds it."
            return
    table = case.source.provider.scheme
    for keyed in (table, *table.schemes) if table else ():
        used = keyed.key or KeyTable()
        for prefix, encoding in itertools.product(("", PREFIX), ENCODINGS):
            key = KeyTable(encoding=encoding, strip_prefix=prefix)
            if keyed.type != "hmac" or key == used:
                continue
            if case.fits(scheme=compile_scheme(keyed.model_copy(update={"key": key}), case.source.options)):
                other, usual = (
                    f"{one.encoding} after {one.strip_prefix!r}" if one.strip_prefix else one.encoding
                    for one in (key, used)
                )
                yield (
                    f"The signature fits the secret read as {other}, not as {usual}: another provider's"
                    " scheme signs it, or the secret is written otherwise here."
                )
                break


def _url(case: Capture) -> Iterator[str]:
    if not case.source.provider.signs_url:
        return
    for url in urls(case.request):
        if case.fits(request=replace(case.request, url=url)):
            yield (
                f"The signature fits the URL {url}: a proxy changed it on the way to {case.request.url}. Set"
                " FIRSTSEEN_PUBLIC_URL to what the provider calls, or FIRSTSEEN_PROXY_HOPS."
            )
            return


def _header(case: Capture) -> Iterator[str]:
    for place, prefix in _signature_places(case.source):
        for name, value in case.request.headers:
            if name.lower() != place.name.lower() and case.fits(request=put(place, value, case.request)):
                yield f"The signature stands in {name}, not in {place.name}: something renamed the header."
                return
            if prefix and case.fits(request=put(place, prefix + value, case.request)):
                yield f"The signature in {name} fits with {prefix!r} before it: something cut that off."
                return


def _signature_places(source: Source) -> Iterator[tuple[Locator, str]]:
    table = source.provider.scheme
    for scheme in (table, *table.schemes) if table else ():
        for place in scheme.signature.places.places if scheme.signature else ():
            if place.kind == "header":
                yield place, scheme.signature.prefix if scheme.signature else ""
    for name in source.provider.proof:
        yield Locator("header", name), ""


def bodies(request: Request) -> Iterator[tuple[str, bytes]]:
    """Yield other spellings of a body, with what they are."""
    body = request.body
    unix = body.replace(b"\r\n", b"\n")
    spellings = [
        ("without the newline at its end", body.rstrip(b"\r\n")),
        ("with a newline at its end", body + b"\n"),
        ("with CR LF at its end", body + b"\r\n"),
        ("with LF for each CR LF", unix),
        ("with CR LF for each LF", unix.replace(b"\n", b"\r\n")),
        ("without its byte order mark", body.removeprefix(BOM)),
        ("with a byte order mark", BOM + body),
        *(_forms(body) if is_form(request.header("content-type")) else _jsons(request.payload.value)),
    ]
    return ((what, other) for what, other in spellings if other != body)


def _jsons(value: Any) -> Iterator[tuple[str, bytes]]:
    # A number or a text alone has one spelling.
    if not isinstance(value, dict | list):
        return
    for (what, style), plain in itertools.product(JSON_STYLES, (True, False)):
        text = json.dumps(value, ensure_ascii=plain, **style)
        letters = "every other letter escaped" if plain else "letters as they are"
        for escaped, spelt in (("", text), (" and slashes escaped", text.replace("/", "\\/"))):
            yield f"as JSON {what}, {letters}{escaped}", spelt.encode("utf-8", "surrogatepass")


def _forms(body: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        pairs = parse_qsl(body.decode("latin-1"), keep_blank_values=True, encoding="latin-1")
    except ValueError:
        return
    yield "as a form with + for blanks", urlencode(pairs, encoding="latin-1").encode()
    yield (
        "as a form with %20 for blanks",
        urlencode(pairs, encoding="latin-1", quote_via=quote).encode(),
    )


def secret_texts(secrets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield other spellings of secrets, with what they are and without the secret."""
    for secret in secrets:
        spellings = (
            ("without quotes around it", secret.strip("\"'` ")),
            ("without the variable's name before it", secret.partition("=")[2]),
            ("without percent signs", unquote(secret)),
            ("with a newline at its end", f"{secret}\n"),
        )
        yield from ((what, other) for what, other in spellings if other and other != secret)
    if len(secrets) > 1:
        yield "with the commas in it: name its variable in a list", ",".join(secrets)


def urls(request: Request) -> Iterator[str]:
    """Yield URLs that a proxy may have turned into this one: other scheme, host, port, path or query."""
    try:
        parts = urlsplit(request.url)
        hostname, port = parts.hostname or "", parts.port
    except ValueError:
        return
    forwarded = [request.header(name) for name in ("X-Forwarded-Host", "X-Original-Host", "Host")]
    named = [text.partition(",")[0].strip() for text in forwarded if text]
    ports = [443, 80, 8443, 8080, 8000, *([port] if port else [])]
    hosts = dict.fromkeys([parts.netloc, hostname, *named, *(f"{hostname}:{number}" for number in ports)])
    paths = dict.fromkeys([parts.path, parts.path.rstrip("/"), f"{parts.path}/", "/"])
    queries = [parts.query, "", unquote(parts.query)]
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        pass
    else:
        queries += [urlencode(pairs), urlencode(sorted(pairs)), urlencode(pairs, quote_via=quote)]
    for query, path, host, scheme in itertools.product(
        dict.fromkeys(queries), paths, hosts, ("https", "http")
    ):
        url = urlunsplit((scheme, host, path, query, ""))
        if url != request.url:
            yield url
