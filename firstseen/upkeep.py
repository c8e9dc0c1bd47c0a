"""`migrate`, `prune`, `version`: what keeps a deployment in order."""

import tomllib
from importlib import metadata
from pathlib import Path

import click

from firstseen.context import Context, pass_context
from firstseen.options import json_option
from firstseen.output import print_json
from receiver.ledger.idempotency_keys import prune_keys
from receiver.ledger.queue import Retention
from receiver.ledger.queue import prune as prune_once
from receiver.ledger.schema import found
from receiver.ledger.schema import migrate as bring_up

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def release() -> str:
    """Return this release's version; from a checkout, where nothing is installed, as the project says."""
    try:
        return metadata.version("firstseen")
    except metadata.PackageNotFoundError:
        return str(tomllib.loads(PROJECT.read_text())["project"]["version"])


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": release()})
    else:
        click.echo(release())


@click.command()
@json_option
@pass_context
def migrate(context: Context, *, as_json: bool) -> None:
    """Bring the database to this release's schema; safe to run again and beside a running release."""
    before = found(context.database)
    after = bring_up(context.database)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        click.echo(f"The schema is {after} already; nothing to do.")
    else:
        click.echo(f"The schema is {after} now; it was {before or 'empty'}.")


@click.command()
@json_option
@pass_context
def prune(context: Context, *, as_json: bool) -> None:
    """Erase payloads, and forget ids and idempotency keys, that are past their windows."""
    windows = {
        name: Retention(source.retention, source.payload_retention)
        for name, source in context.sources.items()
    }
    result = counts = prune_once(context.ledger, windows)
    while any(number > 0 for number in counts.values()):
        counts = prune_once(context.ledger, windows)
        result = {kind: result[kind] + number for kind, number in counts.items()}
    result["keys"] = prune_keys(context.ledger)
    if as_json:
        print_json(result)
    else:
        click.echo(", ".join(f"{number} {kind}" for kind, number in result.items()) + " pruned.")
