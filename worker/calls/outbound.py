"""A handler's arguments made into an exact request: address, headers, bytes, key. Pure.

`build` makes the request that the journal stores, `complete` adds key and credential to it for one send,
`respond` shows a response as httpx does. `make_key` and `credential_marks` are HMACs under the secret keys.
"""

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

# Bytes of a request's body: it is stored for as long as the event's payload.
BODY_MAX = 1024 * 1024

# Headers that may differ between two sends of one call: they change nothing about what it does.
UNFINGERPRINTED = frozenset({"user-agent", "traceparent", "tracestate"})

AGENT = "Firstseen"

FORM = "application/x-www-form-urlencoded"

# How many times a path is percent-decoded to find `..` in it: more than any server on the way does.
DECODINGS = 5

# Values whose text is the same in every run: that of any other object may contain its memory address.
PLAIN = str | int | float | bool | None

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")

_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


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
        headers = sorted((name.lower(), value) for name, value in self.headers.items())
        lines = [f"{name}: {value}" for name, value in headers if name not in UNFINGERPRINTED]
        return digest([*(text.encode() for text in (self.method, self.url, *lines)), self.body])


def build(api: Api, method: str, path: str, arguments: CallArguments, boundary: str) -> OutboundRequest:
    """Make the request; `boundary` separates the parts of a multipart body. Raises CallRefused."""
    _check_fields("params", arguments.params, PLAIN)
    _check_fields("data", arguments.data, PLAIN | bytes if arguments.files else PLAIN)
    url = _address(api, path, arguments.params)
    body, content_type = _body(arguments, boundary)
    if len(body) > BODY_MAX:
        raise CallRefused(f"A body of {len(body)} bytes is not sent: {BODY_MAX} is the most that is kept.")
    headers = dict(api.headers)
    forbidden = {(api.dialect.header or "").lower(), api.auth.header.lower()} | OURS | SECRETS
    if content_type:
        headers["Content-Type"] = content_type
    for name, value in (arguments.headers or {}).items():
        if name.lower() in forbidden:
            raise CallRefused(f"The header {name} is not a handler's to set: apis.toml or the client does.")
        allowed = isinstance(value, str) and _HEADER_VALUE.fullmatch(value) and value == value.strip("\t ")
        if not _HEADER_NAME.fullmatch(name) or not allowed:
            raise CallRefused(f"The header {name!r} has a name or value that HTTP does not allow.")
        # The handler's header replaces the one in apis.toml, whatever its case.
        headers = {kept: old for kept, old in headers.items() if kept.lower() != name.lower()}
        headers[name] = value
    return OutboundRequest(method, str(url), url.path, headers, body)


def complete(api: Api, request: OutboundRequest, key: str | None) -> Outgoing:
    """Return what goes out: the request with its key, the present credential and the client's own headers.

    Raises CallRefused when the dialect's key belongs into a body that has no place for it, and ConfigError
    when there is no credential.
    """
    body = request.body
    headers = [("Host", httpx.URL(request.url).netloc.decode("ascii"))]
    set_by_handler = {name.lower() for name in request.headers}
    # No compression is asked for: what is stored of a response is its content.
    defaults = {"User-Agent": AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
    headers += [(name, value) for name, value in defaults.items() if name.lower() not in set_by_handler]
    headers += [header_of(api), *request.headers.items()]
    if key is not None and api.dialect.header:
        headers.append((api.dialect.header, f'"{key}"' if api.dialect.quoted else key))
    if key is not None and api.dialect.field:
        body = _with_key_field(api.dialect, request, key)
    # Servers may refuse these methods without a length, though their body is empty (RFC 9110, section 8.6).
    if body or request.method in ("POST", "PUT", "PATCH"):
        headers.append(("Content-Length", str(len(body))))
    return Outgoing(request.method, request.url, tuple(headers), body)


def respond(
    request: OutboundRequest, status: int, headers: Iterable[tuple[str, str]], body: bytes
) -> httpx.Response:
    """Return a response as httpx shows it, live and stored ones alike."""
    # As octets, since text would have to be ASCII; what a person states of a response may be anything.
    octets = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in headers
    ]
    asked = httpx.Request(request.method, request.url)
    return httpx.Response(status, headers=octets, content=body, request=asked)


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
    # An event id may hold lone surrogates, which UTF-8 refuses otherwise.
    encoded = (part.encode("utf-8", "surrogatepass") for part in parts)
    text = b"".join(len(part).to_bytes(8, "big") + part for part in encoded)
    return hmac.digest(secret, text, "sha256")


