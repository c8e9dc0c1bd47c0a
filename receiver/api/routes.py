"""`/v1`, put together: gate, idempotency engine, views, document and page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn
from uuid import UUID

from flask import Blueprint, Response, after_this_request, g, jsonify, make_response, request

from config.credentials import ApiKey, find_api_key
from config.dialects import load_dialects
from config.sources import Source
from receiver.api.openapi import document, render_page
from receiver.api.operation import PREFIX, Answers, Operation, read
from receiver.api.requests import (
    CallsQuery,
    EventsQuery,
    RejectionsQuery,
    ReplayBody,
    ResolveBody,
    Seen,
    SeenForSure,
)
from receiver.idempotency import Engine, Refusal, policy_of
from receiver.ledger.control import (
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
from receiver.ledger.reports import Calls as CallsPage
from receiver.ledger.reports import (
    CallStory,
    call_story,
    conflicts,
    list_calls,
    list_events,
    original,
    rejections,
    stats,
    story,
)
from receiver.ledger.reports import models as shapes
from receiver.ledger.store import Store
from receiver.ledger.text import readable
from receiver.problems import Problem, answer_problem, unavailable
from receiver.redaction import redacted, redacted_calls, redacted_rows, shown_body

# `/v1/sources`, `/v1/stats`, `/v1/rejections`: what is configured, and what came of it.


ReportAnswer = dict[str, Any]


class Reports:
    """The views that only look."""

    def __init__(self, store: Store, sources: Mapping[str, Source]) -> None:
        self._store, self._sources = store, sources

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        return [
            Operation("GET", "/sources", self.list_sources, {200: shapes.Sources}),
            Operation("GET", "/stats", self.show_stats, {200: shapes.Stats}),
            Operation("GET", "/rejections", self.list_rejections, {200: shapes.Rejections}, RejectionsQuery),
        ]

    def list_sources(self) -> ReportAnswer:
        """List the sources as configured.

        Never a secret: only how many there are, and what is wrong with them.
        """
        return {"data": [describe(source) for source in self._sources.values()], "next": None}

    def show_stats(self) -> ReportAnswer:
        """Count events by source and state.

        Duplicates, conflicts and rejections too, and the oldest event that is not finished.
        """
        return stats(self._store)

    def list_rejections(self, given: RejectionsQuery) -> ReportAnswer:
        """List what was refused at the door.

        Counts by source, reason and minute, and the latest ones without bodies or values.
        """
        return rejections(self._store, given.source)


def describe(source: Source) -> ReportAnswer:
    """Return a source ready for JSON: what is configured, with its secrets counted, never shown."""
    return {
        "name": source.name,
        "provider": source.provider.name,
        "path": f"/webhooks/{source.name}",
        "secrets": len(source.secrets),
        "problem": source.problem,
        "warnings": list(source.warnings),
        "retention_seconds": int(source.retention.total_seconds()),
        "payload_retention_seconds": int(source.payload_retention.total_seconds()),
        "max_body": source.max_body,
        "on_replay": source.on_replay,
    }


# Who may come in: `Authorization: Bearer <key>`, before anything is read, run or stored.


READS = frozenset({"GET", "HEAD", "OPTIONS"})


def admit(keys: Sequence[ApiKey]) -> None:
    """Let the request in as `g.api_key`, or raise Problem 401 or 403."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise _unauthorized("api-key-missing", "Send an API key: Authorization: Bearer <key>.")
    key = find_api_key(keys, secret.strip())
    if key is None:
        raise _unauthorized(
            "api-key-unknown", "This API key is unknown; FIRSTSEEN_API_KEYS has those that count."
        )
    if key.read_only and request.method not in READS:
        raise Problem(403, "api-key-read-only", "This API key may only read; use one without :read to act.")
    g.api_key = key


def credential() -> str:
    """Return the name of the request's API key."""
    name: str = g.api_key.name
    return name


def who() -> str:
    """Return what the audit says of this request."""
    return f"api:{credential()}"


def _unauthorized(kind: str, detail: str) -> Problem:
    return Problem(401, kind, detail, {"WWW-Authenticate": 'Bearer realm="firstseen"'})


