"""`/v1`: gate, idempotency engine, endpoints, document and page. It renders what the service returns.

`list_operations` has the map of paths: `Seeing` looks, `Acting` changes, in the transaction that stores the
answer under its idempotency key. The endpoints' docstrings are their documentation, in `/v1/openapi.json`.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NoReturn
from uuid import UUID

from flask import Blueprint, Response, after_this_request, g, jsonify, make_response, request

from config.credentials import ApiKey, bearer_token, find_api_key
from config.dialects import load_dialects
from receiver import requests
from receiver.api.openapi import POLICY, document, render_page
from receiver.api.operation import PREFIX, Answers, Operation, read
from receiver.idempotency import Engine, Refusal, policy_of
from receiver.ledger.errors import LedgerError
from receiver.ledger.reports import models
from receiver.ledger.states import Move
from receiver.problems import Problem, answer_problem, unavailable
from receiver.service import Service, refusal

# Bytes; the longest sensible request here is a filter of a few hundred.
BODY_MAX = 64 * 1024

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

READS = frozenset({"GET", "HEAD", "OPTIONS"})

EVENT, CALL = "/events/{event}", "/calls/{call}"

BODY = EVENT + "/conflicts/{body_hash}"

# What an endpoint returns: a read model, where it is not a plain 200 with status and headers.
Answer = models.Shape | tuple[models.Shape, int, dict[str, str]]


def api_views(service: Service, keys: Sequence[ApiKey]) -> Blueprint:
    """Return the routes of `/v1`; without a key, one that says that the API is off."""
    views = Blueprint("management", __name__, url_prefix=PREFIX, template_folder="templates")
    if not keys:
        for rule in ("/", "/<path:rest>"):
            views.add_url_rule(rule, "off", _off, methods=METHODS)
        return views
    operations = list_operations(service)
    engine = Engine(
        service.store,
        policy_of("firstseen", load_dialects()["firstseen"]),
        scopes={"credential": lambda _: g.api_key.name},
        refuse=answer_refusal,
        body_max=BODY_MAX,
    )
    for operation in operations:
        served = partial(_serve, operation)
        # The gate first: nothing of a request without a key is read or stored.
        view = partial(_admit, keys, engine.guard(served) if operation.acts else served)
        methods = [operation.method]
        views.add_url_rule(
            operation.rule, operation.name, view, methods=methods, provide_automatic_options=False
        )
    views.register_error_handler(LedgerError, answer_ledger_error)
    # The document and the page are the same for everybody, so neither asks for a key.
    described = document(operations)
    # Rendered once, at the first request: anybody may ask for them, at any rate.
    text, page = cache(lambda: jsonify(described).data), cache(lambda: render_page(described))
    views.add_url_rule("/openapi.json", "openapi", lambda: Response(text(), mimetype="application/json"))
    views.add_url_rule("/docs", "docs", lambda: Response(page(), headers={"Content-Security-Policy": POLICY}))
    return views


def list_operations(service: Service) -> list[Operation]:
    """Return every endpoint."""
    see, act = Seeing(service), Acting(service)
    generation = {"generation": 0}
    acted, called = {200: models.EventInFull}, {200: models.CallStory}
    promoted: Answers = {200: models.PromotedView, 201: models.PromotedView}
    started: Answers = {200: models.Counted, 202: models.Progress}
    bulk = {"what": "retry", "filter": {"source": "stripe", "state": "dead"}, "dry_run": True}
    resolved = {"how": "happened", "response": {"status": 201, "body": '{"id": 7}'}}
    return [
        Operation("GET", "/events", see.list_events, {200: models.EventsView}, requests.EventsQuery),
        Operation("GET", EVENT, see.show_event, {200: models.Story}),
        Operation("POST", f"{EVENT}/retry", act.retry_event, acted, requests.Seen, generation),
        Operation("POST", f"{EVENT}/rerun", act.rerun_event, acted, requests.SeenForSure, generation),
        Operation("POST", f"{EVENT}/discard", act.discard_event, acted, requests.Seen, generation),
        Operation("GET", f"{EVENT}/conflicts", see.list_conflicts, {200: models.Conflicts}),
        Operation("POST", f"{BODY}/promote", act.promote_conflict, promoted),
        Operation("GET", "/calls", see.list_calls, {200: models.CallsView}, requests.CallsQuery),
        Operation("GET", CALL, see.show_call, called),
        Operation("POST", f"{CALL}/resolve", act.resolve_call, called, requests.ResolveBody, resolved),
        Operation("POST", "/replays", act.start_replay, started, requests.ReplayBody, bulk),
        Operation("GET", "/replays/{replay}", see.show_replay, {200: models.Progress}),
        Operation("GET", "/sources", see.list_sources, {200: models.Sources}),
        Operation("GET", "/stats", see.show_stats, {200: models.Stats}),
        Operation(
            "GET", "/rejections", see.list_rejections, {200: models.Rejections}, requests.RejectionsQuery
        ),
    ]


class Seeing:
    """The endpoints that only look."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def list_events(self, given: requests.EventsQuery) -> Answer:
        """List events, newest first.

        Ask again with `cursor` set to `next` until that is null: the pages together have every event once,
        and events that arrive meanwhile shift none of them.
        """
        return self._service.list_events(given.as_filter(), limit=given.limit, cursor=given.cursor)

    def show_event(self, event: UUID) -> Answer:
        """Tell an event's whole story.

        When it came, duplicates, conflicts, attempts, what people did, and what happens next, when and why.
        """
        return self._service.story(event)

    def list_conflicts(self, event: UUID) -> Answer:
        """List the other bodies that came under the event's id.

        The first ten are kept, until the event's payload is erased.
        """
        return self._service.conflicts(event)

    def list_calls(self, given: requests.CallsQuery) -> Answer:
        """List outbound calls, newest first.

        `state=parked` are those that wait for a person. Ask again with `cursor` set to `next` until that is
        null.
        """
        return self._service.list_calls(given.as_filter(), limit=given.limit, cursor=given.cursor)

    def show_call(self, call: UUID) -> Answer:
        """Tell all about one call.

        Its event, request, sends and answer, what people said of it, and what happens next; where a person
        must decide, what each decision does.
        """
        return self._service.call_story(call)

    def show_replay(self, replay: UUID) -> Answer:
        """Say how far a bulk run is.

        It is over once `finished_at` is set. A worker that dies in the middle costs nothing: another goes on.
        """
        return self._service.bulk_progress(replay)

    def list_sources(self) -> Answer:
        """List the sources as configured.

        Never a secret: only how many there are, and what is wrong with them.
        """
        return self._service.list_sources()

    def show_stats(self) -> Answer:
        """Count events by source and state.

        Duplicates, conflicts and rejections too, and the oldest event that is not finished.
        """
        return self._service.stats()

    def list_rejections(self, given: requests.RejectionsQuery) -> Answer:
        """List what was refused at the door.

        Counts by source, reason and minute, and the latest ones without bodies or values.
        """
        return self._service.rejections(given.source)


