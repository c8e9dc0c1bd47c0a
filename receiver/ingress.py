"""POST /webhooks/<source>: read, verify, understand, record, dispatch, answer."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flask import Blueprint, Response, jsonify, request
from sqlalchemy.exc import SQLAlchemyError

from receiver.background import Background
from receiver.dispatch import Dispatcher
from receiver.endpoints import Endpoint
from receiver.ledger import Again, LedgerUnavailable, Rejected, Store, Verdict, record
from receiver.observing import note_recorded, note_refused
from receiver.problems import Problem, unavailable
from receiver.signatures import InvalidSignature, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """What is counted off the answer's path: a flood is counted as far as there is room."""

    rejections: Background[Rejected]
    duplicates: Background[Again]


class Ingress:
    """The door for deliveries. What it acknowledges is committed; what it refuses leaves only a count."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        store: Store,
        dispatcher: Dispatcher,
        counts: Counts,
    ) -> None:
        self._endpoints, self._store = endpoints, store
        self._dispatcher, self._counts = dispatcher, counts

    def views(self) -> Blueprint:
        """Return the route to register."""
        views = Blueprint("ingress", __name__)
        views.post("/webhooks/<source>")(self.receive)
        return views

    def receive(self, source: str) -> Response:
        """Answer one delivery."""
        endpoint = self._known(source)
        delivered = self._read(endpoint)
        self._verify(endpoint, delivered)
        if handshake := endpoint.extractor.handshake(delivered):
            return Response(handshake.body, handshake.status, content_type=handshake.content_type)
        verdicts = self._record(endpoint, delivered)
        note_recorded(source, verdicts)
        self._dispatcher.nudge(verdict.event for verdict in verdicts if verdict.nudge)
        self._count_duplicates(source, verdicts)
        return _answer(endpoint, verdicts)

    def _known(self, source: str) -> Endpoint:
        endpoint = self._endpoints.get(source)
        if endpoint is None:
            raise Problem(404, "unknown-source", "There is no source of this name in this deployment.")
        if endpoint.source.problem:
            self._note(source, "no_secret")
            raise unavailable(
                "This source has no secret yet, so nothing can be verified; `firstseen doctor` says why."
            )
        return endpoint

    def _read(self, endpoint: Endpoint) -> Request:
        body = _read_at_most(endpoint.source.max_body + 1)
        if len(body) > endpoint.source.max_body:
            self._note(endpoint.source.name, "too_large")
            raise Problem(413, "too-large", f"The body is longer than {endpoint.source.max_body} bytes.")
        return Request(request.method, request.url, tuple(request.headers.items()), body)

    def _verify(self, endpoint: Endpoint, delivered: Request) -> None:
        try:
            endpoint.verify(delivered, time.time())
        except InvalidSignature as error:
            self._note(endpoint.source.name, error.reason)
            raise Problem(401, "invalid-signature", str(error)) from None

    def _record(self, endpoint: Endpoint, delivered: Request) -> list[Verdict]:
        try:
            return record(self._store, endpoint.deliveries(delivered, request.remote_addr))
        except LedgerUnavailable as error:
            raise unavailable("The ledger does not answer; nothing was recorded. Send it again.") from error
        except SQLAlchemyError as error:
            log.exception("A delivery to %s could not be recorded.", endpoint.source.name)
            raise unavailable("The ledger could not record this; nothing was lost. Send it again.") from error

    def _note(self, source: str, reason: str) -> None:
        note_refused(source, reason)
        self._counts.rejections.put(Rejected(source, reason, request.remote_addr))

    def _count_duplicates(self, source: str, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            if not verdict.first_seen:
                self._counts.duplicates.put(Again(source))


def _read_at_most(limit: int) -> bytes:
    # werkzeug's own max_content_length silently cuts a chunked body, and a cut body may not be answered 200.
    if (request.content_length or 0) > limit:
        return bytes(limit)
    parts, room = [], limit
    while room and (part := request.stream.read(room)):
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


def _answer(endpoint: Endpoint, verdicts: Sequence[Verdict]) -> Response:
    """Answer the first delivery and every duplicate alike; a header tells them apart."""
    events = [{"id": str(verdict.event), "event_id": verdict.event_id} for verdict in verdicts]
    if endpoint.source.provider.is_batch:
        answer = jsonify(status="accepted", events=events)
    else:
        answer = jsonify(status="accepted", **events[0])
    answer.status_code = endpoint.source.provider.success_status
    if verdicts and not any(verdict.first_seen for verdict in verdicts):
        answer.headers["Idempotent-Replayed"] = "true"
    return answer