# `/v1/replays`: many events at once, as a job that the workers' sweepers carry out.


ReplayAnswer = dict[str, Any]


class Replays:
    """The views of bulk runs."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        started: Answers = {200: shapes.Counted, 202: shapes.Progress}
        example = {"what": "retry", "filter": {"source": "stripe", "state": "dead"}, "dry_run": True}
        return [
            Operation("POST", "/replays", self.start_replay, started, ReplayBody, example),
            Operation("GET", "/replays/{replay}", self.show_replay, {200: shapes.Progress}),
        ]

    def start_replay(self, given: ReplayBody) -> tuple[ReplayAnswer, int, dict[str, str]]:
        """Retry, rerun or discard every event of a filter.

        With `dry_run` they are only counted. Otherwise the list of events and their generations is written
        down first; then the workers act on each, once, or skip it if it moved on meanwhile. Ask the new
        bulk run how far it is.
        """
        which = given.filter.as_filter()
        if given.dry_run:
            number = bulk_candidates(g.ledger, given.what, which)
            counted = {"what": given.what, "filter": which.as_json(), "dry_run": True, "total": number}
            return counted, 200, {}
        replay = plan_bulk(g.ledger, given.what, which, who())
        return bulk_progress(g.ledger, replay.id), 202, {"Location": f"{PREFIX}/replays/{replay.id}"}

    def show_replay(self, replay: UUID) -> ReplayAnswer:
        """Say how far a bulk run is.

        It is over once `finished_at` is set. A worker that dies in the middle costs nothing: another goes on.
        """
        return bulk_progress(self._store, replay)


# Waking a worker for what a request made due.


Nudge = Callable[[Iterable[UUID]], None]


def nudge_afterwards(nudge: Nudge, event: UUID) -> None:
    """Nudge an event once the request's work is committed."""

    # The view runs inside the transaction; what it registers here runs after the commit.
    @after_this_request
    def send(response: Any) -> Any:
        nudge([event])
        return response


# `/v1/events`: which there are, one's whole story, and what a person does to it.


Answer = dict[str, Any]

EVENT = "/events/{event}"

BODY = EVENT + "/conflicts/{body_hash}"


