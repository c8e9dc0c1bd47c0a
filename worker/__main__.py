"""`python -m worker`: the Procfile's worker."""

import logging
import os
import sys

from config.apis import load_apis
from config.dialects import load_dialects
from config.logs import log_uncaught, set_up_logs
from config.providers import load_providers
from config.settings import environment, load_settings
from config.sources import load_sources
from config.toml import ConfigError
from config.tracing import set_up_traces
from receiver.ledger.queue import Retention
from worker.consumer import Worker
from worker.registry import HandlerError, load_handlers


def main() -> int:
    """Start a worker; return 0 after an orderly stop and 1 with one sentence when it cannot start."""
    try:
        settings = load_settings()
        set_up_logs(settings.logs)
        log_uncaught()
        set_up_traces("firstseen-worker")
        sources = load_sources(settings.sources_path, load_providers(), environment())
        apis = load_apis(settings.apis_path, load_dialects(), environment())
        registry = load_handlers(settings.handlers)
    except (ConfigError, HandlerError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    windows = {
        name: Retention(source.retention, source.payload_retention) for name, source in sources.items()
    }
    return Worker(settings, registry, windows, apis).start()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    logging.shutdown()
    # A handler's thread that never returns must not hold the process.
    os._exit(status)
