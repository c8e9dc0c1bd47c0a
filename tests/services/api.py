"""The management API in this process, and a client with API keys."""

import secrets
from collections.abc import Mapping
from typing import Any

from flask import Flask
from werkzeug.test import TestResponse

from config.credentials import ApiKey
from config.sources import Source
from receiver.api.routes import api_views
from receiver.ledger.store import Store
from receiver.problems import answer_problems
from receiver.service import Service

OPS = ApiKey("ops", "ops-" + secrets.token_hex(16))
DEV = ApiKey("dev", "dev-" + secrets.token_hex(16))
BOARD = ApiKey("board", "board-" + secrets.token_hex(16), read_only=True)
KEYS = (OPS, DEV, BOARD)


class Api:
    """`/v1` on a store. `nudged` counts the nudges."""

    def __init__(
        self, store: Store, *, keys: tuple[ApiKey, ...] = KEYS, sources: Mapping[str, Source] | None = None
    ) -> None:
        self.store, self.nudged = store, 0
        self.app = Flask("receiver", static_folder=None)
        service = Service(store, sources or {}, self._nudge)
        self.app.register_blueprint(api_views(service, keys))
        answer_problems(self.app)

    def _nudge(self, count: int) -> None:
        self.nudged += count

    def send(self, method: str, path: str, *, key: ApiKey | None = OPS, **options: Any) -> TestResponse:
        """Send one request, with an API key unless it is None."""
        headers = {"Authorization": f"Bearer {key.secret}"} if key else {}
        given = options.pop("headers", {})
        return self.app.test_client().open(path, method=method, headers=headers | given, **options)

    def get(self, path: str, *, key: ApiKey | None = OPS, **query: Any) -> TestResponse:
        """Send a GET with this query."""
        return self.send("GET", path, key=key, **({"query_string": query} if query else {}))

    def post(
        self, path: str, body: Any = None, *, once: str | None = None, key: ApiKey | None = OPS
    ) -> TestResponse:
        """Send a POST with this JSON, and `once` as its idempotency key."""
        headers = {} if once is None else {"Idempotency-Key": once}
        return self.send("POST", path, key=key, json=body, headers=headers)


def problem(response: TestResponse) -> tuple[int, str]:
    """Return a problem document's status and the end of its type; fail if it is not well-formed."""
    assert response.content_type == "application/problem+json", response.text
    document = response.get_json()
    assert set(document) == {"type", "title", "status", "detail"}, document
    assert document["status"] == response.status_code
    prefix, _, kind = document["type"].rpartition(":")
    assert prefix == "urn:firstseen:problem"
    return response.status_code, kind
