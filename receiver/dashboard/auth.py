"""Signing in, sessions, and what every page asks for.

`set_up_sessions` signs cookies that scripts cannot read. `guard` lets only people who are signed in to a
blueprint's views, asks every action for its session's token, and sets the strict headers. `SigningIn` has the
views of the door, and `Throttle` slows guessing down.
"""

import hmac
import logging
import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from urllib.parse import urlsplit

from flask import (
    Blueprint,
    Flask,
    Request,
    Response,
    g,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response as AnyResponse

from config.credentials import User, find_user
from receiver.problems import Problem, unavailable

log = logging.getLogger(__name__)

COOKIE = "firstseen"

# A shift; then the password is asked for again. It counts from the sign-in or the last action.
LIFE = timedelta(hours=12)

TOKEN_FIELD, TOKEN_HEADER = "csrf", "X-CSRF-Token"

DELIVERIES = "/webhooks/"

READS = frozenset({"GET", "HEAD", "OPTIONS"})

# Endpoints that ask for no sign-in.
OPEN = frozenset({"dashboard.sign_in", "dashboard.asset"})

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

# Bytes of a form. Files sent along would fill the disk, before anybody is signed in.
FORM_MAX = 1_048_576

# Seconds in which tries count.
SPAN = 300.0

# Names and addresses whose tries are remembered; the one tried longest ago goes first.
ROOM = 10_000

# Tries in five minutes: for one name from one address; from one address for any name; for one name from
# anywhere. The last is high, since using it up keeps that person out.
TRIES_OF_BOTH, TRIES_OF_ADDRESS, TRIES_OF_NAME = 5, 20, 50

# Characters; a longer text is not a password.
PASSWORD_MAX = 1_024

# Sign-ins at once; further ones get 503. Each holds a thread that deliveries need.
CROWD = 4


class _Sessions(SecureCookieSessionInterface):
    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the visitor's session; None for a delivery, a tenth of whose time that would take."""
        return None if request.path.startswith(DELIVERIES) else super().open_session(app, request)

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - the request decides
        """Return whether the cookie may travel over https only."""
        return came_by_https()


def came_by_https() -> bool:
    """Whether the browser's own connection is https; a router in front says so in a header."""
    return request.is_secure or request.headers.get("X-Forwarded-Proto", "").strip().lower() == "https"


def set_up_sessions(app: Flask, keys: Sequence[str]) -> None:
    """Sign cookies with the first key, and read those of the others; without any, for this process alone."""
    current, *older = keys or [secrets.token_hex(32)]
    app.config.update(
        SECRET_KEY=current,
        SECRET_KEY_FALLBACKS=older,
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",  # Strict would ask for the password behind every link of an alert
        PERMANENT_SESSION_LIFETIME=LIFE,
        SESSION_REFRESH_EACH_REQUEST=False,
    )
    app.session_interface = _Sessions()


def token() -> str:
    """Return the session's token, made at its first use."""
    found: str = session.setdefault("csrf", secrets.token_urlsafe(24))
    return found


def guard(views: Blueprint, users: Sequence[User]) -> None:
    """Put the gate before every view of a blueprint and the headers behind it."""
    views.before_request(lambda: _admit(users))
    views.after_request(_harden)


def who() -> str:
    """Return what the audit says of this request: the person's name."""
    name: str = g.user.name
    return name


def local(place: str | None) -> str:
    """Return a path to go on to if it is one of ours, else the first page's: never another host."""
    try:
        # A header cannot hold line breaks, and browsers leave out tabs: `/<tab>/host` is another host.
        parts = urlsplit(place if place and place.isprintable() else "")
    except ValueError:
        return url_for("dashboard.overview")
    ours = not parts.scheme and not parts.netloc and parts.path.startswith("/") and "\\" not in parts.path
    return str(place) if ours and not parts.path.startswith("//") else url_for("dashboard.overview")


def _admit(users: Sequence[User]) -> AnyResponse | None:
    request.max_content_length = FORM_MAX
    user = find_user(users, session.get("user", ""))
    # Signed out, too, is a person who has another password since.
    g.user = user if user and hmac.compare_digest(user.mark, session.get("mark", "")) else None
    if request.method not in READS:
        given = request.headers.get(TOKEN_HEADER) or request.form.get(TOKEN_FIELD, "")
        expected = session.get("csrf", "")
        if not expected or not hmac.compare_digest(given.encode(), expected.encode()):
            detail = "This form is too old, or is not ours: nothing was done. Reload the page."
            raise Problem(403, "csrf", detail)
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


class Throttle:
    """Counts tries by key. Keys are any text; `clock` is in seconds."""

    def __init__(
        self, span: float = SPAN, room: int = ROOM, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._span, self._room, self._clock = span, room, clock
        self._tries: OrderedDict[str, deque[float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, most: Mapping[str, int]) -> int:
        """Count a try for each key, of which `most` allows so many; 0, or the seconds until one is allowed.

        A try counts before its outcome is known, so that tries at once are no way around. One that is not
        allowed counts nowhere: knocking does not lock anybody out for longer.
        """
        with self._lock:
            now = self._clock()
            waits = [self._wait(key, allowed, now) for key, allowed in most.items()]
            if any(waits):
                return max(waits)
            for key in most:
                self._tries.setdefault(key, deque()).append(now)
                self._tries.move_to_end(key)
            while len(self._tries) > self._room:
                self._tries.popitem(last=False)
            return 0

    def give_back(self, keys: Iterable[str]) -> None:
        """Take a try of each key back: it was right."""
        with self._lock:
            for key in keys:
                if tries := self._tries.get(key):
                    tries.pop()

    def _wait(self, key: str, allowed: int, now: float) -> int:
        tries = self._tries.get(key)
        while tries and tries[0] <= now - self._span:
            tries.popleft()
        if not tries or len(tries) < allowed:
            return 0
        return math.ceil(tries[0] + self._span - now)


class SigningIn:
    """The views of the door. One password is hashed at a time: each takes 32 MB and a tenth of a second."""

    def __init__(self, users: Sequence[User], throttle: Throttle) -> None:
        self._users, self._throttle = users, throttle
        self._turn, self._room = threading.Lock(), threading.Semaphore(CROWD)
        # A name that nobody has takes as long as one that somebody has.
        self._nobody = generate_password_hash("", users[0].password_hash.partition("$")[0])

    def sign_in(self) -> AnyResponse:
        """Ask for name and password, or check them."""
        if request.method != "POST":
            return redirect(local(request.args.get("next"))) if g.user else _form(200)
        name, password = request.form.get("name", "").strip(), request.form.get("password", "")
        tries = _throttled_keys(name)
        if wait := self._throttle.take(tries):
            log.warning("Sign-ins from %s are slowed down for %d s.", request.remote_addr, wait)
            refused = _form(429, f"Too many tries. Wait {wait} seconds, then try again.")
            refused.headers["Retry-After"] = str(wait)
            return refused
        try:
            user = self._check(name, password)
        except Problem:
            self._throttle.give_back(tries)  # nothing was tried
            raise
        if user is None:
            # Without what was typed as the name: it is the password now and then.
            log.warning("A sign-in from %s failed.", request.remote_addr)
            return _form(401, "Name or password is wrong.")
        self._throttle.give_back(tries)
        # A new session with a new token.
        session.clear()
        session.permanent = True
        session["user"], session["mark"] = user.name, user.mark
        token()
        log.info("%s signed in from %s.", user.name, request.remote_addr)
        return redirect(local(request.form.get("next")))

    def sign_out(self) -> AnyResponse:
        """Sign out, and ask for a name again."""
        session.clear()
        return redirect(url_for("dashboard.sign_in"))

    def _check(self, name: str, password: str) -> User | None:
        user = find_user(self._users, name)
        if not self._room.acquire(blocking=False):
            raise unavailable("Too many people sign in at once. Try again in a moment.")
        try:
            with self._turn:
                right = check_password_hash(
                    user.password_hash if user else self._nobody, password[:PASSWORD_MAX]
                )
        finally:
            self._room.release()
        return user if user and right else None


def _throttled_keys(name: str) -> dict[str, int]:
    # Behind a router every connection is the router's, which adds the sender's address at the end.
    sender = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()[:64]
    address = f"{request.remote_addr} {sender}"
    return {
        f"both {name[:64]} {address}": TRIES_OF_BOTH,
        f"address {address}": TRIES_OF_ADDRESS,
        f"name {name[:64]}": TRIES_OF_NAME,
    }


def _form(status: int, problem: str = "") -> Response:
    # Text of the visitor's is shown back in the field of the name alone.
    name, place = request.form.get("name", "")[:64], local(request.values.get("next"))
    return make_response(render_template("sign_in.html", next=place, problem=problem, name=name), status)
