"""`python -m receiver`: the Procfile's web. Granian serves; each of its workers builds the application."""

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

# No module imported above may import prometheus_client: it looks for this variable then, and never again.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"

KILL_AFTER = 10
"""Seconds that a stopping server's requests get; the platform kills at 30."""


def main() -> int:
    """Serve until a signal stops it; return 1 with one sentence when it cannot start."""
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
        log_dictconfig=_log_config(settings.logs),
    )
    with shared_metrics():
        server.serve()


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Give the server's processes an empty folder for their measurements, so that each reports them all."""
    folder = Path(tempfile.mkdtemp(prefix="firstseen-metrics-"))
    os.environ[METRICS_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(METRICS_FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)


def application() -> Flask:
    """Build the application in a process that serves."""
    # Ctrl-C reaches the whole group and granian passes it on as SIGTERM; a worker that gets both can hang
    # until it is killed. The mask holds in every thread that is started from here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    log_uncaught()
    set_up_traces("firstseen-web")
    # Not before: it imports prometheus_client.
    from receiver.app import create_app  # noqa: PLC0415

    return create_app()


def _log_config(form: Form) -> dict[str, object]:
    """Return logging's configuration that gives Granian's own lines the form of all others."""
    stream = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    handler = {**stream, "formatter": "line", "filters": ["threads"]}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        # Granian warns of more threads than cores; ours wait for the database, so more are right.
        "filters": {"threads": {"()": lambda: lambda record: "Python threads" not in record.getMessage()}},
        "formatters": {"line": {"()": "config.logs.line_formatter", "form": form}},
        "handlers": {"console": handler},
        "loggers": {"_granian": {"handlers": ["console"], "level": "INFO", "propagate": False}},
    }


if __name__ == "__main__":
    sys.exit(main())
