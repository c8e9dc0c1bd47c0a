"""`calls`: what a handler gets to call the outside with. Each mutating call takes effect once, or parks."""

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from config.apis import Api
from config.nesting import dump_json
from receiver.ledger.calls import compute_once
from receiver.ledger.lease import Claim
from receiver.ledger.states import Protection
from receiver.ledger.text import digest
from worker.calls.classify import Answer, protection
from worker.calls.errors import CallChanged, CallError, CallLater, CallRefused, CallRejected, ClaimLost
from worker.calls.outbound import CallArguments, OutboundRequest, build, complete, respond
from worker.calls.perform import Outbound, Performance, Step
from worker.calls.transport import NoReply, Reply
from worker.instrumentation import traced, watched_send

STEP_MAX = 200
"""Characters of a step's name: it must fit its column."""

VALUE_MAX = 1024 * 1024
"""Characters of a value's JSON."""

RETRY_GET = timedelta(seconds=5)
"""The wait after a GET that got no answer, where the API names none."""


class Calls:
    """The calls of one attempt, in their order: `calls.<api>.post(...)`, `calls.value(step, fn)`."""

    def __init__(self, outbound: Outbound, held: Claim) -> None:
        self._outbound, self._held = outbound, held
        self._steps: set[str] = set()
        self._count = 0
        self._computing: str | None = None
        self._ends = time.monotonic() + outbound.max_runtime.total_seconds()
        self.unjournaled_error: CallError | None = None
        """What a call raised that no row of the ledger speaks for: without that call it is not done."""

    def __getattr__(self, name: str) -> "ApiCalls":
        """Return the API of this name in apis.toml."""
        api = self._outbound.apis.get(name)
        if api is None:
            known = ", ".join(sorted(self._outbound.apis)) or "none"
            raise AttributeError(f"calls.{name}: apis.toml has no [{name}]; it has {known}")
        return ApiCalls(self, api)

    def value(self, step: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returned when this step first ran in this generation; it is kept as JSON."""
        self.check_time()
        stored = compute_once(
            self._outbound.store, self._held, _named(step), lambda: self._computed(step, compute)
        )
        if stored is None:
            raise ClaimLost("Another worker has taken this event over.")
        return json.loads(stored)

    def _computed(self, step: str, compute: Callable[[], Any]) -> str:
        before, self._computing = self._computing, step
        try:
            return _json(step, compute())
        finally:
            self._computing = before

    def check_time(self) -> None:
        """Raise ClaimLost when the handler has run for longer than max_runtime."""
        if time.monotonic() > self._ends:
            self.unjournaled_error = ClaimLost(
                f"The handler has run for longer than {self._outbound.max_runtime}."
            )
            raise self.unjournaled_error

    def make(
        self, api: Api, request: OutboundRequest, how: Protection, step: str, once: str | None
    ) -> httpx.Response:
        """Make the next call of this attempt."""
        self.check_time()
        if self._computing is not None:
            raise CallRefused(
                f"The call {step!r} is made inside calls.value({self._computing!r}), which later runs skip:"
                " make it by itself, since its answer is kept anyway."
            )
        if step in self._steps:
            raise CallRefused(f"Two calls of this attempt are the step {step!r}: give each its own step=.")
        self._steps.add(step)
        position, self._count = self._count, self._count + 1
        performance = Performance(self._outbound, self._held, Step(api, request, how, step, position, once))
        try:
            return performance.run()
        except CallError as error:
            if error.call is None or isinstance(error, CallChanged):
                self.unjournaled_error = error
            raise

    def read(self, api: Api, request: OutboundRequest) -> httpx.Response:
        """Send a GET, unjournaled and unkeyed. Raises CallRejected for a 4xx, CallLater for what may pass."""
        self.check_time()
        if api.problem:
            raise CallLater(api.problem, RETRY_GET)
        with watched_send(api.name, request.method):
            got = self._outbound.wires[api.name].send(traced(complete(api, request, None)), lambda: None)
        if isinstance(got, NoReply):
            raise CallLater(f"GET {request.path}: {got.error}.", RETRY_GET)
        response = respond(request, got.status, got.headers, got.body)
        if got.truncated:
            raise CallRejected(f"GET {request.path}: the answer is too long.", response)
        if got.status >= 500 or got.status == 429:  # noqa: PLR2004 - what may pass
            raise CallLater(f"GET {request.path}: it answered {got.status}.", _asked(got))
        if got.status >= 400:  # noqa: PLR2004 - what will not
            raise CallRejected(f"GET {request.path}: it answered {got.status}.", response)
        return response

    def derived(self, api: Api, method: str, path: str) -> str:
        """Name a step after API, method and path; the second of a name in one attempt is number 2."""
        bare = f"{api.name} {method} {path.partition('?')[0]}"
        if len(bare) > STEP_MAX - 10:
            bare = f"{api.name} {method} {digest([bare.encode()])[:32]}"
        names = [bare, *(f"{bare} {number}" for number in range(2, len(self._steps) + 2))]
        return next(name for name in names if name not in self._steps)


class ApiCalls:
    """One API of apis.toml, for one attempt."""

    def __init__(self, calls: Calls, api: Api) -> None:
        self._calls, self._api = calls, api

    def post(self, path: str, **arguments: Any) -> httpx.Response:
        """Send a POST once; arguments as `call` takes them."""
        return self.call("POST", path, **arguments)

    def put(self, path: str, **arguments: Any) -> httpx.Response:
        """Send a PUT once; arguments as `call` takes them."""
        return self.call("PUT", path, **arguments)

    def patch(self, path: str, **arguments: Any) -> httpx.Response:
        """Send a PATCH once; arguments as `call` takes them."""
        return self.call("PATCH", path, **arguments)

    def delete(self, path: str, **arguments: Any) -> httpx.Response:
        """Send a DELETE once; arguments as `call` takes them."""
        return self.call("DELETE", path, **arguments)

    def get(
        self, path: str, *, params: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Read something, every time anew; wrap it in `calls.value` where a retry must see the same."""
        request = build(self._api, "GET", path, CallArguments(params=params, headers=headers), "")
        return self._calls.read(self._api, request)

    def call(
        self,
        method: str,
        path: str,
        *,
        step: str | None = None,
        once: str | None = None,
        unprotected: bool = False,
        **given: Any,
    ) -> httpx.Response:
        """Make one mutating call and return its response, live or stored.

        Body and address as httpx takes them: `json`, `data`, `content`, `files`, `params`, `headers`. `step`
        names the call within its event; `once` makes it unique over all events of this API. Raises CallError.
        """
        named = self._calls.derived(self._api, method, path) if step is None else _named(step)
        request = build(self._api, method, path, CallArguments(**given), digest([named.encode()])[:32])
        how = protection(self._api.dialect, method, request.path)
        if how == Protection.UNPROTECTED and not unprotected:
            raise CallRefused(
                f"{method} {request.path}: {self._api.dialect.title} keys no such request, so nothing"
                " protects it from happening twice when its answer is lost: unprotected=True accepts that."
            )
        return self._calls.make(self._api, request, how, named, _checked(once))


def _asked(got: Reply) -> timedelta:
    """Return the wait that an answer asks for. Only a date needs a clock: the host's, within this attempt."""
    answer = Answer(got.status, {name.lower(): value for name, value in got.headers}, got.body)
    return answer.retry_after(datetime.now(UTC)) or RETRY_GET


def _named(step: str) -> str:
    if not isinstance(step, str) or not 1 <= len(step) <= STEP_MAX or not step.isprintable():
        raise CallRefused(f"A step is named by 1 to {STEP_MAX} characters that print, not by {step!r:.80}.")
    return step


def _checked(once: str | None) -> str | None:
    if once is not None and not (isinstance(once, str) and 1 <= len(once) <= STEP_MAX and once.isprintable()):
        raise CallRefused(f"once= takes 1 to {STEP_MAX} characters that print, not {once!r:.80}.")
    return once


def _json(step: str, value: Any) -> str:
    try:
        text = dump_json(value, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CallRefused(f"The value of {step!r} is not JSON: {error}.") from None
    if len(text) > VALUE_MAX:
        raise CallRefused(f"The value of {step!r} is longer than {VALUE_MAX} characters.")
    return text
