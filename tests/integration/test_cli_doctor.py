"""`doctor` checks everything that a deployment needs, and names each fault in a sentence."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from firstseen.__main__ import cli
from receiver.ledger.schema import migrate
from receiver.ledger.store import Store
from tests.services.databases import Databases, driver_url
from tests.services.postgres import Postgres
from tests.services.valkey import Valkey
from tests.services.waiting import free_port

SOURCES = '[stripe]\nprovider = "stripe"\nsecrets_env = "STRIPE_WEBHOOK_SECRET"\n'
APIS = """
[shop]
base_url = "https://shop.example/v1"
dialect = "telness"
auth = { type = "bearer", value_env = "SHOP_API_KEY" }
key_life = "12h"

[plain]
base_url = "https://plain.example"
dialect = "none"
auth = { type = "bearer", value_env = "SHOP_API_KEY" }
"""
HANDLER = (
    'from worker import handles\n\n\n@handles("{}", "*")\ndef run(event, calls):\n    """Do nothing."""\n'
)
Findings = dict[str, list[tuple[str, str]]]
Examine = Callable[..., Findings]


@pytest.fixture(scope="module")
def broker() -> Iterator[Valkey]:
    """Run one Valkey for this file; a test that freezes it must thaw it."""
    with Valkey() as server:
        yield server


@pytest.fixture
def environ(databases: Databases, broker: Valkey, tmp_path: Path) -> dict[str, str]:
    """Return the environment of a healthy deployment on SQLite."""
    (tmp_path / "sources.toml").write_text(SOURCES)
    (tmp_path / "apis.toml").write_text(APIS)
    (tmp_path / "well_handlers.py").write_text(HANDLER.format("stripe"))
    return {
        "DATABASE_URL": databases.migrated("sqlite"),
        "BROKER_URL": broker.url,
        "FIRSTSEEN_SECRET_KEY": "k" * 32,
        "FIRSTSEEN_SOURCES": str(tmp_path / "sources.toml"),
        "FIRSTSEEN_APIS": str(tmp_path / "apis.toml"),
        "FIRSTSEEN_HANDLERS": "well_handlers",
        "SHOP_API_KEY": "hunter3",
        "STRIPE_WEBHOOK_SECRET": "whsec_tests",
    }


@pytest.fixture
def examine(environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Examine]:
    """Return a function that runs doctor, checks its exit code, and returns the findings by check."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("worker.registry._declared", [])
    monkeypatch.delitem(sys.modules, "well_handlers", raising=False)

    def run(*, expect: int, **env: str) -> Findings:
        result = CliRunner().invoke(cli, ["doctor", "--json"], env=environ | env)
        assert result.exit_code == expect, result.output
        found: Findings = {}
        for finding in json.loads(result.stdout)["data"]:
            found.setdefault(finding["check"], []).append((finding["level"], finding["text"]))
        return found

    yield run
    # Doctor leaves a check behind at its deadline; its connections must not end within a later test.
    for thread in threading.enumerate():
        if thread.name.startswith("doctor-"):
            thread.join(60)


def faults(found: Findings) -> dict[str, str]:
    """Return the first sentence of each check that is not ok."""
    return {check: text for check, lines in found.items() for level, text in reversed(lines) if level != "ok"}


def test_a_healthy_deployment_has_no_fault(examine: Examine) -> None:
    """All eight checks are ok, and the durability settings are shown as read back."""
    found = examine(expect=0)
    assert faults(found) == {}
    after = ["database", "schema", "clock", "broker", "handlers"]
    assert list(found) == ["configuration", "sources", "apis", *after]
    assert "journal_mode = wal, synchronous = FULL" in found["database"][0][1]
    assert "gave it back" in found["broker"][0][1]


@pytest.mark.usefixtures("examine")
def test_the_lines_are_readable(environ: dict[str, str]) -> None:
    """Without --json each finding is a line: level, check, sentence."""
    lines = CliRunner().invoke(cli, ["doctor"], env=environ).stdout.splitlines()
    assert len(lines) == 9
    assert all(line.split()[0] == "ok" for line in lines), lines


def test_the_brokers_mailbox_is_removed(examine: Examine, broker: Valkey) -> None:
    """Doctor leaves no key in the broker."""
    broker.wipe()
    examine(expect=0)
    with broker.client() as client:
        assert client.keys() == []


def test_a_server_that_does_not_sync_fails(
    examine: Examine, postgres: Postgres, databases: Databases
) -> None:
    """PostgreSQL with fsync off is a fault, and the output has no password."""
    url = databases.migrated("postgres")
    found = examine(expect=1, DATABASE_URL=url)
    assert "fsync = off" in faults(found)["database"]
    assert "synchronous_commit = on" in faults(found)["database"]
    assert postgres.url("x").split(":")[2].split("@")[0] not in json.dumps(found)


def test_a_durable_server_has_no_fault(examine: Examine) -> None:
    """Server-wide synchronous_commit = off is no fault: each commit sets its own."""
    server = Postgres(fsync=True, synchronous_commit="off")
    try:
        url = server.start().create_database()
        store = Store(driver_url(url))
        migrate(store)
        store.close()
        found = examine(expect=0, DATABASE_URL=url)
        assert "synchronous_commit = on, fsync = on" in found["database"][0][1]
    finally:
        server.stop()


