"""Errors as RFC 9457 problem documents: a stable type, one sentence, no secrets, no bodies."""

import json
from http import HTTPStatus

from flask import Flask, Response
from werkzeug.exceptions import HTTPException

DETAILS = {
    404: "Nothing is at this path; deliveries go to /webhooks/<source>, and /v1/docs tells of the API.",
    405: "This path does not take this method; the header Allow lists those that it takes.",
    500: "Something broke here, and the log says what. Send it again; if this stays, tell whoever runs it.",
}
"""The sentence for an HTTP error that no view raised itself."""

RETRY_AFTER = 5
"""Seconds a provider is asked to wait while the ledger does not answer."""


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


def unavailable(detail: str) -> Problem:
    """Return a 503 that asks for another try."""
    return Problem(503, "unavailable", detail, {"Retry-After": str(RETRY_AFTER)})


def answer_problems(app: Flask) -> None:
    """Answer every Problem, and every HTTP error of Flask's own, as a problem document."""
    app.register_error_handler(Problem, answer_problem)
    app.register_error_handler(HTTPException, _answer_http)


def answer_problem(problem: Problem) -> Response:
    """Return a Problem as its document."""
    if problem.bare:
        return Response(b"", problem.status, problem.headers, content_type="text/plain; charset=utf-8")
    body = {
        "type": f"urn:firstseen:problem:{problem.kind}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    text = json.dumps(body)
    return Response(text, problem.status, problem.headers, content_type="application/problem+json")


def _answer_http(error: HTTPException) -> Response:
    status = HTTPStatus(error.code or 500)
    # No other header of werkzeug's page fits a problem document.
    allowed = {name: value for name, value in error.get_headers() if name == "Allow"}
    kind = status.phrase.lower().replace(" ", "-")
    return answer_problem(Problem(status, kind, DETAILS.get(status, f"{status.phrase}."), allowed))
