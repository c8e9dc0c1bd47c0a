"""`verify`: is a captured delivery genuine, and if not, which step fails and why."""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

import click

from config.nesting import load_json
from config.providers import KeyTable, Locator, Provider, SchemeTable
from config.sources import Source
from firstseen.console import Command, Context, json_option, pass_context, print_json, visible
from receiver.endpoints import Endpoint, build_endpoints
from receiver.payload import is_form
from receiver.signatures import CannotVerify, InvalidSignature, Request, Scheme, compile_scheme
from receiver.signatures.request import MAX_QUERY_FIELDS, put

# What the world does to bodies, URLs and secrets between a provider and a receiver.


BOM = b"\xef\xbb\xbf"

JSON_STYLES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("without blanks", {"separators": (",", ":")}),
    ("with a blank after each comma and colon", {}),
    ("pretty-printed by two blanks", {"indent": 2}),
    ("pretty-printed by four blanks", {"indent": 4}),
)


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
        *(_forms(body) if is_form(request.header("content-type")) else _jsons(request)),
    ]
    return ((what, other) for what, other in spellings if other != body)


def _jsons(request: Request) -> Iterator[tuple[str, bytes]]:
    value = request.payload.value
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
        hosts = _hosts(request, parts.netloc, parts.hostname or "", parts.port)
    except ValueError:
        return
    paths = dict.fromkeys([parts.path, parts.path.rstrip("/"), f"{parts.path}/", "/"])
    queries = dict.fromkeys([parts.query, "", unquote(parts.query), *_reordered(parts.query)])
    for query, path, host, scheme in itertools.product(queries, paths, hosts, ("https", "http")):
        url = urlunsplit((scheme, host, path, query, ""))
        if url != request.url:
            yield url


def _hosts(request: Request, netloc: str, hostname: str, port: int | None) -> list[str]:
    told = [request.header(name) for name in ("X-Forwarded-Host", "X-Original-Host", "Host")]
    named = [hostname, *(text.partition(",")[0].strip() for text in told if text)]
    ports = [443, 80, 8443, 8080, 8000, *([port] if port else [])]
    return list(dict.fromkeys([netloc, *named, *(f"{name}:{port}" for name in named[:1] for port in ports)]))


def _reordered(query: str) -> list[str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS)
    except ValueError:
        return []
    return [urlencode(pairs), urlencode(sorted(pairs)), urlencode(pairs, quote_via=quote)]


# Why is my signature wrong? The usual causes, each tried: what would have been verified is the hint.


KEYED = frozenset({"hmac"})

ENCODINGS: tuple[Literal["utf8", "base64", "hex"], ...] = ("utf8", "base64", "hex")

PREFIX = "whsec_"
"""What many write before a secret: part of the key for some, and not for others."""

TIME = frozenset({"stale_timestamp", "future_timestamp"})


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
            return error.reason in TIME
        except CannotVerify:
            return False
        return True


def hints(case: Capture) -> list[str]:
    """Return a sentence for each cause that would explain the rejection; none of them holds a secret."""
    if case.error.reason in TIME:
        return [] if case.error.age is None else [_clock(case, case.error.age)]
    if ":" in (case.source.provider.code or ""):
        return []  # a user's own function, which is not ours to try things on
    causes: tuple[Callable[[Capture], Iterator[str]], ...] = (_body, _secret, _url, _header)
    return [hint for cause in causes for hint in cause(case)]


def _clock(case: Capture, age: float) -> str:
    when = "old" if age > 0 else "in the future"
    return (
        f"The signature itself is good, and only {when}: this clock and the signed time are {abs(age):.0f} s"
        f" apart. For a delivery of the past say when it came: --at {case.now - age:.0f} verifies it."
    )


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
    for found in (table, *table.schemes) if table else ():
        if found.type in KEYED:
            yield from _encodings(case, found)


def _encodings(case: Capture, table: SchemeTable) -> Iterator[str]:
    used = table.key or KeyTable()
    for prefix, encoding in itertools.product(("", PREFIX), ENCODINGS):
        key = KeyTable(encoding=encoding, strip_prefix=prefix)
        other = compile_scheme(table.model_copy(update={"key": key}), case.source.options)
        if key != used and case.fits(scheme=other):
            told = f"The signature fits the secret read as {_in_words(key)}, not as {_in_words(used)}"
            yield f"{told}: another provider's scheme signs it, or the secret is written otherwise here."
            return


def _in_words(key: KeyTable) -> str:
    return f"{key.encoding} after {key.strip_prefix!r}" if key.strip_prefix else key.encoding


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
class Judgement:
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


def _judge(endpoint: Endpoint, request: Request, now: float) -> Judgement:
    source = endpoint.source
    verdict = Judgement(source.name, source.provider.name, verified=True)
    try:
        endpoint.verify(request, now)
    except CannotVerify as error:
        raise click.UsageError(f"It cannot be verified now: {error}.") from None
    except InvalidSignature as error:
        found = tuple(hints(Capture(source, endpoint.scheme, request, now, error)))
        told = found or tuple(_unexplained(source.provider, request, error.reason))
        step = STEPS[error.reason]
        return Judgement(source.name, source.provider.name, False, step, error.reason, str(error), told)  # noqa: FBT003
    items = endpoint.items(request)
    unproven = [UNPROVEN] if source.provider.verification is not None else []
    problems = dict.fromkeys(f"It would be parked. {item.problem}" for item in items if item.problem)
    told = (*unproven, *problems)
    events = tuple({"event_id": item.event_id, "type": item.type} for item in items)
    return Judgement(**{**asdict(verdict), "events": events, "hints": told})


def _unexplained(provider: Provider, request: Request, reason: str) -> Iterator[str]:
    if reason == "bad_signature":
        if provider.signs_url:
            yield SIGNS_URL.format(url=request.url)
        yield UNEXPLAINED


def _print(verdict: Judgement) -> None:
    word, colour = ("verified", "green") if verdict.verified else ("rejected", "red")
    lines = [("source", f"{verdict.source} ({verdict.provider})"), ("verdict", click.style(word, fg=colour))]
    if not verdict.verified:
        lines += [("step", f"{verdict.step} ({verdict.reason})"), ("why", f"{verdict.detail}.")]
    lines += [("hint", hint) for hint in verdict.hints]
    lines += [("event", f"{event['event_id']}  {event['type']}") for event in verdict.events]
    for name, text in lines:
        click.echo(f"{click.style(name.ljust(9), bold=True)}{text if name == 'verdict' else visible(text)}")
