"""Waking a worker for what a request made due."""

from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

from flask import after_this_request

Nudge = Callable[[Iterable[UUID]], None]


def nudge_afterwards(nudge: Nudge, event: UUID) -> None:
    """Nudge an event once the request's work is committed."""

    # The view runs inside the transaction; what it registers here runs after the commit.
    @after_this_request
    def send(response: Any) -> Any:
        nudge([event])
        return response
