"""/webhooks/<source>: read, verify, understand, record, dispatch, answer; and shake hands."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Flask, Response, request
from flask import Request as FlaskRequest
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import ClientDisconnected, MethodNotAllowed
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import get_host

from config.sources import Source
from receiver.dispatch import Background, Dispatcher
from receiver.endpoints import Endpoint
from receiver.handshakes import HandshakeAnswer
from receiver.ledger.counters import Rejected
from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.intake import Recorder, Verdict
from receiver.problems import Problem, unavailable
from receiver.signatures import CannotVerify, InvalidSignature, Request
from receiver.telemetry import note_recorded, note_refused

# The body of the present request, exact and bounded.


def read_at_most(limit: int) -> bytes:
    """Return the body, or `limit` bytes of a longer one; raises ClientDisconnected when it ends too early.

    werkzeug's own `max_content_length` silently cuts a chunked body, and a cut body may not be answered 200.
    """
    length = request.environ.get("CONTENT_LENGTH", "")
    chunked = "HTTP_TRANSFER_ENCODING" in request.environ
    if chunked or not (length.isascii() and length.isdecimal()):
        return _read_stream(limit)
    if int(length) > limit:
        return bytes(limit)
    return _read_exactly(int(length))


def _read_exactly(length: int) -> bytes:
    # No stream in between: that costs as much as the signature.
    body: bytes = request.environ["wsgi.input"].read(length)
    while len(body) < length:
        part = request.environ["wsgi.input"].read(length - len(body))
        if not part:
            raise ClientDisconnected
        body += part
    return body


def _read_stream(limit: int) -> bytes:
    parts, room = [], limit
    while room and (part := request.stream.read(room)):
        parts.append(part)
        room -= len(part)
    return b"".join(parts)


# The URL that a provider called and the address it came from, behind proxies that nobody trusts unasked.


PATH_SAFE = "!$&'()*+,/:;=@%~"

CONTENT = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}
"""Headers that WSGI spells without HTTP_."""


def trust_proxies(app: Flask, hops: int) -> None:
    """Read scheme, host and client address from the headers of `hops` proxies; with 0, from none.

    Prefixes are left out: a proxy that does not set that header passes on whatever a client wrote there.
    """
    if hops:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops, x_prefix=0)  # type: ignore[method-assign]


def delivered_url(request: FlaskRequest, public_url: str) -> str:
    """Return the URL as the provider wrote it, in full.

    `public_url` stands in the place of scheme, host and whatever a proxy cuts off the path. The query is the
    raw one: werkzeug's own `url` is decoded where it can be, and providers sign what they sent.
    """
    base = public_url or _base(
        request.scheme, request.environ.get("HTTP_HOST"), request.server, request.root_path
    )
    query = request.query_string.decode("latin-1")
    return f"{base.rstrip('/')}{_quoted(request.path)}{'?' if query else ''}{query}"


def arrived_headers(environ: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Return a request's headers as WSGI has them, in latin-1; repeated ones are joined there already."""
    given = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name[:5] == "HTTP_"]
    # What a client spells with an underscore must not stand beside the server's own.
    others = [pair for pair in given if pair[0] not in CONTENT]
    return (*others, *((name, value) for name, key in CONTENT.items() if (value := environ.get(key))))


@lru_cache(maxsize=256)
def _base(scheme: str, host: str | None, server: tuple[str, int | None] | None, root: str) -> str:
    return f"{scheme}://{get_host(scheme, host, server)}{_quoted(root)}"


@lru_cache(maxsize=256)
def _quoted(path: str) -> str:
    return quote(path, safe=PATH_SAFE)


log = logging.getLogger(__name__)

METHODS = ("POST", "GET", "HEAD", "OPTIONS")
"""All but POST are for handshakes only; a source without one answers them 405."""

NO_HANDSHAKE = (
    "This is not the provider's handshake: its challenge is missing, or its verify token is another than the"
    " source's."
)


