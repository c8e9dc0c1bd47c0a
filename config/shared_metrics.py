"""The folder in which a server's processes keep what they measure, so that any of them tells of all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable in which prometheus_client looks, once, when it is imported."""


def is_shared() -> bool:
    """Whether this process was started inside `shared_metrics`."""
    return bool(os.environ.get(FOLDER))


@contextmanager
def shared_metrics() -> Iterator[None]:
    """Give the processes that are started inside an empty folder of their own, and remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="firstseen-metrics-"))
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        os.environ.pop(FOLDER, None)
        shutil.rmtree(folder, ignore_errors=True)
