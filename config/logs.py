"""Log lines of every process: one line an event, readable in a terminal."""

import logging
import sys

LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
CHATTY = (
    "celery.worker.strategy",
    "celery.app.trace",
    "kombu",
    "amqp",
    "alembic",
    "celery.worker.consumer.connection",
)


def set_up_logs(level: str = "INFO") -> None:
    """Send every logger's lines to stderr; libraries that speak of each message are kept to warnings."""
    logging.basicConfig(level=level, format=LINE, stream=sys.stderr)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
