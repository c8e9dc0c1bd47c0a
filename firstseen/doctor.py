"""`doctor`: is everything there that this deployment needs? Each check ends in time, whatever is frozen."""

import threading
from collections.abc import Iterator
from dataclasses import asdict

import click

from config.toml import ConfigError
from firstseen.checks import CHECKS, Check, Finding, Level
from firstseen.context import Context
from firstseen.options import json_option
from firstseen.output import print_json, tinted, visible
from receiver.ledger import LedgerError, LedgerUnavailable
from worker.registry import HandlerError

DEADLINE = 10.0
"""Seconds for one check: a frozen database or broker does not answer at all."""

WITHOUT_SETTINGS = "Not looked at, because the configuration cannot be read."


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
        except Exception as error:  # noqa: BLE001 - a check that breaks has found something
            found.append(Finding(name, Level.FAIL, _told(error)))
        ended.set()

    # A thread of its own, left behind at the deadline: a frozen server may hold it for ever.
    threading.Thread(target=work, daemon=True, name=f"doctor-{name}").start()
    if not ended.wait(DEADLINE):
        return [Finding(name, Level.FAIL, f"No answer within {DEADLINE:.0f} s.")]
    return found


def _told(error: Exception) -> str:
    if isinstance(error, LedgerUnavailable) and error.__cause__:
        cause = getattr(error.__cause__, "orig", None) or error.__cause__
        return f"The database does not answer: {_line(cause)}"
    sentence = isinstance(error, (ConfigError, LedgerError, HandlerError))
    return _line(error) if sentence else f"{type(error).__name__}: {_line(error)}".rstrip(": ")


def _line(error: object) -> str:
    return " ".join(str(error).split())
