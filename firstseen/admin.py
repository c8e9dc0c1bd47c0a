"""Commands that keep a deployment in order: `migrate`, `prune`, `version`, `hash-password`, `sandbox`."""

import logging
import sys
import tomllib
from contextlib import ExitStack, closing
from importlib import metadata
from pathlib import Path

import click
from sqlalchemy import URL
from werkzeug.security import generate_password_hash

from config.credentials import check_user_name
from firstseen.console import Context, json_option, pass_context, print_json
from receiver.ledger import queue, schema
from receiver.ledger.errors import LedgerError
from receiver.ledger.idempotency_keys import prune_keys
from receiver.ledger.store import Store
from receiver.sandbox.factory import create_sandbox
from receiver.sandbox.server import is_loopback, listen, serve

PROJECT = Path(__file__).parents[1] / "pyproject.toml"

# Characters: guesses are throttled, but a hash may leak.
PASSWORD_MIN = 10

SANDBOX_PORT = 8001
SANDBOX_DATABASE = Path("var") / "sandbox.db"

# Plain text and not JSON: its lines are for the person at this terminal, and none of its data is real.
SANDBOX_LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

# Database connections: each request has a thread of its own, and each writes to the journal.
SANDBOX_POOL = 32


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Print the version."""
    if as_json:
        print_json({"version": release()})
    else:
        click.echo(release())


def release() -> str:
    """Return this release's version; from a checkout, where nothing is installed, as the project says."""
    try:
        return metadata.version("firstseen")
    except metadata.PackageNotFoundError:
        return str(tomllib.loads(PROJECT.read_text())["project"]["version"])


@click.command()
@json_option
@pass_context
def migrate(context: Context, *, as_json: bool) -> None:
    """Bring the database to this release's schema; safe to run again and beside a running release."""
    before = schema.found(context.database)
    after = schema.migrate(context.database)
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
        name: queue.Retention(source.retention, source.payload_retention)
        for name, source in context.sources.items()
    }
    # In portions, each a short transaction, until one finds nothing.
    result = counts = queue.prune(context.ledger, windows)
    while any(number > 0 for number in counts.values()):
        counts = queue.prune(context.ledger, windows)
        result = {kind: result[kind] + number for kind, number in counts.items()}
    result["keys"] = prune_keys(context.ledger)
    if as_json:
        print_json(result)
    else:
        click.echo(", ".join(f"{number} {kind}" for kind, number in result.items()) + " pruned.")


@click.command("hash-password")
@click.argument("name")
def hash_password(name: str) -> None:
    """Print an entry of FIRSTSEEN_USERS for NAME; the password is asked for, or read from standard input."""
    try:
        check_user_name(name)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="NAME") from None
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if len(password) < PASSWORD_MIN:
        raise click.UsageError(f"The password is shorter than {PASSWORD_MIN} characters.")
    click.echo(user_entry(name, password))
    click.echo("Put it into FIRSTSEEN_USERS, in single quotes: its $ mean something to shells.", err=True)


def user_entry(name: str, password: str) -> str:
    """Return what FIRSTSEEN_USERS has for this person."""
    return f"{name}={generate_password_hash(password, 'scrypt')}"


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=SANDBOX_PORT, show_default=True, help="0: a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--allow-remote", is_flag=True, help="Let other machines in: it takes any credential.")
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    default=SANDBOX_DATABASE,
    show_default=True,
    help="A SQLite file of its own.",
)
def sandbox(port: int, host: str, *, allow_remote: bool, database: Path) -> None:
    """Serve Celper, ChronaPilot, Salesly, Stannp and Telness on this machine, with faults on demand."""
    if not allow_remote and not is_loopback(host):
        raise click.UsageError(
            f"The sandbox takes any credential, and {host} may be reached from other machines:"
            " use 127.0.0.1, or add --allow-remote."
        )
    logging.basicConfig(level="INFO", format=SANDBOX_LINE, force=True)
    url = URL.create("sqlite", database=str(database)).render_as_string()

    def greet(address: str) -> None:
        click.echo(f"The sandbox is at {address}; {address}/_effects says what happened. Ctrl-C stops it.")

    with ExitStack() as opened:
        try:
            store = opened.enter_context(closing(Store(url, pool=SANDBOX_POOL)))
            app = create_sandbox(store)
            listener = opened.enter_context(listen(host, port))
        except LedgerError as error:
            raise click.ClickException(f"{database} cannot be used: {error}") from error
        except OSError as error:
            raise click.ClickException(f"The sandbox cannot start: {error.strerror or error}.") from error
        serve(app, listener, greet)
