"""The dashboard's pages and actions. They render what the service returns, and decide nothing themselves.

`dashboard_views` has the map of paths: `Pages` looks, `Actions` changes.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
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
from pydantic import ValidationError
from werkzeug.wrappers import Response as AnyResponse

from config.apis import Api
from config.credentials import User
from receiver import describe
from receiver.dashboard.auth import SigningIn, Throttle, guard, local, token, who
from receiver.dashboard.overview import Overview
from receiver.dashboard.presentation import (
    FILTERS,
    content_view,
    payload_view,
    rejection_reason,
    timeline,
)
from receiver.ledger.errors import LedgerError, NotAllowed
from receiver.ledger.filter import EventFilter
from receiver.ledger.states import Move, State
from receiver.payload import UnreadablePayloadError, parse_json
from receiver.problems import Problem
from receiver.requests import UUID_FORM, GivenResponse, Which
from receiver.service import ActionResult, Resolution, Service, StoredResponse, refusal

STATIC = Path(__file__).with_name("static")

# Seconds; a file's address changes with its bytes.
FOREVER = 31_536_000

PAGE = 50

# Events of the queue at once: each stands there with its calls, and a person reads one after the other.
QUEUE_PAGE = 20

# Of each source.
REJECTIONS_SHOWN = 10

FIELDS = ("source", "state", "type", "event_id", "since", "until")

# States in which a page looks again for news.
MOVING = (State.RECEIVED, State.PROCESSING, State.WAITING)

_LOCAL = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?")


def dashboard_views(
    service: Service,
    users: Sequence[User],
    apis: Mapping[str, Api],
    broker: Callable[[], str],
    patience: float,
) -> Blueprint:
    """Return the pages; without a user, one that says that the dashboard is off.

    `broker` tells the state of nudging, and a worker that is silent for `patience` seconds counts as gone.
    """
    views = Blueprint("dashboard", __name__, template_folder="templates")
    if not users:
        views.add_url_rule("/", "off", _off)
        return views
    guard(views, users)
    door, overview = SigningIn(users, Throttle()), Overview(service, broker, patience)
    pages, actions = Pages(service, apis), Actions(service)
    views.add_url_rule("/sign-in", "sign_in", door.sign_in, methods=["GET", "POST"])
    views.add_url_rule("/sign-out", "sign_out", door.sign_out, methods=["POST"])
    views.add_url_rule("/assets/<path:name>", "asset", _asset)
    looking: Mapping[str, Callable[..., Any]] = {
        "/": overview.overview,
        "/figures": overview.figures,
        "/series": overview.series,
        "/events": pages.list_events,
        "/events/<uuid:event>": pages.show_event,
        "/events/<uuid:event>/story": pages.show_story,
        "/events/<uuid:event>/raw": pages.download,
        "/calls/<uuid:call>": pages.show_call,
        "/queue": pages.queue,
        "/replays/new": pages.count,
        "/replays/<uuid:replay>": pages.show_replay,
        "/sources": pages.list_sources,
        "/apis": pages.list_apis,
    }
    acting: Mapping[str, Callable[..., Any]] = {
        "/events/<uuid:event>/conflicts/<body_hash>/promote": actions.promote_body,
        "/events/<uuid:event>/<what>": actions.act,
        "/calls/<uuid:call>/resolve": actions.resolve_call,
        "/replays": actions.start,
    }
    for rule, view in looking.items():
        views.add_url_rule(rule, view.__name__, view)
    for rule, view in acting.items():
        views.add_url_rule(rule, view.__name__, view, methods=["POST"])
    views.register_error_handler(Problem, _answer_problem)
    views.register_error_handler(LedgerError, _answer_ledger_error)
    views.context_processor(_shared)
    for name, render in FILTERS.items():
        views.add_app_template_filter(render, name)
    return views


class Pages:
    """The pages that only look."""

    def __init__(self, service: Service, apis: Mapping[str, Api]) -> None:
        self._service, self._apis = service, apis

    def list_events(self) -> str | AnyResponse:
        """List events, newest first; the ledger's own id leads to its event."""
        wanted = request.args.get("event_id", "").strip()
        if UUID_FORM.fullmatch(wanted):
            return redirect(url_for("dashboard.show_event", event=UUID(wanted)))
        cursor = request.args.get("cursor")
        page = self._service.list_events(read_filter(request.args), limit=PAGE, cursor=cursor)
        return render_template(
            "events.html",
            rows=page.data,
            next=page.next,
            given=_fields_given(),
            states=list(State),
            sources=sorted(self._service.sources),
        )

    def show_event(self, event: UUID) -> str:
        """Tell everything about an event."""
        kept, redactor = self._service.original(event)
        bodies = [
            {**dict(body.conflict), "payload": payload_view(hides, body.body, body.content_type)}
            for body, hides in (self._service.other_bodies(event) if request.args.get("bodies") else ())
        ]
        return render_template(
            "event.html",
            **self._story(event),
            payload=payload_view(redactor, kept.body, kept.content_type),
            headers=redactor.data(dict(kept.headers)),
            bodies=bodies,
            redacts=redactor.active,
        )

    def show_story(self, event: UUID) -> Response:
        """Tell what changes about an event; 204 while it is what the page shows already."""
        story = self._story(event)
        if request.args.get("seen") == story["seen"]:
            return Response(status=204)
        return make_response(render_template("_story.html", **story))

    def show_call(self, call: UUID) -> str:
        """Tell everything about one call."""
        story = self._service.call_story(call)
        _, redactor = self._service.original(story.call.event)
        parked = describe.deciding_call(self._service.story(story.call.event))
        choices = describe.call_choices(parked, datetime.now(UTC)) if parked and parked.id == call else []
        contents = {name: content_view(redactor, getattr(story, name)) for name in ("request", "answer")}
        return render_template("call.html", told=story, choices=choices, **contents)

    def download(self, event: UUID) -> Response:
        """Return the body byte for byte, as it was received: nothing is redacted in it."""
        kept, _ = self._service.original(event)
        if kept.body is None:
            raise Problem(410, "erased", "Its payload was erased after payload_retention; nothing is left.")
        answer = Response(kept.body, content_type="application/octet-stream")
        answer.headers["Content-Disposition"] = f'attachment; filename="{event}.bin"'
        return answer

    def queue(self) -> str:
        """List what is parked, or dead, newest first, each with everything that a decision needs."""
        state = State.DEAD if request.args.get("state") == State.DEAD else State.PARKED
        cursor = request.args.get("cursor")
        page = self._service.list_events(EventFilter(state=state), limit=QUEUE_PAGE, cursor=cursor)
        states = self._service.pending().states.values()
        counts = {kind: sum(of.get(kind, 0) for of in states) for kind in (State.PARKED, State.DEAD)}
        items = [self._story(event.id) for event in page.data]
        return render_template("queue.html", state=state, items=items, counts=counts, next=page.next)

    def count(self) -> str:
        """Count the events that a bulk operation would act on, and ask for a confirmation."""
        what = _bulk_action(request.args.get("what"))
        total = self._service.count(what, read_filter(request.args)).total
        effect = describe.ACTIONS[what].effect
        return render_template("bulk.html", what=what, given=_fields_given(), total=total, effect=effect)

    def show_replay(self, replay: UUID) -> Response:
        """Show how far a bulk operation is."""
        page = "_progress.html" if request.headers.get("HX-Request") else "replay.html"
        return make_response(render_template(page, run=self._service.bulk_progress(replay)))

    def list_sources(self) -> str:
        """Show every source as it is loaded, never a secret, with its windows, rules and last rejections."""
        shown = [
            {
                "name": source.name,
                "provider": source.provider.title,
                "docs": source.provider.docs,
                "path": f"/webhooks/{source.name}",
                "secrets": len(source.secrets),
                "variables": source.secret_names,
                "problem": source.problem,
                "warnings": source.warnings,
                "rules": list(describe.source_rules(source)),
                "redact": [str(path) for path in source.redact],
                "facts": {
                    "ids kept": describe.duration(source.retention),
                    "payloads kept": describe.duration(source.payload_retention),
                    "largest body": f"{source.max_body / 1_048_576:g} MiB",
                },
                "headers": (*source.provider.keep_headers, *source.keep_headers),
                "refused": self._latest_rejections(source.name),
            }
            for source in self._service.sources.values()
        ]
        return render_template("sources.html", sources=shown)

    def list_apis(self) -> str:
        """Show every API with its limits and its dialect's rules."""
        shown = [
            {
                "name": api.name,
                "base_url": api.base_url,
                "dialect": api.dialect_name,
                "title": api.dialect.title,
                "auth": f"{api.auth.header}, from {api.auth.variable}",
                "problem": api.problem,
                "rules": list(describe.dialect_rules(api)),
                "facts": {
                    "connect timeout": describe.duration(api.connect_timeout),
                    "read timeout": describe.duration(api.read_timeout),
                    "deadline": describe.duration(api.deadline),
                    "connections": str(api.max_connections),
                    "headers added": ", ".join(api.headers) or "none",
                },
            }
            for api in self._apis.values()
        ]
        return render_template("apis.html", apis=shown)

    def _story(self, event: UUID) -> dict[str, Any]:
        story = self._service.story(event)
        call = describe.deciding_call(story)
        return {
            "told": story,
            "event": story.event,
            "moments": timeline(story),
            "choices": describe.event_choices(story.event),
            "call": call,
            "call_choices": describe.call_choices(call, datetime.now(UTC)) if call else [],
            "why": describe.why_stuck(story),
            "moving": story.event.state in MOVING,
            "seen": hashlib.sha256(story.model_dump_json().encode()).hexdigest()[:16],
        }

    def _latest_rejections(self, source: str) -> list[dict[str, Any]] | None:
        try:
            latest = self._service.rejections(source).latest[:REJECTIONS_SHOWN]
        except LedgerError:
            return None
        return [{**dict(rejected), "reason": rejection_reason(rejected.reason)} for rejected in latest]


