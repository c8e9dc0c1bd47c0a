"""The dashboard in this process, and a client with a session."""

import re
from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.security import generate_password_hash
from werkzeug.test import TestResponse

from config.apis import Api
from config.credentials import User
from config.sources import Source
from receiver.dashboard.auth import set_up_sessions
from receiver.dashboard.pages import dashboard_views
from receiver.ledger.store import Store
from receiver.problems import answer_problems
from receiver.service import Service

PASSWORD = "correct horse battery"
# A low cost: these tests are not about hashing.
ADA = User("ada", generate_password_hash(PASSWORD, "scrypt:1024:8:1"))
SECRET_KEY = "k" * 32
_TOKEN = re.compile(r'name="csrf" value="([^"]+)"')


class Board:
    """The dashboard's pages on a store. `nudged` counts the nudges."""

    def __init__(
        self,
        store: Store,
        *,
        users: tuple[User, ...] = (ADA,),
        sources: Mapping[str, Source] | None = None,
        apis: Mapping[str, Api] | None = None,
        keys: tuple[str, ...] = (SECRET_KEY,),
    ) -> None:
        self.nudged = 0
        self.app = Flask("receiver", static_folder=None)
        service = Service(store, sources or {}, self._nudge)
        self.app.register_blueprint(dashboard_views(service, users, apis or {}, lambda: "ok", 20))
        set_up_sessions(self.app, keys)
        answer_problems(self.app)
        self.client = self.app.test_client()

    def _nudge(self, count: int) -> None:
        self.nudged += count

    def get(self, path: str, **options: Any) -> TestResponse:
        """Send a GET."""
        return self.client.get(path, buffered=True, **options)

    def post(self, path: str, *, token: str | None = None, **fields: str) -> TestResponse:
        """Send a form with the session's CSRF token, or with the given one."""
        csrf = self.token() if token is None else token
        return self.client.post(path, data={"csrf": csrf} | fields)

    def token(self) -> str:
        """Return the session's CSRF token."""
        page = self.get("/sign-in", follow_redirects=True)
        found = _TOKEN.search(page.text)
        assert found, page.text
        return found[1]

    def sign_in(self, name: str = "ada", password: str = PASSWORD, **headers: str) -> TestResponse:
        """Submit the sign-in form."""
        given = {"csrf": self.token(), "name": name, "password": password}
        return self.client.post("/sign-in", data=given, headers=headers)

    def entered(self) -> "Board":
        """Sign in and return this."""
        assert self.sign_in().status_code == 302
        return self
