"""The sandbox's composition root."""

import logging
from contextlib import suppress

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from config.dialects import load_dialects
from receiver.idempotency import Refusal
from receiver.ledger.errors import LedgerError
from receiver.ledger.store import Store
from receiver.sandbox import control, journal
from receiver.sandbox.api import SandboxApi
from receiver.sandbox.apis import APIS
from receiver.sandbox.control import Control
from receiver.sandbox.faults import Faults, Races
from receiver.sandbox.guarding import views, word
from receiver.sandbox.tables import prepare

log = logging.getLogger(__name__)


def create_sandbox(store: Store) -> Flask:
    """Build the five APIs and their control paths on a database of their own; raises LedgerError."""
    prepare(store)
    app = Flask("receiver.sandbox", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    faults, races = Faults(), Races()
    for api in APIS:
        app.register_blueprint(views(api, store, faults, races))
    app.register_blueprint(Control(store, faults, [api.name for api in APIS]).views())
    _keep_journal(app, store)
    _word_errors(app)
    return app


def _api() -> SandboxApi | None:
    name = request.path.strip("/").partition("/")[0]
    return next((api for api in APIS if api.name == name), None)


def _keep_journal(app: Flask, store: Store) -> None:
    @app.before_request
    def arrive() -> None:
        api = _api()
        if api:
            key = request.headers.get(load_dialects()[api.name].header or "")
            g.number = journal.note_request(store, api.name, request, key)

    @app.after_request
    def leave(response: Response) -> Response:
        if "number" in g:
            status = None if "dropped" in g else response.status_code
            with suppress(LedgerError):
                journal.note_answer(store, g.number, g.get("body", b""), status)
        return response


def _word_errors(app: Flask) -> None:
    def answer(refusal: Refusal) -> Response:
        api = _api()
        if api is None:
            response = jsonify(control.word(refusal))
            response.status_code = refusal.status
            return response
        response = word(api, refusal)
        if refusal.status == 401 and api.challenge:  # noqa: PLR2004 - unauthorized
            response.headers["WWW-Authenticate"] = api.challenge
        return response

    def answer_http(error: HTTPException) -> Response:
        name = error.name.lower().replace(" ", "_")
        response = answer(Refusal(error.code or 500, name, error.description or error.name))
        response.headers.extend((k, v) for k, v in error.get_headers() if k == "Allow")
        return response

    def answer_ledger(error: LedgerError) -> Response:
        log.warning("A request gets 503: %s", error)
        return answer(Refusal(503, "unavailable", "The sandbox's database does not answer; try again.", 1))

    app.register_error_handler(Refusal, answer)
    app.register_error_handler(HTTPException, answer_http)
    app.register_error_handler(LedgerError, answer_ledger)
