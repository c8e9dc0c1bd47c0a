"""A small application behind the idempotency engine; tests replace, stall or kill its only view.

`python -m tests.services.guarded URL PORT` serves it in a child process that is replaced when it dies; a
request's X-Die header names the point at which it kills the child.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flask import Flask, Response, g, jsonify, request
from sqlalchemy import Column, Integer, MetaData, Table, Text, delete, event, func, insert, select
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from config.dialects import load_dialects
from receiver.idempotency import Engine, KeyPolicy, Refusal, policy_of
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.idempotency_keys import KEY, Slot
from receiver.ledger.store import Store
from tests.services.databases import driver_url

FIRSTSEEN = policy_of("firstseen", load_dialects()["firstseen"])
POINTS = ("claimed", "begun", "worked", "finished", "committed")
"""Points at which a process can die: key claimed, view begun, view done, before commit, after commit."""

metadata = MetaData()
DEED = Table("deed", metadata, Column("id", Integer, primary_key=True), Column("note", Text, nullable=False))


class StallingEngine(Engine):
    """An engine that calls `stall` once a key is claimed."""

    stall: Callable[[], Any] = staticmethod(lambda: None)

    def claimed(self, slot: Slot) -> None:  # noqa: ARG002 - each key stalls
        """Call `stall`."""
        self.stall()


class Guarded:
    """The application on a database. `view` is its view, `engine.stall` runs before it."""

    def __init__(
        self, url: str, policy: KeyPolicy = FIRSTSEEN, *, lease: float = 30, body_max: int = 10_000
    ) -> None:
        self.store = Store(driver_url(url), pool=10)
        with self.store.write() as connection:
            KEY.create(connection, checkfirst=True)
            metadata.create_all(connection)
        self.view: Callable[[], Any] = self.deed
        self.engine = StallingEngine(
            self.store,
            policy,
            scopes={"credential": lambda request: request.headers.get("X-API-Key", "")},
            refuse=_refuse,
            lease=timedelta(seconds=lease),
            body_max=body_max,
        )
        self.app = Flask("guarded")
        guarded = self.engine.guard(lambda: self.view())  # noqa: PLW0108 - tests replace it
        self.app.add_url_rule("/things", view_func=guarded, methods=["POST", "PATCH"])
        self.app.register_error_handler(LedgerUnavailable, lambda _: (jsonify(error="unavailable"), 503))

    def deed(self) -> Any:
        """Write a deed and respond with its number."""
        with g.ledger.write() as connection:
            number = connection.execute(insert(DEED).values(note="done").returning(DEED.c.id)).scalar_one()
        return {"deed": number}, 201

    def send(
        self, key: str | None = "a-key", body: bytes = b"{}", *, method: str = "POST", **headers: Any
    ) -> TestResponse:
        """Send a request from this thread."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named |= {"Idempotency-Key": key} if key is not None else {}
        return self.app.test_client().open("/things", method=method, data=body, headers=named)

    def empty(self) -> None:
        """Delete all deeds and keys."""
        with self.store.write() as connection:
            connection.execute(delete(DEED))
            connection.execute(delete(KEY))

    @property
    def deeds(self) -> int:
        """The number of committed deeds."""
        with self.store.read() as connection:
            return int(connection.execute(select(func.count()).select_from(DEED)).scalar_one())

    @property
    def keys(self) -> int:
        """The number of keys."""
        with self.store.read() as connection:
            return int(connection.execute(select(func.count()).select_from(KEY)).scalar_one())


def _refuse(refusal: Refusal) -> Response:
    response = jsonify(error=refusal.code, detail=refusal.detail)
    response.status_code = refusal.status
    return response


def _die(point: str) -> None:
    if request and request.headers.get("X-Die") == point:
        os.kill(os.getpid(), signal.SIGKILL)


def mortal(guarded: Guarded) -> Guarded:
    """Let requests kill the process."""

    def view() -> Any:
        _die("begun")
        answer = guarded.deed()
        _die("worked")
        g.worked = True
        return answer

    def committing(_: object) -> None:
        if request and "worked" in g:
            _die("finished")

    @guarded.app.after_request
    def committed(response: Response) -> Response:
        _die("committed")
        return response

    guarded.view = view
    guarded.engine.stall = lambda: _die("claimed")
    event.listen(guarded.store.engine, "commit", committing)
    return guarded


def serve(url: str, listener: socket.socket) -> None:
    """Serve in this process until it is killed."""
    application = mortal(Guarded(url, lease=0.5)).app
    make_server("127.0.0.1", 1, application, threaded=True, fd=listener.fileno()).serve_forever()


if __name__ == "__main__":
    with socket.create_server(("127.0.0.1", int(sys.argv[2]))) as listener:
        while True:
            child = os.fork()
            if not child:
                serve(sys.argv[1], listener)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