class Events:
    """The views of events. Those that act do so in `g.ledger`, the transaction of the request's key."""

    def __init__(self, store: Store, nudge: Nudge, sources: Mapping[str, Source]) -> None:
        self._store, self._nudge, self._sources = store, nudge, sources

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        acted, seen = {200: shapes.EventInFull}, {"generation": 0}
        promoted = {200: shapes.Promoted, 201: shapes.Promoted}
        return [
            Operation("GET", "/events", self.list_events, {200: shapes.Events}, EventsQuery),
            Operation("GET", EVENT, self.show_event, {200: shapes.Story}),
            Operation("POST", f"{EVENT}/retry", self.retry_event, acted, Seen, seen),
            Operation("POST", f"{EVENT}/rerun", self.rerun_event, acted, SeenForSure, seen),
            Operation("POST", f"{EVENT}/discard", self.discard_event, acted, Seen, seen),
            Operation("GET", f"{EVENT}/conflicts", self.list_conflicts, {200: shapes.Conflicts}),
            Operation("POST", f"{BODY}/promote", self.promote_conflict, promoted),
        ]

    def list_events(self, given: EventsQuery) -> Answer:
        """List events, newest first.

        Ask again with `cursor` set to `next` until that is null: the pages together have every event once,
        and events that arrive meanwhile shift none of them.
        """
        page = list_events(self._store, given.as_filter(), limit=given.limit, cursor=given.cursor)
        return {"data": redacted_rows(self._sources, self._store, page.data), "next": page.next}

    def show_event(self, event: UUID) -> Answer:
        """Tell an event's whole story.

        When it came, duplicates, conflicts, attempts, what people did, and what happens next, when and why.
        """
        told: Answer = redacted(self._sources, self._store, event, story(self._store, event))
        return told

    def list_conflicts(self, event: UUID) -> Answer:
        """List the other bodies that came under the event's id.

        The first ten are kept, until the event's payload is erased.
        """
        source = self._sources.get(original(self._store, event).source)
        paths = source.redact if source else ()
        found = conflicts(self._store, event)
        shown = [readable(shown_body(paths, one["body"], one["content_type"])) for one in found["data"]]
        return {**found, "data": [one | body for one, body in zip(found["data"], shown, strict=True)]}

    def retry_event(self, event: UUID, given: Seen) -> Answer:
        """Run an event again in its generation.

        Its calls keep their idempotency keys, so nothing happens twice. Answers with the event as it is now.
        """
        return self._done(event, retry(g.ledger, event, who(), generation=given.generation).nudge)

    def rerun_event(self, event: UUID, given: SeenForSure) -> Answer:
        """Run an event again in a new generation.

        Its calls get new idempotency keys: every effect happens again, on purpose. It is refused unless the
        event is still in the generation that you saw.
        """
        return self._done(event, rerun(g.ledger, event, who(), generation=given.generation).nudge)

    def discard_event(self, event: UUID, given: Seen) -> Answer:
        """End an event for good.

        No handler runs, and no new delivery revives it.
        """
        return self._done(event, discard(g.ledger, event, who(), generation=given.generation).nudge)

    def promote_conflict(self, event: UUID, body_hash: str) -> tuple[Answer, int, dict[str, str]]:
        """Make a conflicting body an event of its own.

        Its id is the event's with the beginning of the body's hash. Asked again, it answers with the same
        event.
        """
        done = promote(g.ledger, event, body_hash, who())
        nudge_afterwards(self._nudge, done.event)
        answer = {"id": str(done.event), "event_id": done.event_id, "created": done.created}
        place = {"Location": f"{PREFIX}/events/{done.event}"}
        return answer, 201 if done.created else 200, place

    def _done(self, event: UUID, nudge: bool) -> Answer:  # noqa: FBT001 - private, and named at its end
        if nudge:
            nudge_afterwards(self._nudge, event)
        told: Answer = redacted(self._sources, g.ledger, event, story(g.ledger, event)["event"])
        return told


# `/v1/calls`: what handlers asked of other APIs, and what a person says of it.


CallAnswer = dict[str, Any]

CALL = "/calls/{call}"


class Calls:
    """The views of outbound calls."""

    def __init__(self, store: Store, nudge: Nudge, sources: Mapping[str, Source]) -> None:
        self._store, self._nudge, self._sources = store, nudge, sources

    def operations(self) -> list[Operation]:
        """Return the endpoints."""
        said = {"how": "happened", "response": {"status": 201, "body": '{"id": 7}'}}
        told = {200: CallStory}
        return [
            Operation("GET", "/calls", self.list_calls, {200: CallsPage}, CallsQuery),
            Operation("GET", CALL, self.show_call, told),
            Operation("POST", f"{CALL}/resolve", self.resolve_call, told, ResolveBody, said),
        ]

    def list_calls(self, given: CallsQuery) -> CallAnswer:
        """List outbound calls, newest first.

        `state=parked` are those that wait for a person. Ask again with `cursor` set to `next` until that is
        null.
        """
        page = list_calls(self._store, given.as_filter(), limit=given.limit, cursor=given.cursor)
        return {"data": redacted_calls(self._sources, self._store, page.data), "next": page.next}

    def show_call(self, call: UUID) -> CallAnswer:
        """Tell all about one call.

        Its event, request, sends and answer, what people said of it, and what happens next; where a person
        must decide, what each decision does.
        """
        return self._told(self._store, call)

    def resolve_call(self, call: UUID, given: ResolveBody) -> CallAnswer:
        """Say what became of a call, or shall, when its event is parked.

        `happened`: the handler goes on with the response that you give. `resend-as-new`: a successor goes out
        under a new key, once nothing of the old one can be under way. `use-stored`: the stored bytes go out,
        though the handler asks for others now. `give-up`: the event ends. Call and event change together; a
        call that somebody else has resolved, or an event that moved on, refuses it.
        """
        response = given.response.as_response() if given.response else None
        acted = resolve(g.ledger, call, given.how, who(), response=response)
        if acted.nudge:
            nudge_afterwards(self._nudge, acted.event)
        return self._told(g.ledger, call)

    def _told(self, store: Store, call: UUID) -> CallAnswer:
        told = call_story(store, call)
        shown: CallAnswer = redacted(self._sources, store, UUID(told["call"]["event"]), told)
        return shown


