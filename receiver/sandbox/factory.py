"""`create_sandbox`: the five APIs behind the idempotency engine, with their faults and their journal.

A request is written down, authenticated, meets the armed fault, passes the engine and reaches the view; then
its response is written down.
"""

import functools
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from flask import Blueprint, Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from config.dialects import load_dialects
from receiver.idempotency import Engine, Refusal, policy_of, read_body
from receiver.ledger.errors import LedgerError
from receiver.ledger.idempotency_keys import Slot
from receiver.ledger.store import Store
from receiver.sandbox.apis import SandboxApi, View
from receiver.sandbox.apis.celper import CELPER
from receiver.sandbox.apis.chronapilot import CHRONAPILOT
from receiver.sandbox.apis.salesly import SALESLY
from receiver.sandbox.apis.stannp import STANNP
from receiver.sandbox.apis.telness import TELNESS
from receiver.sandbox.faults import AROUND, Control, Fault, FaultKind, Faults, Races
from receiver.sandbox.server import hang_up
from receiver.sandbox.storage import Desk, note_request, note_response, prepare

APIS = (CELPER, CHRONAPILOT, SALESLY, STANNP, TELNESS)

log = logging.getLogger(__name__)


def create_sandbox(store: Store) -> Flask:
    """Build the five APIs and their control paths on a database of their own; raises LedgerError."""
    prepare(store)
    app = Flask("receiver.sandbox", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    faults, races = Faults(), Races()
    for api in APIS:
        app.register_blueprint(api_views(api, store, faults, races))
    app.register_blueprint(Control(store, faults, [api.name for api in APIS]).views())
    _keep_journal(app, store)
    _answer_errors(app)
    return app


class SandboxEngine(Engine):
    """The engine, with the faults that happen inside it."""

    faults: Faults
    races: Races

    def claimed(self, slot: Slot) -> None:
        """Linger where the key is held and nothing has happened yet."""
        fault = _take_inner(self.faults, FaultKind.HOLD, FaultKind.RACE)
        if fault and fault.kind == FaultKind.HOLD:
            time.sleep(fault.seconds)
        elif fault:
            self.races.wait(slot, fault.seconds)

    def overlaps(self, slot: Slot) -> bool:
        """Run beside the holder of the key when a race is asked for; only silent documents allow one."""
        asked = _take_inner(self.faults, FaultKind.RACE)
        # Join in either case: the twin that waits must go on, whatever this request was asked for.
        return self.races.join(slot) or asked is not None


def api_views(api: SandboxApi, store: Store, faults: Faults, races: Races) -> Blueprint:
    """Build an API's blueprint, its paths below the API's prefix."""
    blueprint = Blueprint(api.name, __name__, url_prefix=api.prefix)
    policy = policy_of(api.name, load_dialects()[api.name], api.prefix)
    refuse = functools.partial(_refusal_response, api)
    engine = SandboxEngine(store, policy, scopes=api.scopes, refuse=refuse)
    engine.faults, engine.races = faults, races
    for route in api.routes:
        guarded = engine.guard(_inside(api, policy.header, route.view, faults))
        # Flask takes a dot in a view's name for that of a blueprint.
        name = f"{route.method} {route.path}".replace(".", " ")
        blueprint.add_url_rule(route.path, name, _outside(api, guarded, faults), methods=[route.method])
    return blueprint


def _inside(api: SandboxApi, key_header: str, view: View, faults: Faults) -> View:
    """Wrap a view with what happens inside the engine: the fault before the effect, and the desk."""

    def run(**values: str) -> ResponseReturnValue:
        if _take_inner(faults, FaultKind.ERROR):
            raise Refusal(500, "internal_error", "Something broke before anything was done.")
        key = request.headers.get(key_header)
        return view(Desk(g.ledger, request, api=api.name, owner=api.owner(request), key=key), **values)

    return run


def _outside(api: SandboxApi, guarded: Callable[..., Response], faults: Faults) -> Callable[..., Response]:
    """Wrap a guarded view with what happens around the engine: authentication, and faults on either side."""

    def answer(**values: str) -> Response:
        if not api.credential(request):
            raise Refusal(401, "unauthorized", api.wanted)
        g.body = read_body(request)
        g.fault = fault = faults.take(request.path, AROUND)
        if fault is None:
            return guarded(**values)
        match fault.kind:
            case FaultKind.DROP_BEFORE:
                return hang_up()
            case FaultKind.TOO_MANY:
                raise Refusal(429, "too_many_requests", "Too many requests; wait.", fault.retry_after)
            case FaultKind.UNAVAILABLE:
                raise Refusal(503, "unavailable", "Not available now; try again.", fault.retry_after)
        response = guarded(**values)
        if fault.kind == FaultKind.DROP_AFTER:
            return hang_up()
        time.sleep(fault.seconds)
        return response

    return answer


def _take_inner(faults: Faults, *kinds: FaultKind) -> Fault | None:
    """Take a fault inside the engine; a request takes one in all."""
    if g.fault is not None:
        return None
    fault = faults.take(request.path, kinds)
    g.fault = fault
    return fault


def _keep_journal(app: Flask, store: Store) -> None:
    @app.before_request
    def arrive() -> None:
        if api := _requested_api():
            key = request.headers.get(load_dialects()[api.name].header or "")
            g.number = note_request(store, api.name, request, key)

    @app.after_request
    def leave(response: Response) -> Response:
        if "number" in g:
            status = None if "dropped" in g else response.status_code
            # The response is the client's by now: a journal that cannot be written must not change it.
            with suppress(LedgerError):
                note_response(store, g.number, g.get("body", b""), status)
        return response


def _answer_errors(app: Flask) -> None:
    """Answer every error in the shape of the API that was asked, outside of them in one sentence."""

    def answer(refusal: Refusal) -> Response:
        return _refusal_response(_requested_api(), refusal)

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


def _requested_api() -> SandboxApi | None:
    name = request.path.strip("/").partition("/")[0]
    return next((api for api in APIS if api.name == name), None)


def _refusal_response(api: SandboxApi | None, refusal: Refusal) -> Response:
    response = jsonify(api.error(refusal) if api else {"error": refusal.detail})
    response.status_code = refusal.status
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    if refusal.status == 401 and api and api.challenge:  # noqa: PLR2004 - unauthorized
        response.headers["WWW-Authenticate"] = api.challenge
    return response
