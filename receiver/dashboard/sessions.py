"""Who is signed in: a signed cookie that scripts cannot read, and the token that every action must carry."""

import hmac
import secrets
from collections.abc import Iterable, Sequence
from datetime import timedelta

from flask import Flask, Request, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface

from config.credentials import User, find_user

COOKIE = "firstseen"
LIFE = timedelta(hours=12)
"""A shift; then the password is asked for again. It counts from the sign-in or the last action."""

TOKEN_FIELD, TOKEN_HEADER = "csrf", "X-CSRF-Token"


DELIVERIES = "/webhooks/"


class _Sessions(SecureCookieSessionInterface):
    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """Return the visitor's session; none for a delivery, a tenth of whose time it would take."""
        return None if request.path.startswith(DELIVERIES) else super().open_session(app, request)

    def get_cookie_secure(self, app: Flask) -> bool:  # noqa: ARG002 - the request decides
        """Return whether the cookie may travel over https only."""
        return came_by_https()


def came_by_https() -> bool:
    """Whether the browser's own connection is https, as the router in front says, if there is one."""
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


def begin(user: User) -> None:
    """Sign a person in, in a new session with a new token."""
    session.clear()
    session.permanent = True
    session["user"], session["mark"] = user.name, user.mark
    token()


def signed_in(users: Iterable[User]) -> User | None:
    """Return who is signed in; None too when the person was removed or has another password now."""
    user = find_user(users, session.get("user", ""))
    return user if user and hmac.compare_digest(user.mark, session.get("mark", "")) else None


def token() -> str:
    """Return the session's token, made at its first use."""
    found: str = session.setdefault("csrf", secrets.token_urlsafe(24))
    return found


def has_token() -> bool:
    """Whether the request carries its session's token."""
    given = request.headers.get(TOKEN_HEADER) or request.form.get(TOKEN_FIELD, "")
    expected = session.get("csrf", "")
    return bool(expected) and hmac.compare_digest(given.encode(), expected.encode())