class Actions:
    """The forms that change something. The ledger guards each step; a refusal is shown, and nothing done."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def act(self, event: UUID, what: str) -> AnyResponse | str:
        """Retry, rerun or discard an event that is still in the generation that the page showed."""
        if what not in describe.ACTIONS:
            raise Problem(404, "unknown-action", "There is no such action.")
        move, shown = Move(what), request.form.get("generation", "")
        if not shown.isascii() or not shown.isdigit() or len(shown) > 9:  # noqa: PLR2004 - below 2**31
            raise Problem(422, "invalid-request", "The form does not say which generation was seen.")
        done = describe.ACTIONS[move].done
        return _answer(done, lambda: self._service.act(move, event, who(), generation=int(shown)))

    def resolve_call(self, call: UUID) -> AnyResponse | str:
        """Resolve a call."""
        how = next((how for how in Resolution if how == request.form.get("how")), None)
        if how is None:
            raise Problem(422, "invalid-request", f"Say one of {', '.join(Resolution)}.")
        stated = _stated_response() if how == Resolution.HAPPENED else None
        done = describe.RESOLUTIONS[how].done
        return _answer(done, lambda: self._service.resolve(call, how, who(), stated))

    def promote_body(self, event: UUID, body_hash: str) -> AnyResponse:
        """Make a conflicting body an event of its own, and go there."""
        promoted = self._service.promote(event, body_hash, who())
        flash("It is an event of its own now." if promoted.created else "It had become this event before.")
        return redirect(url_for("dashboard.show_event", event=promoted.id))

    def start(self) -> AnyResponse:
        """Write a bulk operation down, and go to its progress."""
        what = _bulk_action(request.form.get("what"))
        started = self._service.start_bulk(what, read_filter(request.form), who())
        return redirect(url_for("dashboard.show_replay", replay=started.id))


def read_filter(fields: Mapping[str, str]) -> EventFilter:
    """Return the filter of a form's fields, of which empty ones do not count. Raises Problem."""
    values: dict[str, Any] = {name: fields.get(name, "").strip() for name in FIELDS}
    values = {name: text for name, text in values.items() if text}
    for name in ("since", "until"):
        # A browser's field for times knows no zone: the page says that it is UTC.
        if _LOCAL.fullmatch(values.get(name, "")):
            values[name] += "Z" if values[name].count(":") > 1 else ":00Z"
    try:
        return Which.model_validate(values).as_filter()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name, reason = str(first["loc"][0]), first["msg"].removeprefix("Value error, ")
    if name == "state":
        raise Problem(422, "invalid-request", f"There is no such state; there are {', '.join(State)}.")
    raise Problem(422, "invalid-request", f"{name} cannot be read: {reason}.")


