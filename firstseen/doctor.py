"""`doctor`: is everything there that this deployment needs? Each check ends in time, whatever is frozen.

A check is a generator of findings, one sentence each; `CHECKS` lists them in the order in which they run.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final
from uuid import uuid4

import click
from kombu import Connection
from sqlalchemy import select
from sqlalchemy.engine import make_url

from config.broker import publisher_options
from config.toml import ConfigError, in_words
from firstseen.console import Context, json_option, print_json, tinted, visible
from receiver.endpoints import build_endpoints
from receiver.ledger.errors import LedgerError, LedgerUnavailable
from receiver.ledger.schema import check_schema, head
from receiver.ledger.store import DURABLE
from worker.registry import HandlerError, load_handlers

# Seconds for one check: a frozen database or broker does not answer at all.
DEADLINE = 10.0

# Seconds until a message must have come back.
BROKER_WAIT = 3.0

# Seconds between the host's clock and the database's. Lists by time allow for an hour of it.
SKEW_WARN, SKEW_FAIL = 2.0, 3600.0

SYNCHRONOUS = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}

WITHOUT_SETTINGS = "Not looked at, because the configuration cannot be read."


class Level(StrEnum):
    """How bad it is; a failure makes `doctor` exit 1."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`."""

    check: str
    level: Level
    text: str


Sentences = Iterator[tuple[Level, str]]
Check = Callable[[Context], Sentences]


@click.command()
@json_option
@click.pass_context
def doctor(click_context: click.Context, *, as_json: bool) -> None:
    """Check configuration, sources, APIs, database, schema, clock, broker, handlers; exit 1 on a failure."""
    context = click_context.ensure_object(Context)
    findings = []
    for finding in examine(context):
        findings.append(finding)
        if not as_json:
            click.echo(
                f"{tinted(finding.level.ljust(4))}  {finding.check.ljust(13)}  {visible(finding.text)}"
            )
    if as_json:
        print_json({"data": [asdict(finding) for finding in findings], "next": None})
    if any(finding.level == Level.FAIL for finding in findings):
        click_context.exit(1)


def examine(context: Context) -> Iterator[Finding]:
    """Run every check; those that need the configuration fail with it."""
    readable = True
    for name, check in CHECKS.items():
        found = _run(name, check, context) if readable else [Finding(name, Level.WARN, WITHOUT_SETTINGS)]
        yield from found
        if name == "configuration" and any(finding.level == Level.FAIL for finding in found):
            readable = False


def _run(name: str, check: Check, context: Context) -> list[Finding]:
    found: list[Finding] = []
    ended = threading.Event()

    def work() -> None:
        try:
            found.extend(Finding(name, level, text) for level, text in check(context))
        except Exception as error:  # noqa: BLE001 - a check that fails is a finding
            found.append(Finding(name, Level.FAIL, _sentence(error)))
        ended.set()

    # A thread of its own, left behind at the deadline: a frozen server may hold it for ever.
    threading.Thread(target=work, daemon=True, name=f"doctor-{name}").start()
    if not ended.wait(DEADLINE):
        return [Finding(name, Level.FAIL, f"No answer within {DEADLINE:.0f} s.")]
    return found


def _sentence(error: Exception) -> str:
    """Return an error as one line; errors of ours are sentences, those of others need their type."""
    if isinstance(error, LedgerUnavailable) and error.__cause__:
        cause = getattr(error.__cause__, "orig", None) or error.__cause__
        return f"The database does not answer: {' '.join(str(cause).split())}"
    line = " ".join(str(error).split())
    ours = isinstance(error, (ConfigError, LedgerError, HandlerError))
    return line if ours else f"{type(error).__name__}: {line}".rstrip(": ")


def configuration(context: Context) -> Sentences:
    """Read the environment."""
    settings = context.settings
    database = make_url(settings.database).render_as_string(hide_password=True)
    yield Level.OK, f"The environment is complete; the database is {database}."
    if settings.dev:
        yield Level.WARN, "FIRSTSEEN_DEV is set: this is for make run and tests, not for deployments."


def sources(context: Context) -> Sentences:
    """Read and compile the sources."""
    settings = context.settings
    build_endpoints(context.sources)
    if not context.sources:
        yield Level.WARN, f"{settings.sources_path} names no source, so every delivery gets a 404."
    for source in context.sources.values():
        name, provider = source.name, source.provider
        if source.problem:
            yield Level.FAIL, f"{source.problem}; its deliveries get a 503."
            continue
        if provider.verification is not None:
            yield Level.WARN, f"{name}: {provider.name}, unverified: whoever knows the address can post."
        elif provider.keyless:
            yield Level.OK, f"{name}: {provider.name}, which shares no secret."
        else:
            yield Level.OK, f"{name}: {provider.name}, {len(source.secrets)} secret(s) in use."
        if provider.signs_url and not (settings.public_url or settings.proxy_hops or settings.dev):
            advice = "set FIRSTSEEN_PUBLIC_URL to what it calls if a proxy is in front"
            yield Level.WARN, f"{name}: {provider.name} signs the URL; {advice}."
        for warning in source.warnings:
            yield Level.WARN, f"{name}: {warning}."


