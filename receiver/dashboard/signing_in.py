"""Signing in and out."""

import logging
import threading
from collections.abc import Sequence

from flask import Response, g, make_response, redirect, render_template, request, session, url_for
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response as AnyResponse

from config.credentials import User, find_user
from receiver.dashboard import sessions
from receiver.dashboard.gate import local
from receiver.dashboard.throttle import Throttle
from receiver.problems import Problem, unavailable

log = logging.getLogger(__name__)

TRIES_OF_BOTH, TRIES_OF_ADDRESS, TRIES_OF_NAME = 5, 20, 50
"""In five minutes: for one name from one address; from one address for any name; for one name from anywhere,
which is many, since whoever uses them up keeps that person out."""

PASSWORD_MAX = 1_024
"""Characters; more is no password."""

CROWD = 4
"""Sign-ins at once; one more is told to come again. Each holds a thread that deliveries need."""


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
            return redirect(local(request.args.get("next"))) if g.user else _asked(200)
        name, password = request.form.get("name", "").strip(), request.form.get("password", "")
        places = _places(name)
        if wait := self._throttle.take(places):
            log.warning("Sign-ins from %s are slowed down for %d s.", request.remote_addr, wait)
            refused = _asked(429, f"Too many tries. Wait {wait} seconds, then try again.")
            refused.headers["Retry-After"] = str(wait)
            return refused
        try:
            user = self._check(name, password)
        except Problem:
            self._throttle.give_back(places)  # nothing was tried
            raise
        if user is None:
            # Without what was typed as the name: it is the password now and then.
            log.warning("A sign-in from %s failed.", request.remote_addr)
            return _asked(401, "Name or password is wrong.")
        self._throttle.give_back(places)
        sessions.begin(user)
        log.info("%s signed in from %s.", user.name, request.remote_addr)
        return redirect(local(request.form.get("next")))

    def sign_out(self) -> AnyResponse:
        """Forget who it was."""
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


def _places(name: str) -> dict[str, int]:
    # Behind a router every connection is the router's, which adds the sender's address at the end.
    sender = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()[:64]
    address = f"{request.remote_addr} {sender}"
    return {
        f"both {name[:64]} {address}": TRIES_OF_BOTH,
        f"address {address}": TRIES_OF_ADDRESS,
        f"name {name[:64]}": TRIES_OF_NAME,
    }


def _asked(status: int, problem: str = "") -> Response:
    # Text of the visitor's is shown back in the field of the name alone.
    told = {"problem": problem, "name": request.form.get("name", "")[:64]}
    place = local(request.values.get("next"))
    return make_response(render_template("sign_in.html", next=place, **told), status)
