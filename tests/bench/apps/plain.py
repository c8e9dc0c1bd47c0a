"""A plain Celery application with a task that does nothing and one that records its latency."""

import os
import time
from pathlib import Path

from celery import Celery

app = Celery("plain", broker=os.environ["BENCH_BROKER"])


@app.task(name="plain.nothing", ignore_result=True)
def nothing(event_id: str) -> None:
    """Do nothing."""


@app.task(name="plain.timed", ignore_result=True)
def timed(sent_at: float) -> None:
    """Record the milliseconds from the task's sending to its start."""
    waited = (time.time() - sent_at) * 1000
    with Path(os.environ["BENCH_TIMES"]).open("a") as times:
        times.write(f"{waited}\n")
