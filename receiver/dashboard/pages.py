"""The dashboard, put together: the gate, the pages, the files they need."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from flask import (
    Blueprint,
    Response,
    flash,
    g,
    get_flashed_messages,
    make_response,
    redirect,
    render_template,
    request,
    send_from_directory,
    url_for,
)
from flask import url_for as place_of
from werkzeug.wrappers import Response as AnyResponse

from config.apis import Api
from config.nesting import load_json
from config.sources import Source
from receiver.api.requests import GivenResponse, read_time
from receiver.dashboard.auth import SigningIn, Throttle, guard, local, token, who
from receiver.dashboard.overview import Overview
from receiver.dashboard.presentation import FILTERS, timeline, written
from receiver.describe import (
    CHOICES,
    STATES,
    call_choices,
    deciding_call,
    dialect_rules,
    duration,
    event_choices,
    source_rules,
    why,
)
from receiver.ledger.control import (
    ActionResult,
    Resolution,
    StatedResponse,
    bulk_candidates,
    bulk_progress,
    discard,
    plan_bulk,
    promote,
    rerun,
    resolve,
    retry,
)
from receiver.ledger.errors import (
    BadCursor,
    LedgerError,
    NotAllowed,
    UnknownCall,
    UnknownEvent,
    UnknownReplay,
)
from receiver.ledger.filter import EventFilter
from receiver.ledger.reports import call_story, conflicts, list_events, original, pending, rejections, story
from receiver.ledger.states import Move, State
from receiver.payload import UnreadablePayloadError, parse_json, parse_payload
from receiver.problems import Problem
from receiver.redaction import Redactor, redacted, redacted_rows, redactor_of
from receiver.service import DashboardParts

# What a person does to one event or call: a form's POST, back to where it stood.


DONE = {
    "retry": "Retried: it runs as soon as a worker is free.",
    "rerun": "A new generation runs as soon as a worker is free.",
    "discard": "Discarded.",
    Resolution.HAPPENED: "Noted that it happened; the event goes on.",
    Resolution.RESEND_AS_NEW: "It goes out under a new key as soon as a worker is free.",
    Resolution.USE_STORED: "The stored bytes go out as soon as a worker is free.",
    Resolution.GIVE_UP: "Given up; the event has ended.",
}

MOVES: dict[str, Callable[..., ActionResult]] = {"retry": retry, "rerun": rerun, "discard": discard}


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

    def _answer(self, what: str, do: Callable[[], ActionResult]) -> AnyResponse | str:
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


def _given_answer() -> StatedResponse:
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


# `/events`: which there are, found by filter, a page at a time.


PAGE = 50

FIELDS = ("source", "state", "type", "event_id", "since", "until")

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?")


class Events:
    """The view of many events."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store, self._sources = parts.store, parts.sources

    def list_events(self) -> str | AnyResponse:
        """List events, newest first; the ledger's own id leads to its event."""
        wanted = request.args.get("event_id", "").strip()
        if _UUID.fullmatch(wanted):
            return redirect(url_for("dashboard.show_event", event=UUID(wanted)))
        which = read_filter(request.args)
        page = list_events(self._store, which, limit=PAGE, cursor=request.args.get("cursor"))
        given = {name: request.args[name] for name in FIELDS if request.args.get(name)}
        rows = redacted_rows(self._sources, self._store, page.data)
        return render_template(
            "events.html",
            rows=rows,
            next=page.next,
            given=given,
            states=list(State),
            sources=sorted(self._sources),
        )


def read_filter(given: Mapping[str, str]) -> EventFilter:
    """Read what a form's fields ask for; a field that is empty asks nothing. Raises Problem."""
    texts = {name: given.get(name, "").strip() or None for name in ("source", "type", "event_id")}
    return EventFilter(**texts, state=_state(given), since=_time(given, "since"), until=_time(given, "until"))


def _state(given: Mapping[str, str]) -> State | None:
    name = given.get("state", "")
    if name and name not in list(State):
        raise Problem(422, "invalid-request", f"There is no such state; there are {', '.join(State)}.")
    return State(name) if name else None


def _time(given: Mapping[str, str], name: str) -> datetime | None:
    text = given.get(name, "").strip()
    if not text:
        return None
    try:
        # A browser's field for times knows no zone: the page says that it is UTC.
        moment: Any = read_time(_whole(text) if _LOCAL.fullmatch(text) else text)
    except ValueError as error:
        raise Problem(422, "invalid-request", f"{name} cannot be read: {error}.") from None
    read: datetime = moment
    return read.astimezone(UTC)


def _whole(text: str) -> str:
    return f"{text}Z" if text.count(":") > 1 else f"{text}:00Z"


