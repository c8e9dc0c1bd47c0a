"""`/replays`: many events at once: counted first, then done by the workers, with progress."""

from uuid import UUID

from flask import Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as AnyResponse

from receiver.dashboard.events import FIELDS, read_filter
from receiver.dashboard.gate import who
from receiver.dashboard.parts import DashboardParts
from receiver.dashboard.words import CHOICES
from receiver.ledger.control import candidates, plan, progress
from receiver.ledger.states import Move
from receiver.problems import Problem


class Bulk:
    """The views of bulk runs."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store = parts.store

    def count(self) -> str:
        """Say how many events it would be, and ask."""
        what, which = _what(request.args.get("what")), read_filter(request.args)
        given = {name: request.args[name] for name in FIELDS if request.args.get(name)}
        total = candidates(self._store, what, which)
        return render_template("bulk.html", what=what, given=given, total=total, effect=CHOICES[what])

    def start(self) -> AnyResponse:
        """Write the bulk run down, and go to its progress."""
        replay = plan(self._store, _what(request.form.get("what")), read_filter(request.form), who())
        return redirect(url_for("dashboard.show_replay", replay=replay.id))

    def show_replay(self, replay: UUID) -> Response:
        """Show how far a bulk run is."""
        told = progress(self._store, replay)
        page = "_progress.html" if request.headers.get("HX-Request") else "replay.html"
        return make_response(render_template(page, run=told))


def _what(text: str | None) -> Move:
    if text not in list(CHOICES):
        raise Problem(422, "invalid-request", f"Say one of {', '.join(CHOICES)}.")
    return Move(str(text))
