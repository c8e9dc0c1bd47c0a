"""A delivery on its way in: verify, extract, record, answer. No web framework is known here but in one view.

`Ingress.prepare` verifies a whole request and extracts its events, `Ingress.answer` answers once they are
recorded. The gateway calls both around a group commit; the Flask view does so around a commit of its own.
An acknowledged delivery is committed; a refused one leaves only a count.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from flask import Blueprint, Response, g
from flask import Request as FlaskRequest
from flask import request as flask_request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import ClientDisconnected
from werkzeug.sansio.utils import get_host

from receiver.dispatch import Background
from receiver.endpoints import Endpoint
from receiver.handshakes import HandshakeAnswer
from receiver.ledger.counters import Rejected
from receiver.ledger.errors import CommitUncertain, LedgerUnavailable
from receiver.ledger.intake import Delivery, Recorder, Verdict
from receiver.problems import Answer, Problem, http_problem, unavailable
from receiver.signatures import CannotVerify, InvalidSignature, Request
from receiver.telemetry import RequestFacts

log = logging.getLogger(__name__)

# All but POST are for handshakes only; a source without one answers them 405.
METHODS = ("POST", "GET", "HEAD", "OPTIONS")

NO_HANDSHAKE = (
    "This is not the provider's handshake: its challenge is missing, or its verify token is another than the"
    " source's."
)

# The characters that stand in a path as they are.
PATH_SAFE = "!$&'()*+,/:;=@%~"

# Headers that WSGI spells without HTTP_.
UNPREFIXED = {"CONTENT-TYPE": "CONTENT_TYPE", "CONTENT-LENGTH": "CONTENT_LENGTH"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The events of a verified request, not recorded yet."""

    endpoint: Endpoint
    deliveries: Sequence[Delivery]


class Ingress:
    """Takes deliveries for every source of a deployment."""

    def __init__(
        self, endpoints: Mapping[str, Endpoint], rejections: Background[Rejected], public_url: str = ""
    ) -> None:
        self._endpoints, self._rejections = endpoints, rejections
        self.public_url = public_url

    @property
    def largest_body(self) -> int:
        """The bytes of the largest body that any source takes."""
        return max((endpoint.source.max_body for endpoint in self._endpoints.values()), default=0)

    @property
    def slow_sources(self) -> list[str]:
        """The sources whose verification may wait for the network, or for a user's own code."""
        return [name for name, endpoint in self._endpoints.items() if endpoint.may_wait]

    def endpoint(self, source: str) -> Endpoint:
        """Return the endpoint of a source; raise Problem 404 where there is none."""
        found = self._endpoints.get(source)
        if found is None:
            raise Problem(404, "unknown-source", "There is no source of this name in this deployment.")
        return found

    def prepare(
        self, endpoint: Endpoint, request: Request, address: str | None, facts: RequestFacts
    ) -> Prepared | Answer:
        """Verify a whole request and extract its events, or answer a handshake; raise Problem to refuse."""
        if handshake := endpoint.handshakes.before_verifying(request):
            return _answer_handshake(handshake)
        if self._verify(endpoint, request, address, facts):
            return Answer(endpoint.source.provider.success_status, "text/plain; charset=utf-8", b"")
        if handshake := endpoint.handshakes.after_verifying(request):
            return _answer_handshake(handshake)
        return Prepared(endpoint, endpoint.extract(request, address))

    def answer(self, prepared: Prepared, verdicts: Sequence[Verdict], facts: RequestFacts) -> Answer:
        """Answer recorded events: the first delivery and every duplicate alike; a header tells them apart."""
        provider = prepared.endpoint.source.provider
        facts.note_recorded(prepared.endpoint.source.name, prepared.deliveries, verdicts)
        known = bool(verdicts) and not any(verdict.first_seen for verdict in verdicts)
        headers = {"Idempotent-Replayed": "true"} if known else {}
        if provider.success_body is not None:
            body = provider.success_body.encode()
            return Answer(provider.success_status, provider.success_type, body, headers)
        events = [{"id": str(verdict.event), "event_id": verdict.event_id} for verdict in verdicts]
        named: Mapping[str, object] = {"events": events} if provider.is_batch else events[0]
        text = _encode({"status": "accepted", **named}) + "\n"
        return Answer(provider.success_status, "application/json", text.encode(), headers)

    def failure(self, prepared: Prepared, error: Exception) -> Problem:
        """Return the 503 for events that could not be recorded; log it, unless the ledger was just away."""
        if isinstance(error, CommitUncertain):
            return unavailable("The ledger does not answer in time; it may have this or not. Send it again.")
        if isinstance(error, LedgerUnavailable):
            return unavailable("The ledger does not answer; nothing was recorded. Send it again.")
        log.error("A delivery to %s could not be recorded.", prepared.endpoint.source.name, exc_info=error)
        return unavailable("The ledger could not record this; nothing was lost. Send it again.")

    def refuse(self, endpoint: Endpoint, reason: str, address: str | None, facts: RequestFacts) -> None:
        """Count a refusal of a source's delivery, by its reason."""
        facts.note_refused(endpoint.source.name, reason)
        self._rejections.put(Rejected(endpoint.source.name, reason, address))

    def flush(self) -> None:
        """Write the refusals that are counted in memory."""
        self._rejections.flush()

    def too_large(self, endpoint: Endpoint, address: str | None, facts: RequestFacts) -> Problem:
        """Count a body over the source's limit and return its 413."""
        self.refuse(endpoint, "too_large", address, facts)
        return Problem(413, "too-large", f"The body is longer than {endpoint.source.max_body} bytes.")

    def _verify(self, endpoint: Endpoint, request: Request, address: str | None, facts: RequestFacts) -> bool:
        """Return whether it asked for a confirmation, now given; raise Problem unless it is genuine."""
        source = endpoint.source
        if request.method in endpoint.handshakes.methods - {"POST"}:
            raise Problem(403, "no-handshake", NO_HANDSHAKE)
        if request.method != "POST":
            raise http_problem(405, {"Allow": ", ".join(sorted({"POST", *endpoint.handshakes.methods}))})
        if source.problem:
            self.refuse(endpoint, "no_secret", address, facts)
            raise unavailable(
                "This source has no secret yet, so nothing can be verified; `firstseen doctor` says why."
            )
        try:
            endpoint.verify(request, time.time())
            return endpoint.confirm(request)
        except InvalidSignature as error:
            self.refuse(endpoint, error.reason, address, facts)
            bare = source.provider.empty_rejection
            raise Problem(401, "invalid-signature", str(error), bare=bare) from error
        except CannotVerify as error:
            # Genuine or not is unknown: with 503 the provider sends it again, and nothing is lost.
            self.refuse(endpoint, "cannot_verify", address, facts)
            log.warning("A delivery to %s could not be verified: %s.", source.name, error)
            raise unavailable("It cannot be verified now; nothing was recorded. Send it again.") from error


