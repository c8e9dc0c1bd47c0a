"""What both sides tell Celery about the broker, as data; neither needs the other for it."""

import ssl
from typing import Any

WAKE_TASK = "firstseen.wake"
QUEUE = "firstseen"

CONNECT_TIMEOUT = 1.0
"""Seconds. A frozen broker must not hold the publishing thread; measured: 60 s and more by default."""

ONE_TRY: dict[str, Any] = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def celery_options(broker: str) -> dict[str, Any]:
    """Options for `Celery(**options)`: one queue, JSON, no results, nothing that waits for long.

    Heroku's Redis presents a self-signed certificate, so `rediss://` encrypts without checking who answers;
    nudges carry row ids only.
    """
    options: dict[str, Any] = {
        "broker_url": broker,
        "task_default_queue": QUEUE,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "broker_connection_timeout": CONNECT_TIMEOUT,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "worker_hijack_root_logger": False,
        "broker_transport_options": _transport(broker),
    }
    if broker.startswith("rediss://"):
        options["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_NONE}
    return options


def _transport(broker: str) -> dict[str, Any]:
    if broker.startswith("amqp"):
        return {"max_retries": 0, "read_timeout": CONNECT_TIMEOUT, "write_timeout": CONNECT_TIMEOUT}
    return {"socket_timeout": CONNECT_TIMEOUT, "socket_connect_timeout": CONNECT_TIMEOUT, **ONE_TRY}
