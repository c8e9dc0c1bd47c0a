"""One endpoint of `/v1`: a single `Operation` serves it, checks its arguments, and documents it.

`read` returns the arguments of a request, or raises a Problem that says what is wrong and what is allowed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from uuid import UUID

from flask import Request
from pydantic import BaseModel, ValidationError

from receiver.ledger.errors import LedgerError, UnknownCall, UnknownEvent, UnknownReplay
from receiver.payload import UnreadablePayloadError, parse_json
from receiver.problems import Problem
from receiver.requests import UUID_FORM, NoQuery

View = Callable[..., Any]

Answers = Mapping[int, type[BaseModel]]

PREFIX = "/v1"

JSON = "application/json"

# Characters of a member's name in an error.
NAME_SHOWN = 64

# Statuses of problems that every operation can answer; below, those of every POST and of paths with ids.
OF_ALL = frozenset({401, 422, 503})

OF_POST = frozenset({400, 403, 409, 413, 415})

OF_PATH = frozenset({404})


@dataclass(frozen=True)
class Operation:
    """One method of one path below `/v1`.

    `path` has its parameters in braces. `takes` is the query of a GET and the body of a POST; the view gets
    it as `given`, and the path's parameters under their names. `answers` are the shapes of success by status.
    The view's docstring is its documentation.
    """

    method: Literal["GET", "POST"]
    path: str
    view: View
    answers: Answers
    takes: type[BaseModel] | None = None
    example: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """Return the operation's id."""
        return self.view.__name__

    @property
    def acts(self) -> bool:
        """Whether it changes anything: then a read-only key is refused, and an idempotency key counts."""
        return self.method == "POST"

    @property
    def parameters(self) -> list[str]:
        """Return the names in the path."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def rule(self) -> str:
        """Return the path as Flask writes it."""
        return self.path.replace("{", "<").replace("}", ">")

    @property
    def refusals(self) -> list[int]:
        """Return the statuses of its problem documents."""
        chosen = OF_ALL | (OF_POST if self.acts else set()) | (OF_PATH if self.parameters else set())
        return sorted(chosen)


def read(operation: Operation, path: Mapping[str, str], request: Request) -> dict[str, Any]:
    """Return the view's arguments. Raises Problem, UnknownEvent, UnknownReplay or UnknownCall."""
    arguments: dict[str, Any] = {name: _READ_PATH[name](text) for name, text in path.items()}
    for name, given in request.args.lists():
        if len(given) > 1:
            raise _invalid(f"the query has {name[:NAME_SHOWN]} {len(given)} times; give it once")
    model = NoQuery if operation.acts else operation.takes or NoQuery
    query = _checked(model, request.args.to_dict(), "the query's ")
    if operation.takes:
        arguments["given"] = _read_body(operation.takes, request) if operation.acts else query
    return arguments


def _read_body(model: type[BaseModel], request: Request) -> BaseModel:
    body = request.get_data()
    if not body:
        return _checked(model, {}, "the body's ")
    if request.mimetype != JSON:
        raise Problem(415, "unsupported-media-type", f"Only JSON is read here: send Content-Type: {JSON}.")
    try:
        parsed = parse_json(body)
    except UnreadablePayloadError as error:
        raise Problem(400, "malformed-body", f"This cannot be read: {error}. Send a JSON object.") from None
    if not isinstance(parsed, dict):
        raise _invalid("the body is no JSON object; send one")
    return _checked(model, parsed, "the body's ")


def _checked(model: type[BaseModel], values: Mapping[str, Any], where: str) -> BaseModel:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = ".".join(map(str, first["loc"]))[:NAME_SHOWN]
    match first["type"]:
        case "extra_forbidden":
            problem = f"is unknown; known are {', '.join(model.model_fields) or 'none'}"
        case "missing":
            problem = "is missing; give it"
        case _:
            message = first["msg"].removeprefix("Value error, ")
            problem = f"is wrong: {message[0].lower()}{message[1:]}"
    raise _invalid(f"{where}{name} {problem}")


def _invalid(what: str) -> Problem:
    return Problem(422, "invalid-request", f"{what[0].upper()}{what[1:]}.")


def _read_id(unknown: type[LedgerError], detail: str, text: str) -> UUID:
    if not UUID_FORM.fullmatch(text):
        raise unknown(detail)
    return UUID(text)


def _read_hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise Problem(404, "unknown-body", "No body has such a hash; the event's conflicts list theirs.")
    return text


_READ_PATH: Mapping[str, Callable[[str], Any]] = {
    "event": partial(_read_id, UnknownEvent, "No event has such an id."),
    "replay": partial(_read_id, UnknownReplay, "No bulk run has such an id."),
    "call": partial(_read_id, UnknownCall, "No call has such an id."),
    "body_hash": _read_hash,
}