# `/replays`: many events at once: counted first, then done by the workers, with progress.


class Bulk:
    """The views of bulk runs."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store = parts.store

    def count(self) -> str:
        """Say how many events it would be, and ask."""
        what, which = _what(request.args.get("what")), read_filter(request.args)
        given = {name: request.args[name] for name in FIELDS if request.args.get(name)}
        total = bulk_candidates(self._store, what, which)
        return render_template("bulk.html", what=what, given=given, total=total, effect=CHOICES[what])

    def start(self) -> AnyResponse:
        """Write the bulk run down, and go to its progress."""
        replay = plan_bulk(self._store, _what(request.form.get("what")), read_filter(request.form), who())
        return redirect(url_for("dashboard.show_replay", replay=replay.id))

    def show_replay(self, replay: UUID) -> Response:
        """Show how far a bulk run is."""
        told = bulk_progress(self._store, replay)
        page = "_progress.html" if request.headers.get("HX-Request") else "replay.html"
        return make_response(render_template(page, run=told))


def _what(text: str | None) -> Move:
    if text not in list(CHOICES):
        raise Problem(422, "invalid-request", f"Say one of {', '.join(CHOICES)}.")
    return Move(str(text))


# `/events/<id>`: one event's whole story, its payload, and what may be done to it.


SHOWN = 200_000
"""Characters of a payload on a page; the raw download has all of it."""

MOVING = (State.RECEIVED, State.PROCESSING, State.WAITING)
"""States in which a page looks again for news."""

Told = dict[str, Any]


class OneEvent:
    """The views of one event and of its calls."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store, self._sources = parts.store, parts.sources

    def show_event(self, event: UUID) -> str:
        """Tell everything about an event."""
        kept = original(self._store, event)
        hides = redactor_of(self._sources, kept)
        others = conflicts(self._store, event)["data"] if request.args.get("bodies") else []
        payload = _payload(hides, kept.body, kept.content_type)
        told = self._told(event)
        bodies = [{**one, "payload": self._other(kept.source, one)} for one in others]
        headers = hides.data(dict(kept.headers))
        return render_template(
            "event.html", **told, payload=payload, headers=headers, bodies=bodies, redacts=hides.active
        )

    def show_story(self, event: UUID) -> Response:
        """Tell what changes about an event; 204 while it is what the page shows already."""
        told = self._told(event)
        if request.args.get("seen") == told["seen"]:
            return Response(status=204)
        return make_response(render_template("_story.html", **told))

    def show_call(self, call: UUID) -> str:
        """Tell everything about one call."""
        told = call_story(self._store, call)
        event = UUID(told["call"]["event"])
        hides = redactor_of(self._sources, original(self._store, event))
        told = hides.told(told)
        parked = deciding_call(story(self._store, event))
        choices = call_choices(parked, datetime.now(UTC)) if parked and parked["id"] == str(call) else []
        shown = {name: _content(hides, told[name]) for name in ("request", "answer")}
        return render_template("call.html", told=told, choices=choices, **shown)

    def download(self, event: UUID) -> Response:
        """Give the body as it came, byte for byte: nothing is left out of it."""
        kept = original(self._store, event)
        if kept.body is None:
            raise Problem(410, "erased", "Its payload was erased after payload_retention; nothing is left.")
        return _attachment(kept.body, f"{event}.bin")

    def _told(self, event: UUID) -> Told:
        told = redactor_of(self._sources, original(self._store, event)).told(story(self._store, event))
        call = deciding_call(told)
        return {
            "told": told,
            "event": told["event"],
            "moments": timeline(told),
            "choices": event_choices(told["event"]),
            "call": call,
            "call_choices": call_choices(call, datetime.now(UTC)) if call else [],
            "why": why(told),
            "moving": told["event"]["state"] in MOVING,
            "seen": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16],
        }

    def _other(self, source: str, one: Told) -> Told:
        found = self._sources.get(source)
        hides = Redactor(found.redact if found else (), one["body"], one["content_type"])
        return _payload(hides, one["body"], one["content_type"])


def _attachment(body: bytes, name: str) -> Response:
    answer = Response(body, content_type="application/octet-stream")
    answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return answer


def _payload(hides: Redactor, body: bytes | None, content_type: str | None) -> Told:
    """Return `{kind, value}`: `json` parsed and redacted, `text`, or why there is nothing to see."""
    if body is None:
        return {"kind": "none", "value": "It was erased after payload_retention."}
    try:
        return _json(hides.payload(parse_payload(body, content_type)))
    except UnreadablePayloadError as error:
        if hides.active:
            hidden = f"It is not shown: its source leaves places out, and {error}. The raw download has it."
            return {"kind": "none", "value": hidden}
        return {"kind": "text", "value": body.decode("utf-8", "backslashreplace")[:SHOWN]}


