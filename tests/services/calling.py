"""A handler that makes the calls its event lists, and the apis.toml that points it at sandboxes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.services.handlers import Handlers
from tests.services.sandbox import CELPER, CHRONAPILOT, SALESLY, STANNP, TELNESS, Client

AUTH = {
    CELPER.name: 'type = "header", name = "X-API-Key"',
    CHRONAPILOT.name: 'type = "bearer"',
    SALESLY.name: 'type = "header", name = "X-API-Key"',
    STANNP.name: 'type = "basic"',
    TELNESS.name: 'type = "header", name = "X-API-Key"',
}
"""The `auth` of each API of the sandbox."""

SOURCE = '''"""Make the calls that the event lists, one after the other, and note what ran."""

import os
import time

from worker import handles

FOLDER = os.environ["TEST_HANDLERS_FOLDER"]


def append(name, *words):
    file = os.open(os.path.join(FOLDER, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (" ".join(map(str, words)) + "\\n").encode())
    finally:
        os.close(file)


def hold():
    while not os.path.exists(os.path.join(FOLDER, "released")):
        time.sleep(0.02)


@handles("stripe", "*")
def call_out(event, calls):
    orders = event.data["data"]["object"]
    append("spans", "start", event.event_id, event.attempt, os.getpid(), time.monotonic())
    if event.attempt >= orders.get("hold_from", 99):
        hold()
    for number, order in enumerate(orders["calls"], 1):
        try:
            answer = getattr(calls, order["api"]).post(order["path"], step=f"call {number}", **order["body"])
        except Exception:
            if not orders.get("swallow"):
                raise
        else:
            append("returned", event.event_id, number, answer.status_code)
        if orders.get("pause_after") == number:
            append("paused", event.event_id)
            hold()
    append("lines", event.event_id)
'''


class CallingHandlers(Handlers):
    """A handler that makes the calls in the event's `calls`: `api`, `path` and `body`, as `order` has them.

    `hold_from` (an attempt) and `pause_after` (a call's number) wait for `release()`; `swallow` (true)
    catches whatever a call raises.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, code=SOURCE)

    def returned(self, event_id: str) -> list[tuple[int, int]]:
        """Return number and status of each call of this event that returned, in order."""
        rows = [line.split() for line in self._read("returned")]
        return [(int(number), int(status)) for event, number, status in rows if event == event_id]

    def paused(self) -> list[str]:
        """Return the events whose handler reached its `pause_after`."""
        return self._read("paused")


@dataclass(frozen=True)
class Target:
    """An entry of apis.toml: one API of a sandbox, with a name and settings of its own."""

    name: str
    client: Client
    url: str
    settings: dict[str, str] = field(default_factory=dict)
    auth: str = ""

    @property
    def variable(self) -> str:
        """The environment variable with its credential."""
        return f"CREDENTIAL_{self.name.upper()}"

    def credential(self, who: str = "one") -> str:
        """Return a customer's credential as the variable holds it; `Client.send` sends the same."""
        return {CELPER.name: f"celp_{who}_secret", STANNP.name: f"{who}:"}.get(self.client.name, who)

    def table(self) -> str:
        """Return the entry's TOML."""
        auth = self.auth or AUTH[self.client.name]
        lines = [
            f"[{self.name}]",
            f'base_url = "{self.url}{self.client.prefix}"',
            f'dialect = "{self.client.name}"',
            f'auth = {{ {auth}, value_env = "{self.variable}" }}',
            *(f'{name} = "{value}"' for name, value in self.settings.items()),
        ]
        return "\n".join(lines) + "\n"

    def order(self, marker: str) -> dict[str, Any]:
        """Return the order for one creation, with `marker` in its body."""
        fields = {**self.client.fields, self.client.changing: marker}
        return {
            "api": self.name,
            "path": self.client.path,
            "body": {"data" if self.client.form else "json": fields},
        }


def configure(folder: Path, targets: Iterable[Target], who: str = "one") -> dict[str, str]:
    """Write these targets' apis.toml; return the environment that names it and holds their credentials."""
    listed = list(targets)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "apis.toml").write_text("\n".join(target.table() for target in listed))
    return {"FIRSTSEEN_APIS": str(folder / "apis.toml")} | {
        target.variable: target.credential(who) for target in listed
    }
