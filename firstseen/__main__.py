"""`python -m firstseen`, and the console script `firstseen`: all commands under one name.

Every error that is foreseen ends in one sentence and an exit code.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from config.toml import ConfigError
from firstseen.admin import hash_password, migrate, prune, release, sandbox, version
from firstseen.calls import call, calls
from firstseen.console import CommandFailed, Context
from firstseen.doctor import doctor
from firstseen.events import discard, events, rerun, retry, show, sources, stats
from firstseen.providers import providers
from firstseen.send import send
from firstseen.verify import verify
from receiver.ledger.errors import LedgerError
from worker.registry import HandlerError


class Misconfigured(click.ClickException):
    """The configuration is wrong: exit 2."""

    exit_code = 2


class Commands(click.Group):
    """A group of commands in which no foreseen error shows a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises becomes an exit code and a sentence on stderr."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise Misconfigured(str(error)) from error
        except (LedgerError, HandlerError) as error:
            raise CommandFailed(str(error)) from error
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise CommandFailed(f"The database refuses: {' '.join(str(cause).split())}") from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(release(), "--version", message="%(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Look into the ledger of received events, and act on it."""
    logging.basicConfig(level=logging.ERROR)
    context.obj = Context()
    context.call_on_close(context.obj.close)


for command in (
    send,
    verify,
    events,
    show,
    retry,
    rerun,
    discard,
    calls,
    call,
    stats,
    sources,
    providers,
    sandbox,
    doctor,
    hash_password,
    prune,
    migrate,
    version,
):
    cli.add_command(command)


def main() -> int:
    """Run one command and exit: 0 for done, 1 for no, 2 for misuse or a wrong configuration."""
    # As `python -m` does and a console script does not: verifiers and handlers of the user may stand here.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    cli.main(prog_name="firstseen")
    return 0


if __name__ == "__main__":
    sys.exit(main())
