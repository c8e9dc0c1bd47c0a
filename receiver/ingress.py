"""POST /webhooks/<source>: read, verify, extract, record, answer.

An acknowledged delivery is committed; a refused one leaves only a count. Handshakes are answered on the way
and never recorded.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote

from flask import Blueprint, Response, request
from flask import Request as FlaskRequest
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import ClientDisconnected, MethodNotAllowed
from werkzeug.sansio.utils import get_host

from receiver.dispatch import Background, Dispatcher
from receiver.endpoints import Endpoint
from receiver.handshakes import HandshakeAnswer
from receiver.ledger.counters import Rejected
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Delivery, Recorder, Verdict
from receiver.problems import Problem, unavailable
from receiver.signatures import CannotVerify, InvalidSignature, Request
from receiver.telemetry import note_recorded, note_refused

log = logging.getLogger(__name__)

METHODS = ("POST", "GET", "HEAD", "OPTIONS")
"""All but POST are for handshakes only; a source without one answers them 405."""

NO_HANDSHAKE = (
    "This is not the provider's handshake: its challenge is missing, or its verify token is another than the"
    " source's."
)

PATH_SAFE = "!$&'()*+,/:;=@%~"
"""The characters that stand in a path as they are."""

UNPREFIXED = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
"""Headers that WSGI spells without HTTP_."""


class Ingress:
    """The view that takes deliveries, for every source of a deployment."""

    def __init__(
        self,
        endpoints: Mapping[str, Endpoint],
        recorder: Recorder,
        dispatcher: Dispatcher,
        rejections: Background[Rejected],
        public_url: str = "",
    ) -> None:
        self._endpoints, self._recorder = endpoints, recorder
        self._dispatcher, self._rejections = dispatcher, rejections
        self._public_url = public_url

    def views(self) -> Blueprint:
        """Return the route to register."""
        views = Blueprint("ingress", __name__)
        views.add_url_rule(
            "/webhooks/<source>", view_func=self.receive, methods=METHODS, provide_automatic_options=False
        )
        return views

    def receive(self, source: str) -> Response:
        """Answer one delivery, or a handshake. Raises Problem for a refused one."""
        endpoint = self._endpoints.get(source)
        if endpoint is None:
            raise Problem(404, "unknown-source", "There is no source of this name in this deployment.")
        delivered = self._read(endpoint)
        if handshake := endpoint.handshakes.before_verifying(delivered):
            return _answer_handshake(handshake)
        if self._verify(endpoint, delivered):
            return Response(status=endpoint.source.provider.success_status)
        if handshake := endpoint.handshakes.after_verifying(delivered):
            return _answer_handshake(handshake)
        deliveries = endpoint.extract(delivered, request.remote_addr)
        verdicts = self._record(source, deliveries)
        # After the commit, as a worker that wakes earlier finds no row.
        self._dispatcher.nudge(verdict.event for verdict in verdicts if verdict.nudge)
        return _answer(endpoint, verdicts)

    def _read(self, endpoint: Endpoint) -> Request:
        """Return the request as it came; raise Problem 413 for a body over the source's limit."""
        body = _read_body(endpoint.source.max_body + 1)
        if len(body) > endpoint.source.max_body:
            # Refused here and not by the server, so that it is counted and answered as a problem document.
            self._note_refusal(endpoint.source.name, "too_large")
            raise Problem(413, "too-large", f"The body is longer than {endpoint.source.max_body} bytes.")
        environ = request.environ
        sent = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name[:5] == "HTTP_"]
        # A client can spell `Content_Type`: that must not stand beside the server's own.
        headers = [pair for pair in sent if pair[0] not in UNPREFIXED]
        headers += [(name, value) for name, key in UNPREFIXED.items() if (value := environ.get(key))]
        return Request(request.method, _url(request, self._public_url), tuple(headers), body)

    def _verify(self, endpoint: Endpoint, delivered: Request) -> bool:
        """Return whether it asked for a confirmation, now given; raise Problem unless it is genuine."""
        source = endpoint.source
        if delivered.method in endpoint.handshakes.methods - {"POST"}:
            raise Problem(403, "no-handshake", NO_HANDSHAKE)
        if delivered.method != "POST":
            raise MethodNotAllowed(sorted({"POST", *endpoint.handshakes.methods}))
        if source.problem:
            self._note_refusal(source.name, "no_secret")
            raise unavailable(
                "This source has no secret yet, so nothing can be verified; `firstseen doctor` says why."
            )
        try:
            endpoint.verify(delivered, time.time())
            return endpoint.confirm(delivered)
        except InvalidSignature as error:
            self._note_refusal(source.name, error.reason)
            bare = source.provider.empty_rejection
            raise Problem(401, "invalid-signature", str(error), bare=bare) from error
        except CannotVerify as error:
            # Genuine or not is unknown: with 503 the provider sends it again, and nothing is lost.
            self._note_refusal(source.name, "cannot_verify")
            log.warning("A delivery to %s could not be verified: %s.", source.name, error)
            raise unavailable("It cannot be verified now; nothing was recorded. Send it again.") from error

    def _note_refusal(self, source: str, reason: str) -> None:
        note_refused(source, reason)
        self._rejections.put(Rejected(source, reason, request.remote_addr))

    def _record(self, source: str, deliveries: Sequence[Delivery]) -> Sequence[Verdict]:
        """Commit the deliveries and return their verdicts; raise Problem 503 when none was recorded."""
        try:
            verdicts = self._recorder.record(deliveries)
        except LedgerUnavailable as error:
            raise unavailable("The ledger does not answer; nothing was recorded. Send it again.") from error
        except SQLAlchemyError as error:
            log.exception("A delivery to %s could not be recorded.", source)
            raise unavailable("The ledger could not record this; nothing was lost. Send it again.") from error
        note_recorded(source, verdicts)
        return verdicts


