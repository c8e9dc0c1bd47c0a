"""The load: files of signed deliveries, and wrk to send them over loopback."""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.services.signing import stripe_event, stripe_headers

SCRIPT = Path(__file__).with_name("deliver.lua")
FILLER = "A line of an invoice, so that a body has the usual kilobyte. " * 12
CREATED = 1_780_000_000
"""`created` of every event: with another body, duplicates of an id would be conflicts."""

MISSING = "wrk is not installed: `apt-get install wrk`, and run `make bench` again."


@dataclass(frozen=True)
class Result:
    """The measurements of one run; latencies are in milliseconds."""

    requests: int
    seconds: float
    refused: int
    errors: int
    p50: float
    p99: float
    max: float

    @property
    def rate(self) -> float:
        """Answers with 200, a second."""
        return (self.requests - self.refused) / self.seconds


def has_wrk() -> bool:
    """Return whether the load generator is installed."""
    return shutil.which("wrk") is not None


def write_deliveries(file: Path, ids: list[str]) -> Path:
    """Write one signed delivery per line, in the order of the ids."""
    event = stripe_event("evt_placeholder", note=FILLER) | {"created": CREATED}
    template = json.dumps(event, separators=(",", ":"))
    at = time.time()
    with file.open("w") as lines:
        for event_id in ids:
            body = template.replace("evt_placeholder", event_id)
            lines.write(f"{stripe_headers(body.encode(), at=at)['Stripe-Signature']} {body}\n")
    return file


def read_deliveries(file: Path) -> list[tuple[bytes, dict[str, str]]]:
    """Return body and headers of each line, for a client other than wrk."""
    found = []
    for line in file.read_text().splitlines():
        signature, _, body = line.partition(" ")
        headers = {"Stripe-Signature": signature, "Content-Type": "application/json; charset=utf-8"}
        found.append((body.encode(), headers))
    return found


def run_wrk(
    url: str, deliveries: Path, *, connections: int, seconds: float, once: bool = False, pause: float = 0
) -> Result:
    """Send the deliveries for this many seconds, or all of them `once`, and return the measurements.

    `pause` is the mean of milliseconds for which each connection rests between two deliveries.
    """
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "30s", "-s", str(SCRIPT), url]
    argv += ["--", str(deliveries), *(["once"] if once else []), *([str(pause)] if pause else [])]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return Result(**json.loads(done.stdout.strip().splitlines()[-1]))