def _fields_given() -> dict[str, str]:
    return {name: request.args[name] for name in FIELDS if request.args.get(name)}


def _bulk_action(text: str | None) -> Move:
    if text is None or text not in describe.ACTIONS:
        raise Problem(422, "invalid-request", f"Say one of {', '.join(describe.ACTIONS)}.")
    return Move(text)


def _answer(done: str, do: Callable[[], ActionResult]) -> AnyResponse | str:
    try:
        do()
    except NotAllowed as error:
        return _back(str(error), right=False)
    return _back(done, right=True)


def _back(said: str, *, right: bool) -> AnyResponse | str:
    """Return a message: in place of the form where a script asked, else on the page that the form was on."""
    if request.headers.get("HX-Request"):
        return render_template("_settled.html", said=said, right=right)
    flash(said, "message" if right else "problem")
    return redirect(local(request.form.get("back")))


def _stated_response() -> StoredResponse:
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


def _shared() -> dict[str, Any]:
    return {
        "asset": lambda name: url_for("dashboard.asset", name=name, v=_asset_hash(name)),
        "csrf": token,
        "person": g.user.name if g.get("user") else None,
        "said": get_flashed_messages,
        "state_words": describe.STATES,
        "here": request.endpoint,
    }


@cache
def _asset_hash(name: str) -> str:
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]


def _asset(name: str) -> Response:
    return send_from_directory(STATIC, name, max_age=FOREVER if "v" in request.args else None)


def _answer_problem(problem: Problem) -> Response:
    fragment = bool(request.headers.get("HX-Request"))
    page = "_settled.html" if fragment else "problem.html"
    context = {"said": problem.detail, "right": False} if fragment else {"problem": problem}
    # A fragment's 4xx is swapped in like any other: board.js lets it.
    return make_response(render_template(page, **context), problem.status, problem.headers)


def _answer_ledger_error(error: LedgerError) -> Response:
    refused = refusal(error)
    return _answer_problem(Problem(refused[0] if refused else 503, "ledger", str(error)))


def _off() -> NoReturn:
    raise Problem(
        404,
        "dashboard-off",
        "The dashboard is off: set FIRSTSEEN_USERS; `firstseen hash-password` makes one.",
    )