def _read_body(limit: int) -> bytes:
    """Return the body, or `limit` bytes of a longer one; raises ClientDisconnected when it ends too early."""
    # werkzeug's own `max_content_length` silently cuts a chunked body, and that must not be answered 200.
    length = request.environ.get("CONTENT_LENGTH", "")
    chunked = "HTTP_TRANSFER_ENCODING" in request.environ
    if chunked or not (length.isascii() and length.isdecimal()):
        parts, room = [], limit
        while room and (part := request.stream.read(room)):
            parts.append(part)
            room -= len(part)
        return b"".join(parts)
    if int(length) > limit:
        return bytes(limit)
    # No stream in between: that costs as much as the signature.
    body: bytes = request.environ["wsgi.input"].read(int(length))
    while len(body) < int(length):
        part = request.environ["wsgi.input"].read(int(length) - len(body))
        if not part:
            raise ClientDisconnected
        body += part
    return body


def _url(request: FlaskRequest, public_url: str) -> str:
    """Return the URL as the provider wrote it, in full.

    `public_url` replaces scheme, host and the part of the path that a proxy cuts off.
    """
    base = public_url or _base_url(
        request.scheme, request.environ.get("HTTP_HOST"), request.server, request.root_path
    )
    # The raw query: werkzeug's own `url` is decoded where it can be, and providers sign what they sent.
    query = request.query_string.decode("latin-1")
    return f"{base.rstrip('/')}{_quoted(request.path)}{'?' if query else ''}{query}"


# Cached, as every delivery to a source has the same few: quoting costs more than the rest of the URL.
@lru_cache(maxsize=256)
def _base_url(scheme: str, host: str | None, server: tuple[str, int | None] | None, root: str) -> str:
    return f"{scheme}://{get_host(scheme, host, server)}{_quoted(root)}"


@lru_cache(maxsize=256)
def _quoted(path: str) -> str:
    return quote(path, safe=PATH_SAFE)


def _answer(endpoint: Endpoint, verdicts: Sequence[Verdict]) -> Response:
    """Answer the first delivery and every duplicate alike; a header tells them apart."""
    provider = endpoint.source.provider
    events = [{"id": str(verdict.event), "event_id": verdict.event_id} for verdict in verdicts]
    if provider.success_body is not None:
        response = Response(provider.success_body, content_type=provider.success_type)
    else:
        named: Mapping[str, object] = {"events": events} if provider.is_batch else events[0]
        # Flask's own jsonify costs three times as much: it looks up what this application never changes.
        text = json.dumps({"status": "accepted", **named}, separators=(",", ":")) + "\n"
        response = Response(text, content_type="application/json")
    response.status_code = provider.success_status
    if verdicts and not any(verdict.first_seen for verdict in verdicts):
        response.headers["Idempotent-Replayed"] = "true"
    return response


def _answer_handshake(handshake: HandshakeAnswer) -> Response:
    # It repeats a part of the request, which a browser must never take for a page.
    headers = {**handshake.headers, "X-Content-Type-Options": "nosniff"}
    return Response(handshake.body, handshake.status, headers, content_type=handshake.content_type)