def ingress_views(ingress: Ingress, recorder: Recorder) -> Blueprint:
    """Return the route for WSGI servers other than the gateway: each request commits by itself."""
    views = Blueprint("ingress", __name__)

    @views.route("/webhooks/<source>", methods=METHODS, provide_automatic_options=False)
    def receive(source: str) -> Response:
        facts: RequestFacts = g.facts
        address = flask_request.remote_addr
        endpoint = ingress.endpoint(source)
        body = _read_body(flask_request, endpoint.source.max_body + 1)
        if len(body) > endpoint.source.max_body:
            # Refused here and not by the server, so that it is counted and answered as a problem document.
            raise ingress.too_large(endpoint, address, facts)
        delivered = _from_wsgi(flask_request, ingress.public_url, body)
        prepared = ingress.prepare(endpoint, delivered, address, facts)
        if isinstance(prepared, Answer):
            return prepared.response()
        try:
            verdicts = recorder.record(prepared.deliveries)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            raise ingress.failure(prepared, error) from error
        return ingress.answer(prepared, verdicts, facts).response()

    return views


def _from_wsgi(request: FlaskRequest, public_url: str, body: bytes) -> Request:
    environ = request.environ
    sent = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name[:5] == "HTTP_"]
    # A client can spell `Content_Type`: that must not stand beside the server's own.
    headers = [pair for pair in sent if pair[0] not in UNPREFIXED]
    headers += [(name, value) for name, key in UNPREFIXED.items() if (value := environ.get(key))]
    base = public_url or base_url(request.scheme, environ.get("HTTP_HOST"), request.server, request.root_path)
    # The raw query: werkzeug's own `url` is decoded where it can be, and providers sign what they sent.
    url = full_url(base, request.path, request.query_string.decode("latin-1"))
    return Request(request.method, url, tuple(headers), body)


def _read_body(request: FlaskRequest, limit: int) -> bytes:
    """Return the body, or `limit` bytes of a longer one; raises ClientDisconnected when it ends too early."""
    # werkzeug's own `max_content_length` silently cuts a chunked body, and that must not be answered 200.
    length = request.environ.get("CONTENT_LENGTH", "")
    known = "HTTP_TRANSFER_ENCODING" not in request.environ and length.isascii() and length.isdecimal()
    if known and int(length) > limit:
        return bytes(limit)
    parts, room = [], limit
    while room and (part := request.stream.read(room)):
        parts.append(part)
        room -= len(part)
    body = b"".join(parts)
    if known and len(body) < int(length):
        raise ClientDisconnected
    return body


def full_url(base: str, path: str, query: str) -> str:
    """Return the URL as the provider wrote it, in full; `base` replaces all that stands before the path."""
    return f"{base.rstrip('/')}{_quoted(path)}{'?' if query else ''}{query}"


# Cached, as every delivery to a source has the same few: quoting costs more than the rest of the URL.
@lru_cache(maxsize=256)
def base_url(scheme: str, host: str | None, server: tuple[str, int | None] | None, root: str = "") -> str:
    """Return scheme, host and mount point of a request's URL."""
    return f"{scheme}://{get_host(scheme, host, server)}{_quoted(root)}"


@lru_cache(maxsize=256)
def _quoted(path: str) -> str:
    return quote(path, safe=PATH_SAFE)


_encode = json.JSONEncoder(separators=(",", ":")).encode


def _answer_handshake(handshake: HandshakeAnswer) -> Answer:
    # It repeats a part of the request, which a browser must never take for a page.
    headers = {**handshake.headers, "X-Content-Type-Options": "nosniff"}
    return Answer(handshake.status, handshake.content_type, handshake.body, headers)
