"""All commands under one name; every error that is foreseen ends in one sentence."""

import logging
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from config.toml import ConfigError
from firstseen.acting import discard, rerun, retry
from firstseen.calling import call, calls
from firstseen.context import Context, No
from firstseen.doctor import doctor
from firstseen.passwords import hash_password
from firstseen.providers import providers
from firstseen.reading import events, sources, stats
from firstseen.sandbox import sandbox
from firstseen.sending import send
from firstseen.showing import show
from firstseen.upkeep import migrate, prune, release, version
from firstseen.verifying import verify
from receiver.ledger import LedgerError
from worker.registry import HandlerError


class Misconfigured(click.ClickException):
    """The configuration is wrong: exit 2."""

    exit_code = 2


class Commands(click.Group):
    """A group of commands that speaks sentences: no foreseen error shows a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what it raises becomes an exit code and a sentence on stderr."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise Misconfigured(str(error)) from error
        except (LedgerError, HandlerError) as error:
            raise No(str(error)) from error
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise No(f"The database refuses: {' '.join(str(cause).split())}") from error


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
