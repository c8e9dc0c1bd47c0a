"""`python -m receiver`: the Procfile's web. Granian serves; each of its workers builds a gateway."""

import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from granian import Granian
from granian.constants import HTTPModes, Interfaces, TaskImpl
from granian.http import HTTP1Settings

from config.logs import Form, log_uncaught
from config.providers import load_providers
from config.settings import Settings, environment, load_settings
from config.sources import load_sources
from config.toml import ConfigError
from config.tracing import set_up_traces
from receiver.app import build_web
from receiver.endpoints import build_endpoints
from receiver.gateway import Gateway

# Where a child finds the folder in which the server's processes share their measures.
METRICS_FOLDER = "FIRSTSEEN_METRICS_FOLDER"

# Seconds that a stopping server's requests get; the platform kills at 30.
KILL_AFTER = 10

# Connections of a process at the most; each is a file, and the ledger, the broker and logs need some too.
CONNECTIONS, OTHER_FILES = 20_000, 200


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
    """Run granian: its workers each build a gateway."""
    server = Granian(
        "receiver.__main__:gateway",
        factory=True,
        interface=Interfaces.ASGI,
        # The slowest answers of granian's own tasks take forty times as long as asyncio's.
        task_impl=TaskImpl.asyncio,
        address=settings.host or ("127.0.0.1" if settings.dev else "0.0.0.0"),  # noqa: S104 - behind a router
        port=settings.port,
        workers=settings.web_concurrency,
        backpressure=_raise_file_limit(),
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=int(settings.upload_timeout.total_seconds() * 1000)),
        respawn_failed_workers=True,
        workers_kill_timeout=KILL_AFTER,
        websockets=False,
        log_dictconfig=_log_config(settings.logs),
    )
    with shared_metrics():
        server.serve()


def _raise_file_limit() -> int:
    """Let this process and its children open as many files as it may; return how many connections that is.

    A stalled or idle connection costs a file, and where they are used up no other is accepted.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = CONNECTIONS + OTHER_FILES
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(files - OTHER_FILES, 1)


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Give the server's processes an empty folder for their measures, so that each reports them all."""
    folder = Path(tempfile.mkdtemp(prefix="firstseen-metrics-"))
    os.environ[METRICS_FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(METRICS_FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)


def gateway() -> Gateway:
    """Build the gateway in a process that serves."""
    # Ctrl-C reaches the whole group and granian passes it on as SIGTERM; a worker that gets both can hang
    # until it is killed. The mask holds in every thread that is started from here.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    log_uncaught()
    set_up_traces("firstseen-web")
    return Gateway(build_web(load_settings(), os.environ.get(METRICS_FOLDER)))


def _log_config(form: Form) -> dict[str, object]:
    """Return logging's configuration that gives Granian's own lines the form of all others."""
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "line"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": "config.logs.line_formatter", "form": form}},
        "handlers": {"console": handler},
        "loggers": {"_granian": {"handlers": ["console"], "level": "INFO", "propagate": False}},
    }


if __name__ == "__main__":
    sys.exit(main())
