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
from receiver.ingress import Ingress
from receiver.instruments import Instruments
from receiver.ledger import LedgerError, Store, check_schema, record_rejections
from receiver.management.api import Parts, api_views
from receiver.metrics import metrics_views
from receiver.observing import Observer
from receiver.problems import answer_problems

log = logging.getLogger(__name__)

REJECTIONS_ROOM, REJECTIONS_BATCH = 1000, 200
"""A flood of forged deliveries is counted as far as this goes; the rest is dropped, not queued."""


def create_app(settings: Settings | None = None) -> Flask:
    """Build the WSGI application. Raises ConfigError with one sentence when it is misconfigured."""
    settings = settings or load_settings()
    set_up_logs(settings.logs)
    sources = load_sources(settings.sources_path, load_providers(), environment())
    endpoints = build_endpoints(sources)
    store = Store(settings.database, pool=settings.db_pool)
    instruments = Instruments()
    dispatcher = Dispatcher(settings.broker, instruments.nudged)
    rejections = Background(
        "rejections", partial(record_rejections, store), room=REJECTIONS_ROOM, batch=REJECTIONS_BATCH
    )
    app = Flask("receiver", static_folder=None)
    Observer(instruments).watch(app)
    app.register_blueprint(Ingress(endpoints, store, dispatcher, rejections).views())
    app.register_blueprint(health_views(store, dispatcher))
    app.register_blueprint(metrics_views(store, settings.metrics_token.get_secret_value(), instruments))
    app.register_blueprint(api_views(Parts(store, settings.api_keys, sources, dispatcher.nudge)))
    answer_problems(app)
    _greet(store)
    return app


def _greet(store: Store) -> None:
    try:
        check_schema(store)
    except LedgerError as error:
        log.warning("Deliveries get 503 until this is mended: %s", error)
