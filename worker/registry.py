"""Which handler runs for which event: exactly one, the most specific.

`handles` registers a function, `load_handlers` imports the handlers' modules and returns the `Registry` that
finds the handler of an event.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from config.toml import parse_duration
from worker import handlers

Function = Callable[[Any, Any], object]


class HandlerError(Exception):
    """The handlers cannot be used; the message says which and why."""


@dataclass(frozen=True)
class Handler:
    """A function with the events it takes; a pattern may end in `*`, which matches any rest."""

    source: str
    type: str
    run: Function
    attempts: int | None = None
    backoff: timedelta | None = None

    @property
    def name(self) -> str:
        """Return `module.function`, for messages."""
        return f"{self.run.__module__}.{getattr(self.run, '__qualname__', self.run)}"

    def matches(self, source: str, event_type: str) -> bool:
        """Whether both patterns match."""
        return _matches(self.source, source) and _matches(self.type, event_type)

    @property
    def specificity(self) -> tuple[bool, int, bool, int]:
        """Return what orders matching handlers: exact before prefix, longer before shorter, source first."""
        source, event_type = self.source, self.type
        return (not source.endswith("*"), len(source), not event_type.endswith("*"), len(event_type))


def _matches(pattern: str, text: str) -> bool:
    return text.startswith(pattern[:-1]) if pattern.endswith("*") else text == pattern


# What modules have registered so far: an import is the only way to find a handler.
_declared: list[Handler] = []


def handles(
    source: str, event_type: str, *, attempts: int | None = None, backoff: str | None = None
) -> Callable[[Function], Function]:
    """Register the decorated `function(event, calls)` for events of a source and type.

    `*` at the end of either matches any rest. `attempts` is the most runs of one event and `backoff` the
    first wait between them (`"5s"`); both default to the deployment's settings.
    """
    decorator = f"@handles({source!r}, {event_type!r})"
    if "*" in source[:-1] or "*" in event_type[:-1] or not source or not event_type:
        raise HandlerError(f"{decorator}: `*` may only stand at the end of a pattern")
    if attempts is not None and attempts < 1:
        raise HandlerError(f"{decorator}: attempts is {attempts}, and must be 1 or more")
    try:
        wait = None if backoff is None else parse_duration(backoff)
    except ValueError as error:
        raise HandlerError(f"{decorator}: backoff {error}") from None

    def register(function: Function) -> Function:
        _declared.append(Handler(source, event_type, function, attempts, wait))
        return function

    return register


class Registry:
    """The handlers of one deployment."""

    def __init__(self, found: Iterable[Handler]) -> None:
        self.handlers = tuple(sorted(found, key=lambda handler: handler.specificity, reverse=True))
        taken: dict[tuple[str, str], Handler] = {}
        for handler in self.handlers:
            other = taken.setdefault((handler.source, handler.type), handler)
            if other.run is not handler.run:
                raise HandlerError(
                    f"{other.name} and {handler.name} both handle ({handler.source!r}, {handler.type!r}):"
                    " exactly one may; remove one or make it more specific"
                )

    def find(self, source: str, event_type: str) -> Handler | None:
        """Return the most specific handler for an event, or None."""
        return next((handler for handler in self.handlers if handler.matches(source, event_type)), None)


def load_handlers(modules: Sequence[str] = ()) -> Registry:
    """Import the named modules (by default all in `worker/handlers/`) and return what they registered.

    Raises HandlerError when one fails to import or two claim the same events: better no worker than one
    that silently ignores what it should handle.
    """
    for name in modules or [
        found.name for found in pkgutil.iter_modules(handlers.__path__, f"{handlers.__name__}.")
    ]:
        try:
            importlib.import_module(name)
        except HandlerError:
            raise
        # A script without a guard for `__main__` exits when it is imported.
        except (Exception, SystemExit) as error:
            raise HandlerError(
                f"Handlers: {name} fails to import: {type(error).__name__}: {error}"
            ) from error
    return Registry(_declared)
