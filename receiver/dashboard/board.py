"""The dashboard, put together: the gate, the pages, the files they need."""

import hashlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from flask import (
    Blueprint,
    Response,
    g,
    get_flashed_messages,
    make_response,
    render_template,
    request,
    send_from_directory,
)
from flask import url_for as place_of

from receiver.dashboard.acting import Acting
from receiver.dashboard.bulk import Bulk
from receiver.dashboard.events import Events
from receiver.dashboard.gate import guard
from receiver.dashboard.one import OneEvent
from receiver.dashboard.overview import Overview
from receiver.dashboard.parts import DashboardParts
from receiver.dashboard.queue import Queue
from receiver.dashboard.reports import Reports
from receiver.dashboard.sessions import token
from receiver.dashboard.signing_in import SigningIn
from receiver.dashboard.throttle import Throttle
from receiver.dashboard.words import FILTERS, STATES
from receiver.ledger.errors import (
    BadCursor,
    LedgerError,
    NotAllowed,
    UnknownCall,
    UnknownEvent,
    UnknownReplay,
)
from receiver.problems import Problem

STATIC = Path(__file__).with_name("static")
View = Callable[..., Any]
FOREVER = 31_536_000
"""Seconds; a file's address changes with its bytes."""

STATUSES: tuple[tuple[type[LedgerError], int], ...] = (
    (UnknownEvent, 404),
    (UnknownCall, 404),
    (UnknownReplay, 404),
    (BadCursor, 422),
    (NotAllowed, 409),
)


def board_views(parts: DashboardParts) -> Blueprint:
    """Return the pages; without a user, one that says that the dashboard is off."""
    views = Blueprint("dashboard", __name__, template_folder="templates")
    if not parts.users:
        views.add_url_rule("/", "off", _off)
        return views
    guard(views, parts.users)
    _add_door(views, parts)
    _add_pages(views, parts)
    _add_actions(views, parts)
    views.register_error_handler(Problem, _answer_problem)
    views.register_error_handler(LedgerError, _answer_ledger_error)
    views.context_processor(_shared)
    for name, written in FILTERS.items():
        views.add_app_template_filter(written, name)
    return views


def _add_door(views: Blueprint, parts: DashboardParts) -> None:
    door = SigningIn(parts.users, Throttle())
    views.add_url_rule("/sign-in", "sign_in", door.sign_in, methods=["GET", "POST"])
    views.add_url_rule("/sign-out", "sign_out", door.sign_out, methods=["POST"])
    views.add_url_rule("/assets/<path:name>", "asset", _asset)


def _add_pages(views: Blueprint, parts: DashboardParts) -> None:
    overview, one, bulk, reports = Overview(parts), OneEvent(parts), Bulk(parts), Reports(parts)
    pages: Mapping[str, View] = {
        "/": overview.overview,
        "/figures": overview.figures,
        "/series": overview.series,
        "/events": Events(parts).list_events,
        "/events/<uuid:event>": one.show_event,
        "/events/<uuid:event>/story": one.show_story,
        "/events/<uuid:event>/raw": one.download,
        "/calls/<uuid:call>": one.show_call,
        "/queue": Queue(parts).queue,
        "/replays/new": bulk.count,
        "/replays/<uuid:replay>": bulk.show_replay,
        "/sources": reports.list_sources,
        "/apis": reports.list_apis,
    }
    for rule, view in pages.items():
        views.add_url_rule(rule, view.__name__, view)


def _add_actions(views: Blueprint, parts: DashboardParts) -> None:
    acting, bulk = Acting(parts), Bulk(parts)
    actions: Mapping[str, View] = {
        "/events/<uuid:event>/conflicts/<body_hash>/promote": acting.promote_body,
        "/events/<uuid:event>/<what>": acting.act,
        "/calls/<uuid:call>/resolve": acting.resolve_call,
        "/replays": bulk.start,
    }
    for rule, view in actions.items():
        views.add_url_rule(rule, view.__name__, view, methods=["POST"])


def _shared() -> dict[str, Any]:
    return {
        "asset": _address,
        "csrf": token,
        "person": g.user.name if g.get("user") else None,
        "said": get_flashed_messages,
        "state_words": STATES,
        "here": request.endpoint,
    }


@cache
def _mark(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def _address(name: str) -> str:
    return place_of("dashboard.asset", name=name, v=_mark(name))


def _asset(name: str) -> Response:
    return send_from_directory(STATIC, name, max_age=FOREVER if "v" in request.args else None)


def _answer_problem(problem: Problem) -> Response:
    fragment = bool(request.headers.get("HX-Request"))
    page = "_settled.html" if fragment else "problem.html"
    told = {"said": problem.detail, "right": False} if fragment else {"problem": problem}
    # A fragment's 4xx is swapped in like any other: board.js lets it.
    return make_response(render_template(page, **told), problem.status, problem.headers)


def _answer_ledger_error(error: LedgerError) -> Response:
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 503)
    return _answer_problem(Problem(status, "ledger", str(error)))


def _off() -> NoReturn:
    raise Problem(
        404,
        "dashboard-off",
        "The dashboard is off: set FIRSTSEEN_USERS; `firstseen hash-password` makes one.",
    )
