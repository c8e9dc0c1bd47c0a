"""What the world does to bodies, URLs and secrets between a provider and a receiver."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from receiver.ledger.payload import is_form
from receiver.signatures.request import MAX_QUERY_FIELDS, Request

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
