"""The engine: a decorator around a view that runs it once for each key, whatever fails in between.

A key is claimed under a lease, the view runs, and its work and its response are stored in one transaction. A
request that comes again gets the stored response, waits for it, or is refused, as the policy says.
"""

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from flask import Request, Response, current_app, g, make_response, request
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import RequestEntityTooLarge

from config.dialects import Error
from receiver.idempotency.policy import OF_REQUEST, KeyPolicy, Refusal, Scope, fingerprint, read_key, scope
from receiver.ledger import idempotency_keys
from receiver.ledger.errors import LedgerError, LedgerUnavailable
from receiver.ledger.store import Store

# How long a view may take. A process that dies inside blocks its key for this long, and no longer.
LEASE = timedelta(seconds=30)

# How many leases a duplicate waits: the first request's may run out, and then that of another duplicate.
PATIENCE = 2

# Seconds between two looks at a key that another request holds.
POLL = 0.05

# Bytes of a guarded request's body: it is held in memory to be fingerprinted.
BODY_MAX = 1024 * 1024

# Bytes of a stored response; a view that answers more is rolled back rather than half remembered.
ANSWER_MAX = 1024 * 1024

# The headers of a stored response: those that say how to read it. Never cookies.
HEADERS_KEPT = frozenset({"content-type", "location", "content-language", "etag", "last-modified"})

# Returns what Flask makes a response of.
View = Callable[..., Any]


class TakenOver(Exception):
    """Another request holds the key now, so the work of this one is rolled back."""


