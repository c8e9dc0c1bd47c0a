"""A handler module in a temporary folder: it follows its events' orders and records its runs."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil

MODULE = "recording_handlers"

SOURCE = '''"""Write each run down with O_APPEND: one write, one line, whatever kills the process."""

import os
import time

from worker import Dead, Retry, handles

FOLDER = os.environ["TEST_HANDLERS_FOLDER"]


def append(name, *words):
    file = os.open(os.path.join(FOLDER, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (" ".join(map(str, words)) + "\\n").encode())
    finally:
        os.close(file)


@handles("{source}", "*")
def record(event, calls):
    orders = event.data.get("data", {{}}).get("object", {{}})
    attempt = event.attempt
    append("spans", "start", event.event_id, attempt, os.getpid(), time.monotonic())
    try:
        obey(orders, attempt)
        append("lines", event.event_id)
    finally:
        append("spans", "end", event.event_id, attempt, os.getpid(), time.monotonic())


def obey(orders, attempt):
    time.sleep(orders.get("sleep", 0))
    while orders.get("hold") and not os.path.exists(os.path.join(FOLDER, "released")):
        time.sleep(0.02)
    if attempt <= orders.get("fail", 0):
        raise RuntimeError("told to fail")
    if attempt <= orders.get("retry", 0):
        raise Retry(after=orders.get("after", 0.1))
    if orders.get("dead"):
        raise Dead("told to die")
'''


class Span(NamedTuple):
    """The start or end of a run: `what` is start or end, `at` is in monotonic seconds of the machine."""

    what: str
    event_id: str
    attempt: int
    pid: int
    at: float


class Handlers:
    """A handler for every event of one source; the event's `data.object` says what it does.

    `sleep` (seconds), `hold` (until `release()`), `fail` and `retry` (up to that attempt), `dead` (true). It
    records its start, obeys, appends the event id to the lines, and records its end.
    """

    def __init__(self, folder: Path, source: str = "stripe", code: str | None = None) -> None:
        self.folder = folder
        self.module = MODULE
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{MODULE}.py").write_text(code or SOURCE.format(source=source))

    def env(self) -> dict[str, str]:
        """Return the variables that name it to a worker; its folder must be on PYTHONPATH."""
        return {"FIRSTSEEN_HANDLERS": self.module, "TEST_HANDLERS_FOLDER": str(self.folder)}

    def lines(self) -> list[str]:
        """Return the ids of handled events, one for each run that finished."""
        return self._read("lines")

    def spans(self) -> list[Span]:
        """Return every start and end, in the order written."""
        rows = [line.split() for line in self._read("spans")]
        return [
            Span(what, event, int(attempt), int(pid), float(at)) for what, event, attempt, pid, at in rows
        ]

    def started(self, event_id: str) -> int:
        """Return how many runs of this event started."""
        return sum(span.what == "start" and span.event_id == event_id for span in self.spans())

    def overlaps(self) -> set[str]:
        """Return the events of which two runs overlapped; runs of dead processes do not count."""
        running: Counter[str] = Counter()
        found = set()
        spans = self.spans()
        ended = {span[1:4] for span in spans if span.what == "end"}
        counted = [span for span in spans if span[1:4] in ended or psutil.pid_exists(span.pid)]
        for span in sorted(counted, key=lambda span: span.at):
            running[span.event_id] += 1 if span.what == "start" else -1
            if running[span.event_id] > 1:
                found.add(span.event_id)
        return found

    def release(self) -> None:
        """Let held handlers continue."""
        (self.folder / "released").touch()

    def hold_again(self) -> None:
        """Hold events with `hold` again."""
        (self.folder / "released").unlink(missing_ok=True)

    def _read(self, name: str) -> list[str]:
        file = self.folder / name
        text = file.read_text() if file.exists() else ""
        return text[: text.rfind("\n") + 1].splitlines()