def test_a_missing_schema_fails(examine: Examine, databases: Databases) -> None:
    """The fault names the command that creates the schema."""
    found = faults(examine(expect=1, DATABASE_URL=databases.fresh("sqlite")))
    assert list(found) == ["schema"]
    assert "firstseen migrate" in found["schema"]


def test_a_database_that_is_away_fails(examine: Examine) -> None:
    """The checks that need the database fail, and the others still run."""
    found = examine(expect=1, DATABASE_URL=f"postgres://ann:hunter2@127.0.0.1:{free_port()}/x")
    assert set(faults(found)) == {"database", "schema", "clock"}
    assert "refused" in faults(found)["database"], found
    assert "hunter2" not in json.dumps(found)


def test_a_broker_that_is_away_fails(examine: Examine) -> None:
    """A broker that refuses connections is a fault."""
    assert list(faults(examine(expect=1, BROKER_URL=f"redis://127.0.0.1:{free_port()}/0"))) == ["broker"]


def test_a_frozen_broker_fails_in_time(examine: Examine, broker: Valkey) -> None:
    """A broker that accepts connections and answers nothing fails the check within its timeout."""
    broker.freeze()
    begun = time.monotonic()
    try:
        found = faults(examine(expect=1))
    finally:
        broker.thaw()
    assert list(found) == ["broker"]
    assert time.monotonic() - begun < 60


def test_a_source_without_its_secret_fails(examine: Examine) -> None:
    """The fault names the variable, and the status that deliveries get."""
    found = faults(examine(expect=1, STRIPE_WEBHOOK_SECRET=""))["sources"]
    assert "STRIPE_WEBHOOK_SECRET" in found
    assert "503" in found


def test_each_api_says_how_long_its_keys_are_used(examine: Examine) -> None:
    """The finding has address, dialect and key life, and no credential."""
    found = examine(expect=0)
    keyed = "a key lives 12h and is not used in its last 10min"
    plain = "it knows no keys, so only unprotected calls are sent"
    assert found["apis"] == [
        ("ok", f"shop: Telness Connect at https://shop.example/v1; {keyed}."),
        ("ok", f"plain: An API without idempotency keys at https://plain.example; {plain}."),
    ]
    assert "hunter3" not in json.dumps(found)


def test_an_api_without_its_credential_fails(examine: Examine) -> None:
    """The fault names the variable, and says that no call is sent."""
    found = faults(examine(expect=1, SHOP_API_KEY=""))["apis"]
    assert found == (
        "[shop] has no credential: the environment variable SHOP_API_KEY is empty; calls.shop sends nothing."
    )


def test_handlers_that_cannot_be_imported_fail(examine: Examine, tmp_path: Path) -> None:
    """The fault names the module and its error."""
    (tmp_path / "broken_handlers.py").write_text("import no_such_module_of_ours\n")
    found = faults(examine(expect=1, FIRSTSEEN_HANDLERS="broken_handlers"))["handlers"]
    assert "broken_handlers" in found
    assert "no_such_module_of_ours" in found


def test_a_handler_of_no_source_is_a_warning(examine: Examine, tmp_path: Path) -> None:
    """A handler for a misspelt source is a warning."""
    (tmp_path / "misspelt_handlers.py").write_text(HANDLER.format("strip"))
    found = faults(examine(expect=0, FIRSTSEEN_HANDLERS="misspelt_handlers"))["handlers"]
    assert "no source is called 'strip'" in found


def test_without_a_configuration_nothing_else_is_looked_at(examine: Examine) -> None:
    """With a wrong configuration the other checks are skipped with a warning."""
    found = examine(expect=1, FIRSTSEEN_SECRET_KEY="short")
    assert found["configuration"][0][0] == "FAIL"
    assert {lines[0][0] for check, lines in found.items() if check != "configuration"} == {"warn"}


def test_rabbitmq_gives_the_message_back(examine: Examine, rabbit_url: str) -> None:
    """The round trip works over AMQP as well."""
    assert faults(examine(expect=0, BROKER_URL=rabbit_url)) == {}


def test_sources_without_proof_of_the_sender_are_warnings(examine: Examine, tmp_path: Path) -> None:
    """Unverified sources, and signed URLs without a public URL, are warnings."""
    text = (
        '[strava]\nprovider = "strava"\nunverified = true\n[sms]\nprovider = "twilio"\nsecrets_env = "SMS"\n'
    )
    (tmp_path / "sources.toml").write_text(SOURCES + text)
    found = examine(expect=0, SMS="x")["sources"]
    assert [line for level, line in found if level == "warn"] == [
        "strava: strava, unverified: whoever knows the address can post.",
        "sms: twilio signs the URL; set FIRSTSEEN_PUBLIC_URL to what it calls if a proxy is in front.",
    ]
    known = examine(expect=0, SMS="x", FIRSTSEEN_PUBLIC_URL="https://hooks.example.com")["sources"]
    assert len([line for level, line in known if level == "warn"]) == 1
