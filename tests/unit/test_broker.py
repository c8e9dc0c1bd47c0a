"""Celery's broker options, of web and worker."""

import ssl
from typing import Any

import pytest
from celery import Celery

from config.broker import (
    CONSUME_TIMEOUT,
    PUBLISH_TIMEOUT,
    WAKE_TASK,
    consumer_options,
    publisher_options,
    wake_message,
)

URLS = [
    "redis://127.0.0.1:1/0",
    "rediss://:secret@127.0.0.1:1/0",
    "redis+socket:///nowhere/valkey.sock",
    "amqp://guest:guest@127.0.0.1:1//",
    "amqps://guest:guest@127.0.0.1:1//",
]


def app(options: dict[str, Any]) -> Celery:
    """Make a Celery application without setting it as the default one."""
    return Celery("test", **options, set_as_current=False)


@pytest.mark.parametrize("url", URLS)
def test_a_publish_is_bounded_on_every_transport(url: str) -> None:
    """Short timeouts and no retry."""
    options = publisher_options(url)["broker_transport_options"]
    timeouts = {value for name, value in options.items() if "timeout" in name}
    assert timeouts == {PUBLISH_TIMEOUT}
    assert len([name for name in options if "timeout" in name]) == 2
    assert options["max_retries"] == 0
    assert app(publisher_options(url)).connection_for_write().connect_timeout == PUBLISH_TIMEOUT


@pytest.mark.parametrize("url", URLS)
def test_both_sides_use_one_queue_and_accept_only_json(url: str) -> None:
    for options in (publisher_options(url), consumer_options(url)):
        conf = app(options).conf
        assert (conf.task_default_queue, list(conf.accept_content)) == ("firstseen", ["json"])


@pytest.mark.parametrize("url", URLS)
def test_a_consumer_acknowledges_early_and_never_gives_up(url: str) -> None:
    """The lease recovers events, not the broker: it reconnects endlessly and prefetches little."""
    conf = app(consumer_options(url)).conf
    assert (conf.task_acks_late, conf.worker_prefetch_multiplier) == (False, 1)
    assert conf.broker_connection_retry_on_startup
    assert conf.broker_connection_max_retries > 1_000_000, "None and 0 both mean something else"


def test_a_consumer_outlasts_a_long_poll() -> None:
    """Its socket timeout is longer than the 10 seconds of a blocking read."""
    assert consumer_options(URLS[0])["broker_transport_options"]["socket_timeout"] == CONSUME_TIMEOUT > 10


def test_a_self_signed_certificate_is_accepted() -> None:
    """Heroku's Redis has one: both sides encrypt, and neither checks the certificate."""
    for options in (publisher_options(URLS[1]), consumer_options(URLS[1])):
        assert app(options).connection_for_write().ssl == {"ssl_cert_reqs": ssl.CERT_NONE}
    assert "broker_use_ssl" not in publisher_options(URLS[0])


def test_a_nudge_names_no_event() -> None:
    """It has no arguments, and no ETA that the broker would keep."""
    message = wake_message()
    assert message["name"] == WAKE_TASK
    assert not {"args", "kwargs"} & set(message)
    assert not message["retry"]
    assert not {"eta", "countdown", "expires"} & set(message)
