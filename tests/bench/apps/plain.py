"""A plain Celery application with a task that does nothing."""

import os

from celery import Celery

app = Celery("plain", broker=os.environ["BENCH_BROKER"])


@app.task(name="plain.nothing", ignore_result=True)
def nothing(event_id: str) -> None:
    """Do nothing."""
