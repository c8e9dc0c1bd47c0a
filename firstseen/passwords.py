"""`hash-password`: makes an entry of FIRSTSEEN_USERS."""

import sys

import click
from werkzeug.security import generate_password_hash

from config.credentials import check_name

SHORTEST = 10
"""Characters: guesses are throttled, but a hash may leak."""


@click.command("hash-password")
@click.argument("name")
def hash_password(name: str) -> None:
    """Print an entry of FIRSTSEEN_USERS for NAME; the password is asked for, or read from standard input."""
    try:
        check_name(name)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="NAME") from None
    password = _password()
    if len(password) < SHORTEST:
        raise click.UsageError(f"The password is shorter than {SHORTEST} characters.")
    click.echo(entry(name, password))
    click.echo("Put it into FIRSTSEEN_USERS, in single quotes: its $ mean something to shells.", err=True)


def entry(name: str, password: str) -> str:
    """Return what FIRSTSEEN_USERS has for this person."""
    return f"{name}={generate_password_hash(password, 'scrypt')}"


def _password() -> str:
    if sys.stdin.isatty():
        found: str = click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        return found
    return sys.stdin.readline().rstrip("\r\n")
