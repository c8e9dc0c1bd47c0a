"""The sandbox's composition root."""

import functools
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from flask import Blueprint, Flask, Response, g, jsonify, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from config.dialects import load_dialects
from receiver.idempotency import Engine, KeyPolicy, Refusal, policy_of, read_body
from receiver.ledger.errors import LedgerError
from receiver.ledger.idempotency_keys import Slot
from receiver.ledger.store import Store
from receiver.sandbox import faults as control
from receiver.sandbox import storage as journal
from receiver.sandbox.apis import SandboxApi, View
from receiver.sandbox.apis.celper import CELPER
from receiver.sandbox.apis.chronapilot import CHRONAPILOT
from receiver.sandbox.apis.salesly import SALESLY
from receiver.sandbox.apis.stannp import STANNP
from receiver.sandbox.apis.telness import TELNESS
from receiver.sandbox.faults import AROUND, Control, Fault, FaultKind, Faults, Races
from receiver.sandbox.server import hang_up
from receiver.sandbox.storage import Desk, prepare

# Around each of the sandbox's views: authentication, the armed fault, the engine.


Guarded = Callable[..., Response]


class SandboxEngine(Engine):
    """The engine, with the faults that happen inside it."""

    faults: Faults
    races: Races

    def claimed(self, slot: Slot) -> None:
        """Linger where the key is held and nothing has happened yet."""
        fault = _inner(self.faults, FaultKind.HOLD, FaultKind.RACE)
        if fault and fault.kind == FaultKind.HOLD:
            time.sleep(fault.seconds)
        elif fault:
            self.races.wait(slot, fault.seconds)

    def overlaps(self, slot: Slot) -> bool:
        """Run beside the holder of the key when a race is asked for; only silent documents allow one."""
        asked = _inner(self.faults, FaultKind.RACE)
        joined = self.races.join(slot)
        return joined or asked is not None


def policy(api: SandboxApi) -> KeyPolicy:
    """Return an API's policy, its paths where the sandbox has them."""
    return policy_of(api.name, load_dialects()[api.name], api.prefix)


def word(api: SandboxApi, refusal: Refusal) -> Response:
    """Return a Refusal as the API words it."""
    response = jsonify(api.word(refusal))
    response.status_code = refusal.status
    if refusal.retry_after is not None:
        response.headers["Retry-After"] = str(refusal.retry_after)
    return response


def views(api: SandboxApi, store: Store, faults: Faults, races: Races) -> Blueprint:
    """Build an API's blueprint."""
    blueprint = Blueprint(api.name, __name__, url_prefix=api.prefix)
    refuse = functools.partial(word, api)
    engine = SandboxEngine(store, policy(api), scopes=api.scopes, refuse=refuse)
    engine.faults, engine.races = faults, races
    for route in api.routes:
        guarded = engine.guard(_inside(api, engine.policy, route.view, faults))
        view = _outside(api, guarded, faults)
        name = f"{route.method} {route.path}".replace(".", " ")
        blueprint.add_url_rule(route.path, name, view, methods=[route.method])
    return blueprint


def _inside(api: SandboxApi, keys: KeyPolicy, view: View, faults: Faults) -> View:
    def run(**values: str) -> ResponseReturnValue:
        if _inner(faults, FaultKind.ERROR):
            raise Refusal(500, "internal_error", "Something broke before anything was done.")
        key = request.headers.get(keys.header)
        return view(Desk(g.ledger, request, api=api.name, owner=api.owner(request), key=key), **values)

    return run


def _outside(api: SandboxApi, guarded: Guarded, faults: Faults) -> Guarded:
    def answer(**values: str) -> Response:
        if not api.credential(request):
            raise Refusal(401, "unauthorized", api.wanted)
        g.body = read_body(request)
        g.fault = fault = faults.take(request.path, AROUND)
        early = _before(fault) if fault else None
        if early:
            return early
        response = guarded(**values)
        return _after(fault, response) if fault else response

    return answer


def _inner(faults: Faults, *kinds: FaultKind) -> Fault | None:
    """Take a fault inside the engine, unless this request has one."""
    if g.fault is None:
        g.fault = faults.take(request.path, kinds)
        return g.fault  # type: ignore[no-any-return]
    return None


def _before(fault: Fault) -> Response | None:
    match fault.kind:
        case FaultKind.DROP_BEFORE:
            return hang_up()
        case FaultKind.TOO_MANY:
            raise Refusal(429, "too_many_requests", "Too many requests; wait.", fault.retry_after)
        case FaultKind.UNAVAILABLE:
            raise Refusal(503, "unavailable", "Not available now; try again.", fault.retry_after)
    return None


def _after(fault: Fault, response: Response) -> Response:
    match fault.kind:
        case FaultKind.DROP_AFTER:
            return hang_up()
        case FaultKind.SLOW:
            time.sleep(fault.seconds)
    return response


# One module for each API: its resources, its words for errors, and where it looks for credentials.


APIS = (CELPER, CHRONAPILOT, SALESLY, STANNP, TELNESS)

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
