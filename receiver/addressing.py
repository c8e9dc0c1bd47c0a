"""The URL that a provider called and the address it came from, behind proxies that nobody trusts unasked."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from flask import Flask, Request
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import get_host

PATH_SAFE = "!$&'()*+,/:;=@%~"
CONTENT = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
"""Headers that WSGI spells without HTTP_."""


def trust_proxies(app: Flask, hops: int) -> None:
    """Read scheme, host and client address from the headers of `hops` proxies; with 0, from none.

    Prefixes are left out: a proxy that does not set that header passes on whatever a client wrote there.
    """
    if hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_prefix=0)  # type: ignore[method-assign]


def delivered_url(request: Request, public_url: str) -> str:
    """Return the URL as the provider wrote it, in full.

    `public_url` stands in the place of scheme, host and whatever a proxy cuts off the path. The query is the
    raw one: werkzeug's own `url` is decoded where it can be, and providers sign what they sent.
    """
    base = public_url or _base(
        request.scheme, request.environ.get("HTTP_HOST"), request.server, request.root_path
    )
    query = request.query_string.decode("latin-1")
    return f"{base.rstrip('/')}{_quoted(request.path)}{'?' if query else ''}{query}"


def arrived_headers(environ: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return a request's headers as WSGI has them, in latin-1; repeated ones are joined there already."""
    given = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name[:5] == "HTTP_"]
    # What a client spells with an underscore must not stand beside the server's own.
    others = [pair for pair in given if pair[0] not in CONTENT]
    return (*others, *((name, value) for name, key in CONTENT.items() if (value := environ.get(key))))


@lru_cache(maxsize=256)
def _base(scheme: str, host: str | None, server: tuple[str, int | None] | None, root: str) -> str:
    return f"{scheme}://{get_host(scheme, host, server)}{_quoted(root)}"


@lru_cache(maxsize=256)
def _quoted(path: str) -> str:
    return quote(path, safe=PATH_SAFE)
