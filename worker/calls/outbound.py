"""What a handler asks for, made into an exact request: address, headers, bytes. Pure."""

import hmac
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlencode
from uuid import UUID

import httpx

from config.apis import OURS, SECRETS, Api, header_of
from config.dialects import Dialect
from config.nesting import dump_json
from receiver.ledger.text import digest
from worker.calls.errors import CallRefused
from worker.calls.transport import Outgoing

# Keys of outbound calls, and fingerprints of credentials: HMACs under the deployment's secret key.


def make_key(secret: bytes, parts: Iterable[str | int]) -> str:
    """Return a key shaped like a UUIDv4, made from what names one logical operation.

    The parts are source, event id, generation, step and successor. The key is unpredictable without the
    secret, unique for each operation, and the same again if its row was lost.
    """
    return str(UUID(bytes=_mac(secret, "key", *map(str, parts))[:16], version=4))


def credential_marks(secrets: Sequence[bytes], api: str, credential: str) -> tuple[str, ...]:
    """Return a credential's HMACs under each secret key, in hex, for the ledger; the first is current."""
    return tuple(_mac(secret, "credential", api, credential).hex() for secret in secrets)


def _mac(secret: bytes, *parts: str) -> bytes:
    encoded = (part.encode("utf-8", "surrogatepass") for part in parts)
    text = b"".join(len(part).to_bytes(8, "big") + part for part in encoded)
    return hmac.digest(secret, text, "sha256")


BODY_MAX = 1024 * 1024
"""Bytes of a request's body: it is stored, for as long as the event's payload."""

UNFINGERPRINTED = frozenset({"user-agent", "traceparent", "tracestate"})
"""Headers that may differ between two sends of one call: they change nothing about what it does."""

AGENT = "Firstseen"

FORM = "application/x-www-form-urlencoded"

DECODINGS = 5
"""How many times a path is percent-decoded to find `..` in it: more than any server on the way does."""

