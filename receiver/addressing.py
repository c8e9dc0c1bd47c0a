"""The URL that a provider called and the address it came from, behind proxies that nobody trusts unasked."""

from urllib.parse import quote

from flask import Flask, Request
from werkzeug.middleware.proxy_fix import ProxyFix

PATH_SAFE = "!$&'()*+,/:;=@%~"


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
    base = public_url or f"{request.scheme}://{request.host}{quote(request.root_path, safe=PATH_SAFE)}"
    query = request.query_string.decode("latin-1")
    return f"{base.rstrip('/')}{quote(request.path, safe=PATH_SAFE)}{'?' if query else ''}{query}"
