"""Before every page: signed in, and for every action the session's token; after it: the strict headers."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import Blueprint, Response, g, redirect, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from config.credentials import User
from receiver.dashboard.sessions import came_by_https, has_token, signed_in
from receiver.problems import Problem

READS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = frozenset({"dashboard.sign_in", "dashboard.asset"})
"""What is there before anybody is signed in."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
YEAR = 31_536_000

FORM_MAX = 1_048_576
"""Bytes of a form. Files sent along would fill the disk, before anybody is signed in."""


def guard(views: Blueprint, users: Sequence[User]) -> None:
    """Put the gate before every view of a blueprint and the headers behind it."""
    views.before_request(lambda: _admit(users))
    views.after_request(_harden)


def who() -> str:
    """Return what the audit says of this request: the person's name."""
    name: str = g.user.name
    return name


def local(place: str | None) -> str:
    """Return a place to go on to if it is one of ours, else the first page: never another host."""
    try:
        # A header cannot hold line breaks, and browsers leave out tabs: `/<tab>/host` is another host.
        parts = urlsplit(place if place and place.isprintable() else "")
    except ValueError:
        return url_for("dashboard.overview")
    ours = not parts.scheme and not parts.netloc and parts.path.startswith("/") and "\\" not in parts.path
    return str(place) if ours and not parts.path.startswith("//") else url_for("dashboard.overview")


def _admit(users: Sequence[User]) -> AnyResponse | None:
    request.max_content_length = FORM_MAX
    g.user = signed_in(users)
    if request.method not in READS and not has_token():
        raise Problem(
            403,
            "csrf",
            "This form is too old, or is not ours: nothing was done. Reload the page.",
        )
    if g.user or request.endpoint in OPEN:
        return None
    if request.method not in READS or request.headers.get("HX-Request") or request.args.get("format"):
        raise Problem(401, "signed-out", "You are signed out, and nothing was done. Sign in and try again.")
    return redirect(url_for("dashboard.sign_in", next=request.full_path.rstrip("?")))


def _harden(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    if came_by_https():
        response.headers["Strict-Transport-Security"] = f"max-age={YEAR}"
    if request.endpoint != "dashboard.asset":
        response.headers["Cache-Control"] = "no-store"
    return response