class Acting:
    """The endpoints that change something, in the transaction that stores their answer under its key."""

    def __init__(self, service: Service) -> None:
        self._whole_service, self._nudge = service, service.nudge

    @property
    def _service(self) -> Service:
        return self._whole_service.inside(g.ledger, self._nudge_after_commit)

    def retry_event(self, event: UUID, given: requests.Seen) -> Answer:
        """Run an event again in its generation.

        Its calls keep their idempotency keys, so nothing happens twice. Answers with the event as it is now.
        """
        return self._act(Move.RETRY, event, given.generation)

    def rerun_event(self, event: UUID, given: requests.SeenForSure) -> Answer:
        """Run an event again in a new generation.

        Its calls get new idempotency keys: every effect happens again, on purpose. It is refused unless the
        event is still in the generation that you saw.
        """
        return self._act(Move.RERUN, event, given.generation)

    def discard_event(self, event: UUID, given: requests.Seen) -> Answer:
        """End an event for good.

        No handler runs, and no new delivery revives it.
        """
        return self._act(Move.DISCARD, event, given.generation)

    def promote_conflict(self, event: UUID, body_hash: str) -> Answer:
        """Make a conflicting body an event of its own.

        Its id is the event's with the beginning of the body's hash. Asked again, it answers with the same
        event.
        """
        promoted = self._service.promote(event, body_hash, who())
        place = {"Location": f"{PREFIX}/events/{promoted.id}"}
        return promoted, 201 if promoted.created else 200, place

    def resolve_call(self, call: UUID, given: requests.ResolveBody) -> Answer:
        """Say what became of a call, or shall, when its event is parked.

        `happened`: the handler goes on with the response that you give. `resend-as-new`: a successor goes out
        under a new key, once nothing of the old one can be under way. `use-stored`: the stored bytes go out,
        though the handler asks for others now. `give-up`: the event ends. Call and event change together; a
        call that somebody else has resolved, or an event that moved on, refuses it.
        """
        response = given.response.as_response() if given.response else None
        self._service.resolve(call, given.how, who(), response)
        return self._service.call_story(call)

    def start_replay(self, given: requests.ReplayBody) -> Answer:
        """Retry, rerun or discard every event of a filter.

        With `dry_run` they are only counted. Otherwise the list of events and their generations is written
        down first; then the workers act on each, once, or skip it if it moved on meanwhile. Ask the new
        bulk run how far it is.
        """
        which = given.filter.as_filter()
        if given.dry_run:
            return self._service.count(given.what, which)
        started = self._service.start_bulk(given.what, which, who())
        return started, 202, {"Location": f"{PREFIX}/replays/{started.id}"}

    def _act(self, what: Move, event: UUID, generation: int | None) -> Answer:
        self._service.act(what, event, who(), generation=generation)
        return self._service.story(event).event

    def _nudge_after_commit(self, count: int) -> None:
        # The endpoint runs inside the transaction; what it registers here runs after the commit.
        @after_this_request
        def nudge(response: Any) -> Any:
            self._nudge(count)
            return response


