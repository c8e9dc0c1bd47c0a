"""The engine: a decorator around a view that runs it once for each key, whatever fails in between."""

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
from receiver.ledger.errors import LedgerError, LedgerUnavailable
from receiver.ledger.idempotency_keys import (
    Held,
    Mismatch,
    Running,
    Slot,
    StoredAnswer,
    drop_key,
    finish_key,
    open_key,
)
from receiver.ledger.store import Store

# A request's body, read once and whole or refused.


BODY_MAX = 1024 * 1024
"""Bytes of a request that is guarded by a key: what is fingerprinted is held in memory."""


def read_body(request: Request, limit: int = BODY_MAX) -> bytes:
    """Return the body and leave it readable for the view.

    Raises Refusal: 413 for more than `limit` bytes, 400 for a body that breaks off or is badly chunked.

    werkzeug cuts a chunked body at its own limit without a word, so that limit is set one byte higher.
    """
    request.max_content_length = limit + 1
    try:
        body = request.get_data()
    except RequestEntityTooLarge:
        raise _too_large(limit) from None
    except OSError:
        raise Refusal(400, "body_broken", "The body breaks off or is badly chunked; send it again.") from None
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> Refusal:
    return Refusal(413, "body_too_large", f"The body is longer than {limit} bytes.")


LEASE = timedelta(seconds=30)
"""How long a view may take. A process that dies inside blocks its key for this long, and no longer."""

ANSWER_MAX = 1024 * 1024
"""Bytes of a stored answer; a view that answers more is rolled back rather than half remembered."""

HEADERS_KEPT = frozenset({"content-type", "location", "content-language", "etag", "last-modified"})
"""What is stored of an answer's headers: what says how to read it. Never cookies."""

POLL = 0.05
"""Seconds between two looks at a key that another request holds."""

PATIENCE = 2
"""Leases that a duplicate waits: the first one's may run out, and then another's."""


class TakenOver(Exception):
    """Another request holds the key now; what this one did is rolled back."""


View = Callable[..., Any]

Guarded = Callable[..., Response]


class Engine:
    """Guards views by one policy, with keys in the ledger's database.

    A guarded view does all of its work in that database through `g.ledger`: its transaction is the engine's,
    and a holder whose lease was taken over rolls back whole. An answer of 400 or more leaves no such work.
    `scopes` names the policy's scope parts; `refuse` turns a Refusal into the API's own error; `body_max` is
    in bytes. The request must be authenticated before. Raises LedgerUnavailable when the database does not
    answer: the application words it as 503.
    """

    def __init__(  # noqa: PLR0913 - all but two have names at the call
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

    def guard(self, view: View) -> Guarded:
        """Wrap a view."""

        @functools.wraps(view)
        def guarded(*arguments: Any, **named: Any) -> Response:
            run = functools.partial(view, *arguments, **named)
            try:
                slot = self._slot()
                return self._unkeyed(run) if slot is None else self._keyed(slot, run)
            except Refusal as refusal:
                return self._refuse(refusal)

        return guarded

    def claimed(self, slot: Slot) -> None:
        """Do nothing, once a key is ours and before its view runs. The sandbox lingers here."""

    def overlaps(self, slot: Slot) -> bool:  # noqa: ARG002 - for those who override it
        """Say whether a request may run beside the one that holds its key. Never, but for the sandbox."""
        return False

    def _slot(self) -> Slot | None:
        covered = self.policy.covered(request.method, request.path)
        key = read_key(self.policy, request) if covered else None
        body = read_body(request, self.body_max)
        if key is None:
            return None
        return Slot(
            self.policy.name,
            scope(self.policy, request, self._scopes),
            key,
            fingerprint(self.policy, request, body),
            self.policy.life,
            separate=self.policy.mismatch is None,
        )

    def _unkeyed(self, run: View) -> Response:
        with self.store.write() as connection:
            return _run(self.store, connection, run)

    def _keyed(self, slot: Slot, run: View) -> Response:
        deadline = time.monotonic() + PATIENCE * self.lease.total_seconds()
        while True:
            match open_key(self.store, slot, lease=self.lease):
                case Held() as held:
                    self.claimed(slot)
                    response = self._once(held, run)
                    if response is not None:
                        return response
                case StoredAnswer() as answer:
                    return self._replay(answer)
                case Mismatch():
                    raise self._misused()
                case Running():
                    if self.overlaps(slot):
                        return self._unkeyed(run)
                    if self.policy.locked or time.monotonic() > deadline:
                        raise self._locked()
                    time.sleep(POLL)

    def _once(self, held: Held, run: View) -> Response | None:
        """Run the view and store its answer in one transaction; None when the key was taken over."""
        try:
            with self.store.write() as connection:
                response = _run(self.store, connection, run)
                self._keep(connection, held, response)
        except TakenOver:
            return None
        except Exception:
            # Its work is gone, and so must be its hold on the key: a stored answer is not touched by this,
            # and where the database is away the lease runs out.
            with suppress(LedgerError), self.store.write() as connection:
                drop_key(connection, held)
            raise
        return response

    def _keep(self, connection: Connection, held: Held, response: Response) -> None:
        stored = self.policy.stores(response.status_code)
        kept = finish_key(connection, held, _answer(response)) if stored else drop_key(connection, held)
        if not kept:
            raise TakenOver

    def _misused(self) -> Refusal:
        error = self.policy.mismatch or Error(status=409, code="idempotency_key_mismatch")
        detail = f"This {self.policy.header} was used for another request; take a new key for this one."
        return Refusal(error.status, error.code, detail)

    def _locked(self) -> Refusal:
        error = self.policy.locked or Error(status=409, code="idempotency_key_locked")
        detail = "A request with this key is still running; send it again shortly."
        return Refusal(error.status, error.code, detail, retry_after=1)

    def _replay(self, answer: StoredAnswer) -> Response:
        response = Response(answer.body, self.policy.replay.status or answer.status)
        response.headers.pop("Content-Type", None)
        for name, value in answer.headers:
            response.headers.add(name, value)
        if self.policy.replay.header:
            response.headers[self.policy.replay.header] = "true"
        return response


def _run(store: Store, connection: Connection, run: View) -> Response:
    """Run a view inside a savepoint: an answer that says no leaves nothing behind."""
    savepoint = connection.begin_nested()
    g.ledger = store.joined(connection)
    try:
        response = make_response(run())
    except (LedgerUnavailable, SQLAlchemyError):
        # No answer of the view's: nobody may store it, whatever the application makes of it.
        raise
    except Exception as error:  # noqa: BLE001 - the application words it, or raises it again
        savepoint.rollback()
        return make_response(current_app.handle_user_exception(error))
    if response.status_code >= 400:  # noqa: PLR2004 - client and server errors
        savepoint.rollback()
    else:
        savepoint.commit()
    return response


def _answer(response: Response) -> StoredAnswer:
    body = response.get_data()
    if len(body) > ANSWER_MAX:
        detail = f"The answer is longer than {ANSWER_MAX} bytes and cannot be kept; nothing was done."
        raise Refusal(500, "answer_too_large", detail)
    kept = tuple((name, value) for name, value in response.headers.items() if name.lower() in HEADERS_KEPT)
    return StoredAnswer(response.status_code, kept, body)