def apis(context: Context) -> Sentences:
    """Read the APIs, and say for each how long its keys are trusted."""
    if not context.apis:
        yield Level.OK, f"{context.settings.apis_path} names no API, so handlers call nothing through calls."
    for api in context.apis.values():
        if api.problem:
            yield Level.FAIL, f"{api.problem}; calls.{api.name} sends nothing."
            continue
        life, margin = in_words(api.key_life), in_words(api.key_margin)
        keys = "it knows no keys, so only unprotected calls are sent"
        if api.dialect.carries_keys:
            keys = f"a key lives {life} and is not used in its last {margin}"
        yield Level.OK, f"{api.name}: {api.dialect.title} at {api.base_url}; {keys}."


def database(context: Context) -> Sentences:
    """Reach the database and read its durability settings back, from inside a writing transaction."""
    store = context.database
    with store.write() as connection:
        names = ("journal_mode", "synchronous") if store.sqlite else ("synchronous_commit", "fsync")
        ask = "PRAGMA" if store.sqlite else "SHOW"
        found = {name: connection.exec_driver_sql(f"{ask} {name}").scalar_one() for name in names}
    if store.sqlite:
        found["synchronous"] = SYNCHRONOUS.get(int(found["synchronous"]), "?")
        durable = found["journal_mode"] == "wal" and found["synchronous"] in ("FULL", "EXTRA")
    else:
        durable = found["synchronous_commit"] in DURABLE and found["fsync"] == "on"
    settings = ", ".join(f"{name} = {value}" for name, value in found.items())
    if durable:
        yield Level.OK, f"It answers, and a commit is on disk: {settings}."
    else:
        yield Level.FAIL, f"A crash of the database's machine can lose acknowledged events: {settings}."


def schema(context: Context) -> Sentences:
    """Compare the database's schema with this release's."""
    check_schema(context.database)
    yield Level.OK, f"The schema fits this release ({head()})."


def clock(context: Context) -> Sentences:
    """Compare the host's clock with the database's."""
    with context.database.read() as connection:
        # Connected already, so that only the question lies between the two.
        before = time.time()
        there = connection.execute(select(context.database.now())).scalar_one()
        after = time.time()
    here = datetime.fromtimestamp((before + after) / 2, UTC)
    skew = abs((there - here).total_seconds())
    if skew < SKEW_WARN:
        yield Level.OK, f"Host and database agree to {skew:.3f} s."
        return
    level = Level.WARN if skew < SKEW_FAIL else Level.FAIL
    yield level, f"The host's clock is {skew:.1f} s off the database's: signatures with times may be refused."


def broker(context: Context) -> Sentences:
    """Send the broker a message and get it back."""
    options = publisher_options(context.settings.broker)
    begun = time.monotonic()
    connection = Connection(
        options["broker_url"],
        ssl=options.get("broker_use_ssl", False),
        connect_timeout=options["broker_connection_timeout"],
        transport_options=options["broker_transport_options"],
    )
    with connection, connection.SimpleBuffer(f"firstseen.doctor.{uuid4()}") as mailbox:
        mailbox.put({"ping": 1})
        mailbox.get(timeout=BROKER_WAIT)
        # Cancelled first: RabbitMQ tells a consumer whose queue goes away, as an error.
        mailbox.consumer.cancel()
        mailbox.queue.delete()
    took = 1000 * (time.monotonic() - begun)
    yield Level.OK, f"{connection.as_uri()} took a message and gave it back in {took:.0f} ms."


def handlers(context: Context) -> Sentences:
    """Import the handlers and match them with the sources."""
    registry = load_handlers(context.settings.handlers)
    if not registry.handlers:
        yield Level.WARN, "There is no handler, so every event is ignored: put one into worker/handlers/."
        return
    yield Level.OK, f"{len(registry.handlers)} handler(s) can be imported."
    for handler in registry.handlers:
        if not any(handler.matches(name, handler.type) for name in context.sources):
            yield Level.WARN, f"{handler.name} never runs: no source is called {handler.source!r}."


CHECKS: Final[dict[str, Check]] = {
    "configuration": configuration,
    "sources": sources,
    "apis": apis,
    "database": database,
    "schema": schema,
    "clock": clock,
    "broker": broker,
    "handlers": handlers,
}