class Engine:
    """Guards views by one policy, with keys in the ledger's database.

    A guarded view does all of its work in that database through `g.ledger`: its transaction is the engine's,
    and a holder whose lease was taken over rolls back whole. An answer of 400 or more leaves no such work.
    `scopes` reads the policy's scope parts from a request; `refuse` turns a Refusal into the API's own error;
    `body_max` is in bytes. The request must be authenticated before. Raises LedgerUnavailable when the
    database does not answer: the application answers 503 in its own words.
    """

    def __init__(
        self,
        store: Store,
        policy: KeyPolicy,
        *,
        scopes: Mapping[str, Scope],
        refuse: Callable[[Refusal], Response],
        lease: timedelta = LEASE,
        body_max: int = BODY_MAX,
    ) -> None:
        unknown = set(policy.scope) - set(scopes) - OF_REQUEST
        if unknown:
            raise ValueError(f"{policy.name}: nothing says what the scope {', '.join(sorted(unknown))} is")
        self.store, self.policy, self.lease, self.body_max = store, policy, lease, body_max
        self._scopes, self._refuse = scopes, refuse

    def guard(self, view: View) -> Callable[..., Response]:
        """Wrap a view."""

        @functools.wraps(view)
        def guarded(*arguments: Any, **named: Any) -> Response:
            run = functools.partial(view, *arguments, **named)
            try:
                slot = self._slot()
                return self._run_unkeyed(run) if slot is None else self._run_keyed(slot, run)
            except Refusal as refusal:
                return self._refuse(refusal)

        return guarded

    def claimed(self, slot: idempotency_keys.Slot) -> None:
        """Do nothing, after a key is claimed and before its view runs. The sandbox waits here."""

    def overlaps(self, slot: idempotency_keys.Slot) -> bool:  # noqa: ARG002 - for subclasses
        """Whether a request may run beside the one that holds its key: never, except in the sandbox."""
        return False

    def _slot(self) -> idempotency_keys.Slot | None:
        """Return what the request claims; None where it has no key, or none counts for its path."""
        covered = self.policy.covered(request.method, request.path)
        key = read_key(self.policy, request) if covered else None
        # Without a key too: the limit holds for every request, and a broken body is refused before the view.
        body = read_body(request, self.body_max)
        if key is None:
            return None
        return idempotency_keys.Slot(
            self.policy.name,
            scope(self.policy, request, self._scopes),
            key,
            fingerprint(self.policy, request, body),
            self.policy.life,
            separate=self.policy.mismatch is None,
        )

    def _run_unkeyed(self, run: View) -> Response:
        with self.store.write() as connection:
            return _run(self.store, connection, run)

    def _run_keyed(self, slot: idempotency_keys.Slot, run: View) -> Response:
        deadline = time.monotonic() + PATIENCE * self.lease.total_seconds()
        while True:
            match idempotency_keys.open_key(self.store, slot, lease=self.lease):
                case idempotency_keys.Held() as held:
                    self.claimed(slot)
                    response = self._run_held(held, run)
                    if response is not None:
                        return response
                case idempotency_keys.StoredAnswer() as stored:
                    return self._replay(stored)
                case idempotency_keys.Mismatch():
                    error = self.policy.mismatch or Error(status=409, code="idempotency_key_mismatch")
                    used = f"This {self.policy.header} was used for another request"
                    raise Refusal(error.status, error.code, f"{used}; take a new key for this one.")
                case idempotency_keys.Running():
                    if self.overlaps(slot):
                        return self._run_unkeyed(run)
                    if self.policy.locked or time.monotonic() > deadline:
                        error = self.policy.locked or Error(status=409, code="idempotency_key_locked")
                        detail = "A request with this key is still running; send it again shortly."
                        raise Refusal(error.status, error.code, detail, retry_after=1)
                    time.sleep(POLL)

    def _run_held(self, held: idempotency_keys.Held, run: View) -> Response | None:
        """Run the view and store its response in one transaction; None when the key was taken over."""
        try:
            with self.store.write() as connection:
                response = _run(self.store, connection, run)
                self._keep(connection, held, response)
        except TakenOver:
            return None
        except Exception:
            # Its work is gone, and so must be its hold on the key: a stored response is not touched by this,
            # and where the database is away the lease runs out.
            with suppress(LedgerError), self.store.write() as connection:
                idempotency_keys.drop_key(connection, held)
            raise
        return response

    def _keep(self, connection: Connection, held: idempotency_keys.Held, response: Response) -> None:
        if self.policy.stores(response.status_code):
            body = response.get_data()
            if len(body) > ANSWER_MAX:
                detail = f"The answer is longer than {ANSWER_MAX} bytes and cannot be kept; nothing was done."
                raise Refusal(500, "answer_too_large", detail)
            headers = tuple(pair for pair in response.headers.items() if pair[0].lower() in HEADERS_KEPT)
            answer = idempotency_keys.StoredAnswer(response.status_code, headers, body)
            kept = idempotency_keys.finish_key(connection, held, answer)
        else:
            kept = idempotency_keys.drop_key(connection, held)
        if not kept:
            raise TakenOver

    def _replay(self, stored: idempotency_keys.StoredAnswer) -> Response:
        response = Response(stored.body, self.policy.replay.status or stored.status)
        # Flask adds a type of its own; the replay has exactly the headers that were stored.
        response.headers.pop("Content-Type", None)
        for name, value in stored.headers:
            response.headers.add(name, value)
        if self.policy.replay.header:
            response.headers[self.policy.replay.header] = "true"
        return response


def read_body(request: Request, limit: int = BODY_MAX) -> bytes:
    """Return the body and leave it readable for the view.

    Raises Refusal: 413 for more than `limit` bytes, 400 for a body that breaks off or is badly chunked.
    """
    # werkzeug cuts a chunked body at its own limit without an error: one byte more shows that it was longer.
    request.max_content_length = limit + 1
    body = None
    try:
        body = request.get_data()
    except RequestEntityTooLarge:
        pass  # its Content-Length says so already
    except OSError:
        raise Refusal(400, "body_broken", "The body breaks off or is badly chunked; send it again.") from None
    if body is None or len(body) > limit:
        raise Refusal(413, "body_too_large", f"The body is longer than {limit} bytes.")
    return body


def _run(store: Store, connection: Connection, run: View) -> Response:
    """Run a view inside a savepoint: an error response leaves no work behind."""
    # The transaction itself goes on: an error response may be stored in it, too.
    savepoint = connection.begin_nested()
    g.ledger = store.joined(connection)
    try:
        response = make_response(run())
    except (LedgerUnavailable, SQLAlchemyError):
        # Not a response of the view: it must not be stored, whatever the application makes of it.
        raise
    except Exception as error:  # noqa: BLE001 - the application answers it, or raises it again
        savepoint.rollback()
        return make_response(current_app.handle_user_exception(error))
    if response.status_code >= 400:  # noqa: PLR2004 - client and server errors
        savepoint.rollback()
    else:
        savepoint.commit()
    return response
