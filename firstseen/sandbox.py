"""`firstseen sandbox`: the five APIs of `docs/dialects.md` on this machine."""

import logging
from contextlib import ExitStack, closing
from pathlib import Path

import click
from sqlalchemy import URL

from receiver.ledger import LedgerError, Store
from receiver.sandbox.app import create_sandbox
from receiver.sandbox.server import is_loopback, listen, serve

PORT = 8001
DATABASE = Path("var") / "sandbox.db"
LINE = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
"""Its lines are for the person at this terminal, and everything in it is made up."""
POOL = 32
"""Connections: one thread a request, and each writes down what it does."""


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=PORT, show_default=True, help="0: a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--allow-remote", is_flag=True, help="Let other machines in: it takes any credential.")
@click.option(
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DATABASE,
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
    logging.basicConfig(level="INFO", format=LINE, force=True)
    url = URL.create("sqlite", database=str(database)).render_as_string()
    with ExitStack() as opened:
        try:
            store = opened.enter_context(closing(Store(url, pool=POOL)))
            app = create_sandbox(store)
            listener = opened.enter_context(listen(host, port))
        except LedgerError as error:
            raise click.ClickException(f"{database} cannot be used: {error}") from error
        except OSError as error:
            raise click.ClickException(f"The sandbox cannot start: {error.strerror or error}.") from error
        serve(app, listener, _greet)


def _greet(address: str) -> None:
    click.echo(f"The sandbox is at {address}; {address}/_effects says what happened. Ctrl-C stops it.")
