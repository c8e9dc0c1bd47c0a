"""What one API of the sandbox is: data and small views.

Each API has a module of its own beside this one, and stands in the list `APIS` of `receiver.sandbox.factory`.
A view takes a `Desk` and the path's values. `resource_routes` adds to an API's own views those that are the
same everywhere: list, read and delete.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Request
from flask.typing import ResponseReturnValue

from receiver.idempotency import Refusal, Scope
from receiver.sandbox.storage import Desk, Fields

# Takes a Desk and the path's values; returns what Flask makes a response of, or raises Refusal.
View = Callable[..., ResponseReturnValue]

# Changes the resource with this id; returns it as it is now, or raises Refusal.
Change = Callable[[Desk, str], Fields]


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
    """What a request without credential is asked to send."""
    owner: Callable[[Request], str]
    """Whose resources a request sees."""
    error: Callable[[Refusal], dict[str, Any]]
    """The API's own shape of an error, as JSON."""
    routes: tuple[Route, ...]
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    challenge: str | None = None
    """WWW-Authenticate of a 401, where the scheme has one."""

    @property
    def prefix(self) -> str:
        """Return the path that all of the API's own paths stand below."""
        return f"/{self.name}"


def resource_routes(
    path: str,
    plural: str,
    create: Callable[[Desk], Fields],
    changes: Mapping[str, Change],
    *,
    envelope: str | None = None,
) -> tuple[Route, ...]:
    """Return the routes of a collection at `path` and of each resource below it.

    The list is answered as `{plural: [...]}`. One resource stands bare, or in an object under the name
    `envelope`; `changes` has a function for each method that changes one.
    """

    def answer(fields: Fields) -> Fields:
        return {envelope: fields} if envelope else fields

    def changing(change: Change) -> View:
        return lambda desk, identity: answer(change(desk, identity))

    one = f"{path}/<identity>"
    return (
        Route("POST", path, lambda desk: (answer(create(desk)), 201)),
        Route("GET", path, lambda desk: {plural: desk.list()}),
        Route("GET", one, lambda desk, identity: answer(desk.find(identity))),
        *(Route(method, one, changing(change)) for method, change in changes.items()),
        Route("DELETE", one, Desk.remove),
    )


def header(name: str) -> Callable[[Request], str]:
    """Return a reader of one header, '' where it is missing."""
    return lambda request: request.headers.get(name, "").strip()
