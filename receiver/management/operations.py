"""What an endpoint is: one entry serves it, checks what it is given, and documents it."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

View = Callable[..., Any]
Answers = Mapping[int, type[BaseModel]]
PREFIX = "/v1"
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
