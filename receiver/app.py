"""The web side's composition root."""

import logging
from functools import partial

from flask import Flask

from config.logs import set_up_logs
from config.providers import load_providers
from config.settings import Settings, environment, load_settings
from config.sources import load_sources
from receiver.background import Background
from receiver.dispatch import Dispatcher
from receiver.endpoints import build_endpoints
from receiver.health import health_views
from receiver.ingress import Counts, Ingress
from receiver.ledger import LedgerError, Store, check_schema, count_duplicates, record_rejections
from receiver.management.api import Parts, api_views
from receiver.problems import answer_problems

log = logging.getLogger(__name__)

COUNTS_ROOM, COUNTS_BATCH = 1000, 200
"""A flood of forged or repeated deliveries is counted as far as this goes; the rest is dropped."""


def create_app(settings: Settings | None = None) -> Flask:
    """Build the WSGI application. Raises ConfigError with one sentence when it is misconfigured."""
    set_up_logs()
    settings = settings or load_settings()
    sources = load_sources(settings.sources_path, load_providers(), environment())
    endpoints = build_endpoints(sources)
    store = Store(settings.database, pool=settings.db_pool)
    dispatcher = Dispatcher(settings.broker)
    counts = Counts(
        Background("rejections", partial(record_rejections, store), room=COUNTS_ROOM, batch=COUNTS_BATCH),
        Background("duplicates", partial(count_duplicates, store), room=COUNTS_ROOM, batch=COUNTS_BATCH),
    )
    app = Flask("receiver", static_folder=None)
    app.register_blueprint(Ingress(endpoints, store, dispatcher, counts).views())
    app.register_blueprint(health_views(store, dispatcher))
    app.register_blueprint(api_views(Parts(store, settings.api_keys, sources, dispatcher.nudge)))
    answer_problems(app)
    _greet(store)
    return app


def _greet(store: Store) -> None:
    try:
        check_schema(store)
    except LedgerError as error:
        log.warning("Deliveries get 503 until this is mended: %s", error)
