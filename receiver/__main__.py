"""`python -m receiver`: the Procfile's web."""

import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask
from granian import Granian
from granian.constants import Interfaces

from config.logs import Form, log_uncaught
from config.providers import load_providers
from config.settings import Settings, environment, load_settings
from config.sources import load_sources
from config.toml import ConfigError
from config.tracing import set_up_traces
from receiver.endpoints import build_endpoints

# Nothing imported here may import prometheus_client, which looks for this variable only then.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

KILL_AFTER = 10
"""Seconds that a stopping server's requests get; the platform kills at 30."""


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Give the server's processes an empty folder for what they measure, so that any of them tells of all."""
    folder = Path(tempfile.mkdtemp(prefix="firstseen-metrics-"))
    os.environ[METRICS_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(METRICS_FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Serve until told to stop; return 1 with one sentence when it cannot start."""
    try:
        settings = load_settings()
        build_endpoints(load_sources(settings.sources_path, load_providers(), environment()))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    serve(settings)
    return 0


def serve(settings: Settings) -> None:
    """Run granian: its workers each build the application."""
    server = Granian(
        "receiver.__main__:application",
        factory=True,
        interface=Interfaces.WSGI,
        address=settings.host or ("127.0.0.1" if settings.dev else "0.0.0.0"),  # noqa: S104 - behind a router
        port=settings.port,
        workers=settings.web_concurrency,
        blocking_threads=settings.web_threads,
        respawn_failed_workers=True,
        workers_kill_timeout=KILL_AFTER,
        websockets=False,
        log_dictconfig=_log_lines(settings.logs),
    )
    with shared_metrics():
        server.serve()


def application() -> Flask:
    """Build the application in a process that serves."""
    # Ctrl-C reaches the whole group and granian passes it on as SIGTERM; a worker that gets both can hang
    # until it is killed. The mask holds in every thread that is started from here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    log_uncaught()
    set_up_traces("firstseen-web")
    # Not before: prometheus_client looks once, when it is imported, where to share its numbers.
    from receiver.app import create_app  # noqa: PLC0415

    return create_app()


def _log_lines(form: Form) -> dict[str, object]:
    # Granian's own lines in the form of everybody else's.
    stream = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    handler = {**stream, "formatter": "line", "filters": ["threads"]}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"threads": {"()": lambda: _is_not_about_threads}},
        "formatters": {"line": {"()": "config.logs.line_formatter", "form": form}},
        "handlers": {"console": handler},
        "loggers": {"_granian": {"handlers": ["console"], "level": "INFO", "propagate": False}},
    }


def _is_not_about_threads(record: logging.LogRecord) -> bool:
    # Granian counts threads against cores; ours wait for the database, so more of them than cores is right.
    return "Python threads" not in record.getMessage()


if __name__ == "__main__":
    sys.exit(main())