# How what the ledger and the engine refuse is answered: a status and a stable kind each.


_KINDS: tuple[tuple[type[LedgerError], int, str, str], ...] = (
    (UnknownEvent, 404, "unknown-event", " GET /v1/events lists those there are."),
    (UnknownReplay, 404, "unknown-replay", " POST /v1/replays starts one and says its id."),
    (UnknownCall, 404, "unknown-call", " GET /v1/calls lists those there are."),
    (BadCursor, 422, "bad-cursor", ""),
    (NotAllowed, 409, "not-allowed", ""),
)


def answer_ledger_error(error: LedgerError) -> Response:
    """Answer what the ledger could not do; 503 for all but its definite refusals."""
    for kind, status, name, advice in _KINDS:
        if isinstance(error, kind):
            return answer_problem(Problem(status, name, f"{error}{advice}"))
    return answer_problem(
        unavailable("The ledger does not answer. Send it again, with the same Idempotency-Key if it has one.")
    )


def answer_refusal(refusal: Refusal) -> Response:
    """Answer what the idempotency engine refuses; its code is the problem's kind."""
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return answer_problem(Problem(refusal.status, refusal.code, refusal.detail, headers))


BODY_MAX = 64 * 1024
"""Bytes; the longest sensible request here is a filter of a few hundred."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Parts:
    """What the API stands on. `nudge` takes event ids and never waits."""

    store: Store
    keys: Sequence[ApiKey]
    sources: Mapping[str, Source]
    nudge: Nudge


def api_views(parts: Parts) -> Blueprint:
    """Return the routes of `/v1`; without a key, one that says that the API is off."""
    views = Blueprint("management", __name__, url_prefix=PREFIX, template_folder="templates")
    if not parts.keys:
        for rule in ("/", "/<path:rest>"):
            views.add_url_rule(rule, "off", _off, methods=METHODS)
        return views
    operations = list_operations(parts)
    engine = _engine(parts.store)
    for operation in operations:
        served = partial(_serve, operation)
        view = partial(_admit, parts.keys, engine.guard(served) if operation.acts else served)
        methods = [operation.method]
        views.add_url_rule(
            operation.rule, operation.name, view, methods=methods, provide_automatic_options=False
        )
    views.register_error_handler(LedgerError, answer_ledger_error)
    _add_documents(views, document(operations))
    return views


def list_operations(parts: Parts) -> list[Operation]:
    """Return every endpoint."""
    store, nudge = parts.store, parts.nudge
    sources = parts.sources
    acting = Events(store, nudge, sources), Calls(store, nudge, sources), Replays(store)
    groups = *acting, Reports(store, sources)
    return [operation for group in groups for operation in group.operations()]


def _engine(store: Store) -> Engine:
    policy = policy_of("firstseen", load_dialects()["firstseen"])
    scopes = {"credential": lambda _: credential()}
    return Engine(store, policy, scopes=scopes, refuse=answer_refusal, body_max=BODY_MAX)


def _admit(keys: Sequence[ApiKey], view: Callable[..., Any], **path: str) -> Any:
    admit(keys)
    return view(**path)


def _serve(operation: Operation, **path: str) -> Response:
    return make_response(operation.view(**read(operation, path, request)))


def _add_documents(views: Blueprint, described: dict[str, Any]) -> None:
    """Add the document and the page: the same for everybody, so neither asks for a key."""
    views.add_url_rule("/openapi.json", "openapi", lambda: jsonify(described))
    views.add_url_rule("/docs", "docs", lambda: render_page(described))


def _off(**_: str) -> NoReturn:
    raise Problem(
        404, "api-off", "The API is off: set FIRSTSEEN_API_KEYS, such as `ops=<key>`, to turn it on."
    )
