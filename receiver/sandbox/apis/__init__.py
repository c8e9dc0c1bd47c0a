"""One module for each API: its resources, its words for errors, and where it looks for credentials."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Request
from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal, Scope

# What one API of the sandbox is: data and small views; `guarding.py` puts the engine around them.


View = Callable[..., ResponseReturnValue]
"""Takes a Desk and the path's values; returns what Flask makes an answer of, or raises Refusal."""


@dataclass(frozen=True)
class Route:
    """One operation: its method, its path as Flask writes it, its view."""

    method: str
    path: str
    view: View


@dataclass(frozen=True)
class SandboxApi:
    """One API. `credential` and `owner` are read from a request; '' is no credential."""

    name: str
    credential: Callable[[Request], str]
    wanted: str
    """What a request without credential is told to send."""
    owner: Callable[[Request], str]
    """Whose resources a request sees."""
    word: Callable[[Refusal], dict[str, Any]]
    """The API's own shape of an error, as JSON."""
    routes: tuple[Route, ...]
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    challenge: str | None = None
    """WWW-Authenticate of a 401, where the scheme has one."""

    @property
    def prefix(self) -> str:
        """Return the path that all of the API's own paths stand below."""
        return f"/{self.name}"


def operations(path: str, views: Mapping[str, View]) -> tuple[Route, ...]:
    """Return one route for each method of a path."""
    return tuple(Route(method, path, view) for method, view in views.items())


def header(name: str) -> Callable[[Request], str]:
    """Return a reader of one header, '' where it is missing."""
    return lambda request: request.headers.get(name, "").strip()
