"""What commands need, each part made when it is first asked for: `firstseen version` needs none of it."""

import getpass
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from uuid import UUID

import click

from config.apis import Api, load_apis
from config.dialects import load_dialects
from config.providers import load_providers
from config.settings import Settings, environment, load_settings
from config.sources import Source, load_sources
from receiver.ledger import Store, check_schema
from receiver.redaction import redacted


class No(click.ClickException):
    """The answer is no: exit 1. Not found, not allowed, or refused by the other side."""

    exit_code = 1


class Context:
    """One run of the command line."""

    @cached_property
    def settings(self) -> Settings:
        """What the environment says; raises ConfigError."""
        return load_settings()

    @cached_property
    def sources(self) -> Mapping[str, Source]:
        """The configured sources by name; raises ConfigError."""
        return load_sources(self.settings.sources_path, load_providers(), environment())

    @cached_property
    def apis(self) -> Mapping[str, Api]:
        """The configured APIs by name; raises ConfigError."""
        return load_apis(self.settings.apis_path, load_dialects(), environment())

    @cached_property
    def database(self) -> Store:
        """The ledger's database, whatever its schema."""
        return Store(self.settings.database, pool=self.settings.db_pool)

    @cached_property
    def ledger(self) -> Store:
        """The ledger, its schema checked; raises LedgerUnavailable or SchemaBehind."""
        check_schema(self.database)
        return self.database

    def shown(self, event: UUID, told: Any) -> Any:
        """Return what is told of an event without what its source leaves out."""
        return redacted(self.sources, self.ledger, event, told)

    def source(self, name: str) -> Source:
        """Return a configured source or say no."""
        if name not in self.sources:
            raise No(
                f"There is no source {name!r}; configured are {', '.join(sorted(self.sources)) or 'none'}."
            )
        return self.sources[name]

    def close(self) -> None:
        """Close what was opened."""
        if "database" in self.__dict__:
            self.database.close()


pass_context = click.make_pass_decorator(Context)


def system_user() -> str:
    """Return the system's name for who runs this, for the audit, or say no."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise No("The system has no name for this user: say --who, for the audit.") from None
