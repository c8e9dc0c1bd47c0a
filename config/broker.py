"""Celery's options for the broker, of the side that publishes and of the side that consumes.

Both are data, so that neither side needs the other: `publisher_options`, `consumer_options`, `wake_message`.
"""

import ssl
from typing import Any

# Names that workers of every release agree on.
WAKE_TASK, QUEUE = "firstseen.wake", "firstseen"

# Seconds. A frozen broker must not hold a publishing thread; measured: 60 s and more by default.
PUBLISH_TIMEOUT = 1.0

# Seconds. A consumer reads in long polls, so it must not give up as early as a publisher.
CONSUME_TIMEOUT = 30.0

# Tries to reach the broker. Celery reads None as its default, 100, after which a worker would end.
ENDLESS = 10**9


def publisher_options(broker: str) -> dict[str, Any]:
    """Options of a `Celery(**options)` that only publishes: one try, and never for long."""
    one_try = {"max_retries": 0, "interval_start": 0, "interval_step": 0, "interval_max": 0}
    if broker.startswith("amqp"):
        timeouts = {"read_timeout": PUBLISH_TIMEOUT, "write_timeout": PUBLISH_TIMEOUT}
    else:
        timeouts = {"socket_timeout": PUBLISH_TIMEOUT, "socket_connect_timeout": PUBLISH_TIMEOUT}
    return {
        **_common(broker),
        # One thread of a process publishes.
        "broker_pool_limit": 1,
        "broker_connection_timeout": PUBLISH_TIMEOUT,
        "broker_transport_options": {**timeouts, **one_try},
    }


def consumer_options(broker: str) -> dict[str, Any]:
    """Options of a worker's `Celery(**options)`: acknowledge early, prefetch little, retry for ever."""
    options = {
        **_common(broker),
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": ENDLESS,
        # Any worker can take any nudge, so a busy one must not hold more of them.
        "worker_prefetch_multiplier": 1,
        "worker_hijack_root_logger": False,
        # Both create queues and messages of their own, for monitoring tools that are not used here.
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }
    if not broker.startswith("amqp"):
        options["broker_transport_options"] = {
            "socket_timeout": CONSUME_TIMEOUT,
            "socket_connect_timeout": CONSUME_TIMEOUT,
            "socket_keepalive": True,
        }
    return options


def wake_message() -> dict[str, Any]:
    """Arguments of `send_task` for one nudge. It names no event: the woken thread claims what is due."""
    # Without the empty reprs Celery computes some for the headers.
    return {"name": WAKE_TASK, "retry": False, "ignore_result": True, "argsrepr": "", "kwargsrepr": ""}


def _common(broker: str) -> dict[str, Any]:
    options: dict[str, Any] = {
        "broker_url": broker,
        "task_default_queue": QUEUE,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
    }
    if broker.startswith("rediss://"):
        # Heroku's Redis has a self-signed certificate: it is not checked, as nudges carry nothing.
        options["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_NONE}
    return options
