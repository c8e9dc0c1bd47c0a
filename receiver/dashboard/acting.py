"""What a person does to one event or call: a form's POST, back to where it stood."""

from collections.abc import Callable
from functools import partial
from uuid import UUID

from flask import flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from receiver.dashboard.gate import local, who
from receiver.dashboard.parts import DashboardParts
from receiver.ledger.control import Acted, Resolution, Response, discard, promote, rerun, resolve, retry
from receiver.ledger.errors import NotAllowed
from receiver.ledger.payload import UnreadablePayloadError, parse_json
from receiver.management.given import GivenResponse
from receiver.problems import Problem

DONE = {
    "retry": "Retried: it runs as soon as a worker is free.",
    "rerun": "A new generation runs as soon as a worker is free.",
    "discard": "Discarded.",
    Resolution.HAPPENED: "Noted that it happened; the event goes on.",
    Resolution.RESEND_AS_NEW: "It goes out under a new key as soon as a worker is free.",
    Resolution.USE_STORED: "The stored bytes go out as soon as a worker is free.",
    Resolution.GIVE_UP: "Given up; the event has ended.",
}
MOVES: dict[str, Callable[..., Acted]] = {"retry": retry, "rerun": rerun, "discard": discard}


class Acting:
    """The views that change something. The ledger guards each step; a refusal is shown, and nothing done."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store, self._nudge = parts.store, parts.nudge

    def act(self, event: UUID, what: str) -> AnyResponse | str:
        """Retry, rerun or discard an event that is still in the generation that was seen."""
        move = MOVES.get(what)
        if move is None:
            raise Problem(404, "unknown-action", "There is no such action.")
        return self._answer(what, partial(move, self._store, event, who(), generation=_generation()))

    def resolve_call(self, call: UUID) -> AnyResponse | str:
        """Say what became of a call, or shall."""
        how = request.form.get("how", "")
        if how not in list(Resolution):
            raise Problem(422, "invalid-request", f"Say one of {', '.join(Resolution)}.")
        given = _given_answer() if how == Resolution.HAPPENED else None
        return self._answer(how, partial(resolve, self._store, call, Resolution(how), who(), response=given))

    def promote_body(self, event: UUID, body_hash: str) -> AnyResponse:
        """Make a conflicting body an event of its own, and go there."""
        made = promote(self._store, event, body_hash, who())
        self._nudge([made.event])
        flash("It is an event of its own now." if made.created else "It had become this event before.")
        return redirect(url_for("dashboard.show_event", event=made.event))

    def _answer(self, what: str, do: Callable[[], Acted]) -> AnyResponse | str:
        try:
            acted = do()
        except NotAllowed as error:
            return _back(str(error), right=False)
        if acted.nudge:
            self._nudge([acted.event])
        return _back(DONE[what], right=True)


def _back(said: str, *, right: bool) -> AnyResponse | str:
    if request.headers.get("HX-Request"):
        return render_template("_settled.html", said=said, right=right)
    flash(said, "message" if right else "problem")
    return redirect(local(request.form.get("back")))


def _generation() -> int:
    text = request.form.get("generation", "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:  # noqa: PLR2004 - below 2**31
        raise Problem(422, "invalid-request", "The form does not say which generation was seen.")
    return int(text)


def _given_answer() -> Response:
    body = request.form.get("body", "").strip()
    try:
        if body:
            parse_json(body.encode())
    except UnreadablePayloadError as error:
        # The handler would get it for good, and fail on it at every attempt.
        raise Problem(422, "invalid-request", f"Nothing was done: of the answer, {error}.") from None
    try:
        status = int(request.form.get("status") or "200")
        kind = "application/json" if body else None
        return GivenResponse(status=status, content_type=kind, body=body).as_response()
    except ValueError:
        raise Problem(422, "invalid-request", "The answer's status must be a success, 200 to 299.") from None