PLAIN = str | int | float | bool | None
"""What a form or a query says the same way in every run: the text of an object may hold its address."""

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True)
class CallArguments:
    """The arguments of one call, as httpx names them."""

    params: Any = None
    json: Any = None
    data: Any = None
    content: str | bytes | None = field(default=None, repr=False)
    files: Any = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class OutboundRequest:
    """An exact request, without credential and key. `fingerprint` is the same for the same request."""

    method: str
    url: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of all that matters of the request."""
        kept = sorted((name.lower(), value) for name, value in self.headers.items())
        told = [f"{name}: {value}" for name, value in kept if name not in UNFINGERPRINTED]
        return digest([*(text.encode() for text in (self.method, self.url, *told)), self.body])


def build(api: Api, method: str, path: str, given: CallArguments, boundary: str) -> OutboundRequest:
    """Make the request; `boundary` separates the parts of a multipart body. Raises CallRefused."""
    _check_fields("params", given.params, PLAIN)
    _check_fields("data", given.data, PLAIN | bytes if given.files else PLAIN)
    url = _address(api, path, given.params)
    body, content_type = _body(given, boundary)
    if len(body) > BODY_MAX:
        raise CallRefused(f"A body of {len(body)} bytes is not sent: {BODY_MAX} is the most that is kept.")
    headers = dict(api.headers)
    if content_type:
        headers["Content-Type"] = content_type
    for name, value in (given.headers or {}).items():
        _check_header(api, name, value)
        headers = {kept: old for kept, old in headers.items() if kept.lower() != name.lower()}
        headers[name] = value
    return OutboundRequest(method, str(url), url.path, headers, body)


def complete(api: Api, request: OutboundRequest, key: str | None) -> Outgoing:
    """Return what goes out: the request with its key, the present credential and the client's own headers.

    Raises CallRefused when the dialect's key belongs into a body that has no place for it, and ConfigError
    when there is no credential.
    """
    url = httpx.URL(request.url)
    body = request.body
    headers = [("Host", url.netloc.decode("ascii"))]
    given = {name.lower() for name in request.headers}
    defaults = {"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
    headers += [(name, value) for name, value in defaults.items() if name.lower() not in given]
    headers += [header_of(api), *request.headers.items()]
    if key is not None and api.dialect.header:
        headers.append((api.dialect.header, f'"{key}"' if api.dialect.quoted else key))
    if key is not None and api.dialect.field:
        body = with_key_field(api.dialect, request, key)
    if body or request.method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(body))))
    return Outgoing(request.method, request.url, tuple(headers), body)


def respond(
    request: OutboundRequest, status: int, headers: tuple[tuple[str, str], ...], body: bytes
) -> httpx.Response:
    """Return an answer as httpx shows it, live and stored ones alike."""
    asked = httpx.Request(request.method, request.url)
    # Text would have to be ASCII, and an API's headers are octets; a person's may be anything.
    octets = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers
    ]
    return httpx.Response(status, headers=octets, content=body, request=asked)


def with_key_field(dialect: Dialect, request: OutboundRequest, key: str) -> bytes:
    """Return the body with the key as its first field; raise CallRefused where it can have none."""
    kind = next((value for name, value in request.headers.items() if name.lower() == "content-type"), "")
    named = dialect.field or ""
    if kind == FORM:
        return urlencode({named: key}).encode() + (b"&" if request.body else b"") + request.body
    if kind == "application/json" and request.body.startswith(b"{"):
        rest = request.body[1:]
        pair = f"{json.dumps(named)}:{json.dumps(key)}".encode()
        return b"{" + pair + (b"" if rest == b"}" else b",") + rest
    raise CallRefused(f"The key goes into the field {named!r}, so the body must be a JSON object or a form.")


def _address(api: Api, path: str, params: Any) -> httpx.URL:
    """Put a path after the base URL; nothing in it may lead elsewhere."""
    for wrong, why in _ways_out(path):
        if wrong:
            raise CallRefused(f"The path {path!r} {why}: write it after base_url, such as /contacts.")
    base = httpx.URL(api.base_url)
    try:
        url = httpx.URL(api.base_url + path)
        url = url.copy_merge_params(params) if params else url
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise CallRefused(
            f"The path {path!r} or its params make no address ({type(error).__name__})."
        ) from None
    if (url.scheme, url.netloc, url.userinfo) != (base.scheme, base.netloc, base.userinfo):
        raise CallRefused(f"The path {path!r} leaves {base.host}, and only that host is called.")
    return url


def _check_fields(argument: str, fields: Any, allowed: Any) -> None:
    for name, value in fields.items() if isinstance(fields, Mapping) else ():
        for one in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(one, allowed):
                raise CallRefused(
                    f"{argument}= has a {type(one).__name__} as {name!r:.80}: write it as text or a number."
                )


def _ways_out(path: str) -> list[tuple[bool, str]]:
    plain = path.partition("?")[0]
    for _ in range(DECODINGS):
        plain = unquote(plain)
    segments = plain.replace("\\", "/").split("/")
    return [
        (not path.startswith("/"), "does not begin with a slash"),
        (plain.startswith("//") or "\\" in plain, "begins another address, or holds a backslash"),
        (any(segment.split(";")[0] in (".", "..") for segment in segments), "climbs with . or .."),
        ("#" in path or not path.isprintable(), "holds # or what does not print"),
    ]


def _check_header(api: Api, name: str, value: str) -> None:
    lower = name.lower()
    taken = {(api.dialect.header or "").lower(), api.auth.header.lower()} | OURS | SECRETS
    if lower in taken:
        raise CallRefused(f"The header {name} is not a handler's to set: apis.toml or the client does.")
    allowed = isinstance(value, str) and _VALUE.fullmatch(value) and value == value.strip("\t ")
    if not _TOKEN.fullmatch(name) or not allowed:
        raise CallRefused(f"The header {name!r} has a name or value that HTTP does not allow.")


def _body(given: CallArguments, boundary: str) -> tuple[bytes, str | None]:
    kinds = [given.json is not None, given.content is not None, bool(given.data or given.files)]
    if sum(kinds) > 1:
        raise CallRefused("A call has one body: json=, content=, or data= and files=.")
    if given.json is not None:
        return _json(given.json), "application/json"
    if given.content is not None:
        return _content(given.content), None
    if not given.data and not given.files:
        return b"", None
    multipart = {"Content-Type": f"multipart/form-data; boundary={boundary}"} if given.files else {}
    try:
        encoded = httpx.Request("POST", "http://body", data=given.data, files=given.files, headers=multipart)
        return encoded.read(), encoded.headers["Content-Type"]
    except (TypeError, ValueError, AttributeError) as error:
        raise CallRefused(f"data= or files= cannot be sent: {error}") from None


def _content(content: Any) -> bytes:
    try:
        # Of a number, bytes() makes as many zeros; of an iterator, what it has left.
        return content.encode() if isinstance(content, str) else bytes(memoryview(content))
    except (TypeError, ValueError) as error:
        raise CallRefused(f"content= takes text or bytes: {error}") from None


def _json(value: Any) -> bytes:
    # Ours, so that the bytes do not change with a library's version.
    try:
        return dump_json(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise CallRefused(f"json= cannot be sent: {type(error).__name__}: {error}") from None
