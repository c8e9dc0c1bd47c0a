"""`create_app`: the web side put together from its settings."""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from flask import Blueprint, Flask, Response, jsonify
from werkzeug.middleware.proxy_fix import ProxyFix

from config.apis import Api, load_apis
from config.dialects import load_dialects
from config.logs import set_up_logs
from config.providers import load_providers
from config.settings import Settings, environment, load_settings
from config.sources import load_sources
from config.toml import ConfigError
from receiver.api.routes import api_views
from receiver.dashboard.auth import set_up_sessions
from receiver.dashboard.pages import dashboard_views
from receiver.dispatch import Background, Dispatcher
from receiver.endpoints import build_endpoints
from receiver.ingress import Ingress, ingress_views
from receiver.ledger.counters import record_rejections
from receiver.ledger.errors import LedgerError
from receiver.ledger.intake import Recorder
from receiver.ledger.schema import check_schema
from receiver.ledger.store import Store
from receiver.metrics import Instruments, metrics_views
from receiver.problems import answer_problems
from receiver.service import Service
from receiver.telemetry import Observer

log = logging.getLogger(__name__)

# The most rejections that wait to be counted (further ones are dropped), and seconds between two writes.
COUNTS_ROOM, COUNTS_PAUSE = 10_000, 1.0

# Seconds that the ledger's health is remembered: anybody may ask for it, at any rate.
READY_SECONDS = 1.0

# Seconds that a worker may be silent at the least: it reports at every sweep, and a busy one may be late.
LEAST_PATIENCE = 20.0


@dataclass(frozen=True)
class Web:
    """The web side, whole: the Flask application, and its parts for the gateway around it."""

    settings: Settings
    app: Flask
    ingress: Ingress
    recorder: Recorder
    dispatcher: Dispatcher
    observer: Observer
    instruments: Instruments


def create_app(settings: Settings | None = None) -> Flask:
    """Build the WSGI application, for any WSGI server. Raises ConfigError when it is misconfigured."""
    return build_web(settings or load_settings()).app


def build_web(settings: Settings, metrics_folder: str | None = None) -> Web:
    """Put the web side together; processes that share `metrics_folder` report their measures as one."""
    set_up_logs(settings.logs)
    sources = load_sources(settings.sources_path, load_providers(), environment())
    endpoints = build_endpoints(sources)
    store = Store(settings.database, pool=settings.db_pool)
    instruments = Instruments(metrics_folder)
    dispatcher = Dispatcher(settings.broker, instruments.nudged)
    count = partial(record_rejections, store)
    rejections = Background("rejections", count, room=COUNTS_ROOM, batch=COUNTS_ROOM, pause=COUNTS_PAUSE)
    # After the commit, as a worker that wakes earlier finds no row.
    recorder = Recorder(store, lambda verdicts: dispatcher.nudge(sum(verdict.nudge for verdict in verdicts)))
    ingress = Ingress(endpoints, rejections, settings.public_url)
    app = Flask("receiver", static_folder=None)
    if settings.proxy_hops:
        hops = settings.proxy_hops
        # X-Forwarded-Prefix is not trusted: a proxy that does not set it passes on the client's.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_prefix=0)  # type: ignore[method-assign]
    observer = Observer(instruments)
    observer.watch(app)
    app.register_blueprint(ingress_views(ingress, recorder))
    app.register_blueprint(health_views(store, dispatcher))
    app.register_blueprint(metrics_views(store, settings.metrics_token.get_secret_value(), instruments))
    service = Service(store, sources, dispatcher.nudge)
    app.register_blueprint(api_views(service, settings.api_keys))
    patience = max(LEAST_PATIENCE, 3 * settings.sweep.total_seconds())
    apis = _apis(settings) if settings.users else {}
    app.register_blueprint(dashboard_views(service, settings.users, apis, lambda: dispatcher.state, patience))
    set_up_sessions(app, [key.get_secret_value() for key in settings.secret_keys])
    answer_problems(app)
    try:
        check_schema(store)
    except LedgerError as error:
        # Serve anyway: the ledger may come later, and /readyz says what is wrong until then.
        log.warning("Deliveries get 503 until this is mended: %s", error)
    return Web(settings, app, ingress, recorder, dispatcher, observer, instruments)


class Readiness:
    """Whether the ledger answers, asked at most once in READY_SECONDS by all that want to know."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._until, self._problem = 0.0, ""

    def problem(self) -> str:
        """Return a sentence on what is wrong, or nothing."""
        with self._lock:
            if time.monotonic() >= self._until:
                try:
                    check_schema(self._store)
                    self._problem = ""
                except LedgerError as error:
                    self._problem = str(error)
                self._until = time.monotonic() + READY_SECONDS
            return self._problem


def health_views(store: Store, dispatcher: Dispatcher) -> Blueprint:
    """Build `/healthz` (the process lives) and `/readyz` (the ledger answers and has the right schema)."""
    views = Blueprint("health", __name__)
    readiness = Readiness(store)

    @views.get("/healthz")
    def healthz() -> Response:
        return jsonify(status="ok")

    @views.get("/readyz")
    def readyz() -> tuple[Response, int]:
        # The broker is reported and fails nothing: without it events wait in the ledger.
        if problem := readiness.problem():
            return jsonify(status="unavailable", ledger=problem, broker=dispatcher.state), 503
        return jsonify(status="ok", ledger="ok", broker=dispatcher.state), 200

    return views


def _apis(settings: Settings) -> Mapping[str, Api]:
    try:
        return load_apis(settings.apis_path, load_dialects(), environment())
    except ConfigError as error:
        # Web calls none of them: a mistake there must not keep deliveries out.
        log.warning("The dashboard shows no APIs: %s", error)
        return {}
