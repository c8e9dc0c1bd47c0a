"""Errors as RFC 9457 problem documents: a stable type, one sentence, no secrets, no bodies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

# The sentence for an HTTP error that no view raised itself.
DETAILS = {
    404: "Nothing is at this path; deliveries go to /webhooks/<source>, and /v1/docs tells of the API.",
    405: "This path does not take this method; the header Allow lists those that it takes.",
    500: "Something broke here, and the log says what. Send it again; if this stays, tell whoever runs it.",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request gets, whichever server took it: a status, headers and a whole body."""

    status: int
    content_type: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    def response(self) -> Response:
        """Return it as Flask's."""
        return Response(self.body, self.status, self.headers, content_type=self.content_type)


# Seconds a provider is asked to wait while the ledger does not answer.
RETRY_AFTER = 5


class Problem(Exception):
    """A request that gets no success; raised anywhere in a view, answered once at the edge.

    `kind` is stable and ends the document's type, `detail` is one sentence. A `bare` one is answered with its
    status and no body: some providers insist.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        headers: dict[str, str] | None = None,
        *,
        bare: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers or {}
        self.bare = bare


def unavailable(detail: str, *, close: bool = False) -> Problem:
    """Return a 503 that asks for another try, with `close` on another connection."""
    headers = {"Retry-After": str(RETRY_AFTER)}
    return Problem(503, "unavailable", detail, headers | ({"Connection": "close"} if close else {}))


def answer_problems(app: Flask) -> None:
    """Answer every Problem, and every HTTP error of Flask's own, as a problem document."""
    app.register_error_handler(Problem, answer_problem)
    app.register_error_handler(HTTPException, _answer_http)


def document(problem: Problem) -> Answer:
    """Return a Problem as its document."""
    if problem.bare:
        return Answer(problem.status, "text/plain; charset=utf-8", b"", problem.headers)
    body = {
        "type": f"urn:firstseen:problem:{problem.kind}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    return Answer(problem.status, "application/problem+json", json.dumps(body).encode(), problem.headers)


def http_problem(status: int, headers: dict[str, str] | None = None) -> Problem:
    """Return the Problem of a bare HTTP error, with the sentence that fits its status."""
    known = HTTPStatus(status)
    kind = known.phrase.lower().replace(" ", "-")
    return Problem(status, kind, DETAILS.get(status, f"{known.phrase}."), headers)


def answer_problem(problem: Problem) -> Response:
    """Return a Problem as Flask's response."""
    return document(problem).response()


def _answer_http(error: HTTPException) -> Response:
    # No other header of werkzeug's page fits a problem document.
    allowed = {name: value for name, value in error.get_headers() if name == "Allow"}
    return answer_problem(http_problem(error.code or 500, allowed))
