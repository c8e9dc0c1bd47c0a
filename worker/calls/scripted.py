"""A wire for tests: it gives the answers that a test wrote down, and notes what would have gone out."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import httpx

from config.apis import Api
from config.dialects import METHODS
from worker.calls.wire import Mark, NoReply, Outgoing, Reply

UNWRITTEN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
"""Failures before the first byte: nothing can have happened. Any other one may have lost an answer."""

OK = 200


class Unscripted(AssertionError):
    """The handler makes a call that the test wrote no answer for."""


@dataclass(frozen=True)
class Scripted:
    """One answer that an API is to give."""

    status: int = OK
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """One request that went out. `path` has neither `base_url` nor query; a GET has no `step`."""

    step: str | None
    api: str
    method: str
    path: str
    url: httpx.URL
    headers: httpx.Headers = field(repr=False)
    content: bytes = field(repr=False)

    @property
    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.content)

    @property
    def form(self) -> dict[str, str]:
        """Return the fields of a body that is a form; of equal ones the last."""
        return dict(parse_qsl(self.content.decode(), keep_blank_values=True))


class Script:
    """The answers of a test, by `"<api> <METHOD> <path>"`, and the requests that got them, in order."""

    def __init__(self, answers: Mapping[str, Any], apis: Mapping[str, Api]) -> None:
        self.made: list[Made] = []
        self.missing: Unscripted | None = None
        """Kept, since a handler may catch it."""
        self._answers = {_checked(name, apis): _in_turn(name, given) for name, given in answers.items()}

    def next(self, api: str, method: str, path: str) -> Scripted | Exception:
        """Return the answer to a request; raise Unscripted where there is none, or none any more."""
        name = f"{api} {method} {path}"
        take = self._answers.get(name)
        found = take() if take else None
        if found is None:
            left = "left " if take else ""
            has = ", ".join(map(repr, self._answers)) or "none at all"
            self.missing = Unscripted(f"The test has no answer {left}for {name!r}; calls(...) has {has}.")
            raise self.missing
        return found


class ScriptedWire:
    """Carries the requests of one API to a script; `step` says which call is under way."""

    def __init__(self, api: Api, script: Script, step: Callable[[], str | None]) -> None:
        self._api, self._script, self._step = api, script, step

    def send(self, request: Outgoing, mark: Mark) -> Reply | NoReply:
        """Give the next answer. A failure of the transport is one here too; any other error is raised."""
        path = request.url.removeprefix(self._api.base_url).partition("?")[0]
        found = self._script.next(self._api.name, request.method, path)
        if isinstance(found, UNWRITTEN):
            return NoReply(f"the connection failed ({type(found).__name__})", written=False)
        if isinstance(found, Exception) and not isinstance(found, httpx.TransportError):
            raise found
        mark()
        place = (self._step(), self._api.name, request.method, path, httpx.URL(request.url))
        self._script.made.append(Made(*place, httpx.Headers(list(request.headers)), request.body))
        if isinstance(found, Scripted):
            return Reply(found.status, tuple(found.headers.items()), found.body)
        return NoReply(f"the answer was lost ({type(found).__name__})", written=True)


def _checked(name: str, apis: Mapping[str, Api]) -> str:
    api, _, rest = name.partition(" ")
    method, _, path = rest.partition(" ")
    if api not in apis or method not in (*METHODS, "GET") or not path.startswith("/") or "?" in path:
        known = ", ".join(sorted(apis))
        raise ValueError(
            f"{name!r} names no call: write an API ({known}), a method and a path without its query,"
            " such as 'salesly POST /contacts'."
        )
    return name


def _in_turn(name: str, given: Any) -> Callable[[], Scripted | Exception | None]:
    """Return what gives the answers: a tuple each of its own in turn, anything else itself every time."""
    if not isinstance(given, tuple):
        only = _answer(name, given)
        return lambda: only
    left = iter([_answer(name, one) for one in given])
    return lambda: next(left, None)


def _answer(name: str, given: Any) -> Scripted | Exception:
    match given:
        case Scripted() | Exception():
            return given
        case bool():
            pass
        case int():
            return Scripted(given)
        case dict() | list():
            return Scripted(OK, json.dumps(given).encode(), {"Content-Type": "application/json"})
    raise ValueError(
        f"The answer to {name!r} is {given!r:.80}: write a status, JSON as a dict or list, answer(...), an"
        " exception, or a tuple of such, one for each time."
    )