def _json(value: Any) -> Told:
    text, whole = written(value, SHOWN)
    return {"kind": "json" if whole else "text", "value": text}


def _content(hides: Redactor, content: Told | None) -> Told | None:
    if content is None:
        return None
    shown = {"kind": "text", "value": content["body"][:SHOWN]}
    if content["encoding"] == "utf-8" and len(content["body"]) <= SHOWN:
        with suppress(ValueError):
            # Parsed, an escape becomes a character: what is hidden may turn up anew.
            shown = _json(hides.data(load_json(content["body"])))
    return {**content, "payload": shown}


# `/queue`: parked and dead events, one after another, with everything a decision needs.


QUEUE_PAGE = 20
"""Events at once: each is told with its calls, and a person reads one after the other."""

QueueEntry = dict[str, Any]


class Queue:
    """The view of what waits for a person."""

    def __init__(self, parts: DashboardParts) -> None:
        self._store, self._sources = parts.store, parts.sources

    def queue(self) -> str:
        """List what is parked, or dead, newest first."""
        state = State.DEAD if request.args.get("state") == State.DEAD else State.PARKED
        page = list_events(
            self._store, EventFilter(state=state), limit=QUEUE_PAGE, cursor=request.args.get("cursor")
        )
        states = pending(self._store)["states"].values()
        counts = {one: sum(of.get(one, 0) for of in states) for one in (State.PARKED, State.DEAD)}
        items = [self._item(UUID(event["id"])) for event in page.data]
        return render_template("queue.html", state=state, items=items, counts=counts, next=page.next)

    def _item(self, event: UUID) -> QueueEntry:
        told = redacted(self._sources, self._store, event, story(self._store, event))
        call = deciding_call(told)
        return {
            "event": told["event"],
            "why": why(told),
            "attempts": told["attempts"][-1:],
            "call": call,
            "choices": call_choices(call, datetime.now(UTC)) if call else [],
            "event_choices": event_choices(told["event"]),
        }


# `/sources` and `/apis`: the configuration as it is loaded, never a secret, and what was refused.


LATEST = 10
"""Rejections shown of each source."""

REASONS = {
    "no_secret": "this source has no secret yet",
    "too_large": "the body is larger than max_body",
}

ReportRow = dict[str, Any]


class Reports:
    """The views that only look at what is configured."""

    def __init__(self, parts: DashboardParts) -> None:
        self._parts = parts

    def list_sources(self) -> str:
        """Show every source with its windows, rules and last rejections."""
        shown = [self._source(source) for source in self._parts.sources.values()]
        return render_template("sources.html", sources=shown)

    def list_apis(self) -> str:
        """Show every API with its limits and its dialect's rules."""
        return render_template("apis.html", apis=[_api(api) for api in self._parts.apis.values()])

    def _source(self, source: Source) -> ReportRow:
        return {
            "name": source.name,
            "provider": source.provider.title,
            "docs": source.provider.docs,
            "path": f"/webhooks/{source.name}",
            "secrets": len(source.secrets),
            "variables": source.secret_names,
            "problem": source.problem,
            "warnings": source.warnings,
            "rules": list(source_rules(source)),
            "redact": [str(path) for path in source.redact],
            "facts": {
                "ids kept": duration(source.retention),
                "payloads kept": duration(source.payload_retention),
                "largest body": f"{source.max_body / 1_048_576:g} MiB",
            },
            "headers": (*source.provider.keep_headers, *source.keep_headers),
            "refused": self._refused(source.name),
        }

    def _refused(self, name: str) -> list[ReportRow] | None:
        try:
            latest = rejections(self._parts.store, name)["latest"][:LATEST]
        except LedgerError:
            return None
        return [{**one, "reason": reason_words(one["reason"])} for one in latest]


def reason_words(reason: str) -> str:
    """Write a rejection's reason for people."""
    return REASONS.get(reason, reason.replace("_", " "))


def _api(api: Api) -> ReportRow:
    times = (
        ("connect timeout", api.connect_timeout),
        ("read timeout", api.read_timeout),
        ("deadline", api.deadline),
    )
    return {
        "name": api.name,
        "base_url": api.base_url,
        "dialect": api.dialect_name,
        "title": api.dialect.title,
        "auth": f"{api.auth.header}, from {api.auth.variable}",
        "problem": api.problem,
        "rules": list(dialect_rules(api)),
        "facts": {name: duration(value) for name, value in times}
        | {"connections": str(api.max_connections), "headers added": ", ".join(api.headers) or "none"},
    }


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
    for name, render in FILTERS.items():
        views.add_app_template_filter(render, name)
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
