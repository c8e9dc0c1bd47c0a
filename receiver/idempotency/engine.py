"""The engine: a decorator around a view that runs it once for each key, whatever fails in between."""

import functools
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from flask import Response, current_app, g, make_response, request
from sqlalchemy import Connection

from config.dialects import Error
from receiver.idempotency.policy import Policy, Refusal, Scope, fingerprint, read_key, scope
from receiver.ledger import LedgerError, Store
from receiver.ledger.keys import Answer, Held, Mismatch, Opened, Running, Slot, drop_key, finish_key, open_key

LEASE = timedelta(seconds=30)
"""How long a view may take. A process that dies inside blocks its key for this long, and no longer."""

BODY_MAX = 1024 * 1024
"""Bytes of a stored answer; a view that answers more is rolled back rather than half remembered."""

HEADERS_KEPT = frozenset({"content-type", "location", "content-language", "etag", "last-modified"})
POLL = 0.05


class TakenOver(Exception):
    """Another request holds the key now; what this one did is rolled back."""


View = Callable[..., Any]


class Engine:
    """Guards views by one policy, with keys in the ledger's database.

    A guarded view does all of its work in that database through `g.ledger`: its transaction is the engine's,
    and a holder whose lease was taken over rolls back whole. `scopes` names the policy's scope parts;
    `refuse` turns a Refusal into the API's own error. The request must be authenticated before.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        *,
        scopes: dict[str, Scope],
        refuse: Callable[[Refusal], Response],
        lease: timedelta = LEASE,
    ) -> None:
        self.store, self.policy, self.lease = store, policy, lease
        self._scopes, self._refuse = scopes, refuse

    def guard(self, view: View) -> View:
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

    def _slot(self) -> Slot | None:
        covered = self.policy.covered(request.method, request.path)
        key = read_key(self.policy, request) if covered else None
        if key is None:
            return None
        return Slot(
            self.policy.name,
            scope(self.policy, request, self._scopes),
            key,
            fingerprint(self.policy, request, request.get_data()),
            self.policy.life,
            separate=self.policy.mismatch is None,
        )

    def _unkeyed(self, run: View) -> Response:
        with self.store.write() as connection:
            response, _ = _run(self.store, connection, run)
        return response

    def _keyed(self, slot: Slot, run: View) -> Response:
        while True:
            match self._open(slot):
                case Held() as held:
                    response = self._once(held, run)
                    if response is not None:
                        return response
                case Answer() as answer:
                    return self._replay(answer)
                case Mismatch():
                    raise self._misused()
                case Running():
                    raise self._locked()

    def _open(self, slot: Slot) -> Opened:
        """Claim the key; while another request holds it, wait for its answer if the policy says so."""
        deadline = time.monotonic() + 2 * self.lease.total_seconds()
        while True:
            opened = open_key(self.store, slot, lease=self.lease)
            waits = isinstance(opened, Running) and self.policy.locked is None
            if not waits or time.monotonic() > deadline:
                return opened
            time.sleep(POLL)

    def _once(self, held: Held, run: View) -> Response | None:
        """Run the view and store its answer in one transaction; None when the key was taken over."""
        try:
            with self.store.write() as connection:
                response, answer = _run(self.store, connection, run)
                self._keep(connection, held, answer)
        except TakenOver:
            return None
        except LedgerError:
            raise
        except Exception:
            # The view failed in a way nobody words: its work is gone, and so must be its hold on the key.
            with self.store.write() as connection:
                drop_key(connection, held)
            raise
        return response

    def _keep(self, connection: Connection, held: Held, answer: Answer) -> None:
        stored = self.policy.stores(answer.status)
        kept = finish_key(connection, held, answer) if stored else drop_key(connection, held)
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

    def _replay(self, answer: Answer) -> Response:
        response = Response(answer.body, self.policy.replay.status or answer.status)
        for name, value in answer.headers:
            response.headers[name] = value
        if self.policy.replay.header:
            response.headers[self.policy.replay.header] = "true"
        return response


def _run(store: Store, connection: Connection, run: View) -> tuple[Response, Answer]:
    """Run a view inside a savepoint: an answer that says no leaves nothing behind."""
    savepoint = connection.begin_nested()
    g.ledger = store.joined(connection)
    try:
        response = make_response(run())
    except Exception as error:  # noqa: BLE001 - the application words it, or raises it again
        savepoint.rollback()
        response = make_response(current_app.handle_user_exception(error))
    else:
        if response.status_code >= 400:  # noqa: PLR2004 - client and server errors
            savepoint.rollback()
        else:
            savepoint.commit()
    body = response.get_data()
    if len(body) > BODY_MAX:
        raise Refusal(
            500, "answer_too_large", f"The answer is longer than {BODY_MAX} bytes; nothing was done."
        )
    headers = tuple((name, value) for name, value in response.headers.items() if name.lower() in HEADERS_KEPT)
    return response, Answer(response.status_code, headers, body)