def _admit(keys: Sequence[ApiKey], view: Callable[..., Any], **path: str) -> Any:
    """Call the view if the request has a key that may do this, with it as `g.api_key`; else raise Problem."""
    secret = bearer_token(request.headers.get("Authorization", ""))
    if not secret:
        raise _unauthorized("api-key-missing", "Send an API key: Authorization: Bearer <key>.")
    key = find_api_key(keys, secret)
    if key is None:
        raise _unauthorized(
            "api-key-unknown", "This API key is unknown; FIRSTSEEN_API_KEYS has those that count."
        )
    if key.read_only and request.method not in READS:
        raise Problem(403, "api-key-read-only", "This API key may only read; use one without :read to act.")
    g.api_key = key
    return view(**path)


def who() -> str:
    """Return the name of this request's API key as the audit has it."""
    return f"api:{g.api_key.name}"


def answer_ledger_error(error: LedgerError) -> Response:
    """Answer what the ledger could not do; 503 for all but its definite refusals."""
    refused = refusal(error)
    if refused is not None:
        status, kind, advice = refused
        return answer_problem(Problem(status, kind, f"{error}{advice}"))
    return answer_problem(
        unavailable("The ledger does not answer. Send it again, with the same Idempotency-Key if it has one.")
    )


def answer_refusal(refused: Refusal) -> Response:
    """Answer what the idempotency engine refuses; its code is the problem's kind."""
    headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
    return answer_problem(Problem(refused.status, refused.code, refused.detail, headers))


def _unauthorized(kind: str, detail: str) -> Problem:
    return Problem(401, kind, detail, {"WWW-Authenticate": 'Bearer realm="firstseen"'})


def _serve(operation: Operation, **path: str) -> Response:
    answer = operation.view(**read(operation, path, request))
    if isinstance(answer, models.Shape):
        return make_response(answer.as_json())
    shape, status, headers = answer
    return make_response(shape.as_json(), status, headers)


def _off(**_: str) -> NoReturn:
    raise Problem(
        404, "api-off", "The API is off: set FIRSTSEEN_API_KEYS, such as `ops=<key>`, to turn it on."
    )