def _with_key_field(dialect: Dialect, request: OutboundRequest, key: str) -> bytes:
    """Return the body with the key as its first field; raise CallRefused where it can have none."""
    content_type = next(
        (text for name, text in request.headers.items() if name.lower() == "content-type"), ""
    )
    name = dialect.field or ""
    if content_type == FORM:
        return urlencode({name: key}).encode() + (b"&" if request.body else b"") + request.body
    if content_type == "application/json" and request.body.startswith(b"{"):
        rest = request.body[1:]
        pair = f"{json.dumps(name)}:{json.dumps(key)}".encode()
        return b"{" + pair + (b"" if rest == b"}" else b",") + rest
    raise CallRefused(f"The key goes into the field {name!r}, so the body must be a JSON object or a form.")


def _check_fields(argument: str, fields: Any, allowed: Any) -> None:
    for name, value in fields.items() if isinstance(fields, Mapping) else ():
        for item in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(item, allowed):
                raise CallRefused(
                    f"{argument}= has a {type(item).__name__} as {name!r:.80}: write it as text or a number."
                )


def _address(api: Api, path: str, params: Any) -> httpx.URL:
    """Put a path after the base URL; nothing in it may lead elsewhere."""
    # Servers on the way may decode a path several times.
    plain = path.partition("?")[0]
    for _ in range(DECODINGS):
        plain = unquote(plain)
    segments = plain.replace("\\", "/").split("/")
    for wrong, why in (
        (not path.startswith("/"), "does not begin with a slash"),
        (plain.startswith("//") or "\\" in plain, "begins another address, or holds a backslash"),
        (any(segment.split(";")[0] in (".", "..") for segment in segments), "climbs with . or .."),
        ("#" in path or not path.isprintable(), "holds # or what does not print"),
    ):
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
    # The checks above read the path as people do; this reads it as the client that connects does.
    if (url.scheme, url.netloc, url.userinfo) != (base.scheme, base.netloc, base.userinfo):
        raise CallRefused(f"The path {path!r} leaves {base.host}, and only that host is called.")
    return url


def _body(arguments: CallArguments, boundary: str) -> tuple[bytes, str | None]:
    """Return the body's bytes and its content type; None where the handler's own headers say it, if any."""
    form = bool(arguments.data or arguments.files)
    if (arguments.json is not None) + (arguments.content is not None) + form > 1:
        raise CallRefused("A call has one body: json=, content=, or data= and files=.")
    if arguments.json is not None:
        try:
            # Written by us, so that the bytes do not change with a library's version.
            text = dump_json(arguments.json, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            return text.encode(), "application/json"
        except (TypeError, ValueError) as error:
            raise CallRefused(f"json= cannot be sent: {type(error).__name__}: {error}") from None
    if arguments.content is not None:
        content: Any = arguments.content
        try:
            # Of a number, bytes() makes as many zeros; of an iterator, what it has left.
            return content.encode() if isinstance(content, str) else bytes(memoryview(content)), None
        except (TypeError, ValueError) as error:
            raise CallRefused(f"content= takes text or bytes: {error}") from None
    if not form:
        return b"", None
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"} if arguments.files else {}
    try:
        encoded = httpx.Request(
            "POST", "http://body", data=arguments.data, files=arguments.files, headers=headers
        )
        return encoded.read(), encoded.headers["Content-Type"]
    except (TypeError, ValueError, AttributeError) as error:
        raise CallRefused(f"data= or files= cannot be sent: {error}") from None