class Ingress:
    """The door for deliveries. What it acknowledges is committed; what it refuses leaves only a count."""

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
        """Answer one delivery, or a handshake."""
        endpoint = self._known(source)
        delivered = self._read(endpoint)
        if handshake := endpoint.handshakes.before_verifying(delivered):
            return _shaken(handshake)
        if self._verify(endpoint, delivered):
            return Response(status=endpoint.source.provider.success_status)
        if handshake := endpoint.handshakes.after_verifying(delivered):
            return _shaken(handshake)
        verdicts = self._record(endpoint, delivered)
        note_recorded(source, verdicts)
        self._dispatcher.nudge(verdict.event for verdict in verdicts if verdict.nudge)
        return _answer(endpoint, verdicts)

    def _known(self, source: str) -> Endpoint:
        endpoint = self._endpoints.get(source)
        if endpoint is None:
            raise Problem(404, "unknown-source", "There is no source of this name in this deployment.")
        return endpoint

    def _read(self, endpoint: Endpoint) -> Request:
        body = read_at_most(endpoint.source.max_body + 1)
        if len(body) > endpoint.source.max_body:
            self._note(endpoint.source.name, "too_large")
            raise Problem(413, "too-large", f"The body is longer than {endpoint.source.max_body} bytes.")
        url = delivered_url(request, self._public_url)
        return Request(request.method, url, arrived_headers(request.environ), body)

    def _verify(self, endpoint: Endpoint, delivered: Request) -> bool:
        """Return whether it asked for a confirmation, now given; raise Problem for what is not genuine."""
        if delivered.method in endpoint.handshakes.methods - {"POST"}:
            raise Problem(403, "no-handshake", NO_HANDSHAKE)
        if delivered.method != "POST":
            raise MethodNotAllowed(sorted({"POST", *endpoint.handshakes.methods}))
        if endpoint.source.problem:
            self._note(endpoint.source.name, "no_secret")
            raise unavailable(
                "This source has no secret yet, so nothing can be verified; `firstseen doctor` says why."
            )
        try:
            endpoint.verify(delivered, time.time())
            return endpoint.confirm(delivered)
        except (InvalidSignature, CannotVerify) as error:
            raise self._doubt(endpoint.source, error) from error

    def _doubt(self, source: Source, error: InvalidSignature | CannotVerify) -> Problem:
        """Return 401 for what is not genuine, and 503 for what nobody can tell now."""
        if isinstance(error, InvalidSignature):
            self._note(source.name, error.reason)
            return Problem(401, "invalid-signature", str(error), bare=source.provider.empty_rejection)
        self._note(source.name, "cannot_verify")
        log.warning("A delivery to %s could not be verified: %s.", source.name, error)
        return unavailable("It cannot be verified now; nothing was recorded. Send it again.")

    def _record(self, endpoint: Endpoint, delivered: Request) -> Sequence[Verdict]:
        try:
            return self._recorder.record(endpoint.deliveries(delivered, request.remote_addr))
        except LedgerUnavailable as error:
            raise unavailable("The ledger does not answer; nothing was recorded. Send it again.") from error
        except SQLAlchemyError as error:
            log.exception("A delivery to %s could not be recorded.", endpoint.source.name)
            raise unavailable("The ledger could not record this; nothing was lost. Send it again.") from error

    def _note(self, source: str, reason: str) -> None:
        note_refused(source, reason)
        self._rejections.put(Rejected(source, reason, request.remote_addr))


def _answer(endpoint: Endpoint, verdicts: Sequence[Verdict]) -> Response:
    """Answer the first delivery and every duplicate alike; a header tells them apart."""
    provider = endpoint.source.provider
    events = [{"id": str(verdict.event), "event_id": verdict.event_id} for verdict in verdicts]
    if provider.success_body is not None:
        answer = Response(provider.success_body, content_type=provider.success_type)
    elif provider.is_batch:
        answer = _json({"status": "accepted", "events": events})
    else:
        answer = _json({"status": "accepted", **events[0]})
    answer.status_code = provider.success_status
    if verdicts and not any(verdict.first_seen for verdict in verdicts):
        answer.headers["Idempotent-Replayed"] = "true"
    return answer


def _json(told: Mapping[str, object]) -> Response:
    # Flask's own way costs three times as much: it looks up what this application never changes.
    return Response(json.dumps(told, separators=(",", ":")) + "\n", content_type="application/json")


def _shaken(handshake: HandshakeAnswer) -> Response:
    # What is repeated of a request is never to be taken for a page.
    headers = {**handshake.headers, "X-Content-Type-Options": "nosniff"}
    return Response(handshake.body, handshake.status, headers, content_type=handshake.content_type)
