"""`calls`: what a handler calls the outside with. Each mutating call takes effect once, or parks.

`calls.<api>.post(...)` and its like go through the journal, `calls.<api>.get(...)` reads, and
`calls.value(step, fn)` keeps a result for the event's later attempts.
"""

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any

import httpx

from config.apis import Api
from config.nesting import dump_json
from receiver.ledger.calls import compute_once
from receiver.ledger.lease import Claim
from receiver.ledger.states import Protection
from receiver.ledger.text import digest
from worker.calls.classify import protection, retry_after
from worker.calls.errors import CallChanged, CallError, CallLater, CallRefused, CallRejected, ClaimLost
from worker.calls.outbound import CallArguments, OutboundRequest, build, complete, respond
from worker.calls.perform import CallContext, CallPerformer, Step
from worker.calls.transport import NoReply
from worker.spans import send_span, with_traceparent

# Characters of a step's name: it must fit its column.
STEP_MAX = 200

# Characters of a value's JSON.
VALUE_MAX = 1024 * 1024

# The wait after a GET that got no response, where the API names none.
RETRY_GET = timedelta(seconds=5)


class Calls:
    """The calls of one attempt, in their order: `calls.<api>.post(...)`, `calls.value(step, fn)`."""

    def __init__(self, context: CallContext, held: Claim) -> None:
        self._context, self._held = context, held
        self._steps: set[str] = set()
        self._position = 0
        self._computing: str | None = None
        self._ends = time.monotonic() + context.max_runtime.total_seconds()
        self.unjournaled_error: CallError | None = None
        """The last error that no row of the journal speaks for: the event is not done without that call."""

    def __getattr__(self, name: str) -> "ApiCalls":
        """Return the API of this name in apis.toml."""
        api = self._context.apis.get(name)
        if api is None:
            known = ", ".join(sorted(self._context.apis)) or "none"
            raise AttributeError(f"calls.{name}: apis.toml has no [{name}]; it has {known}")
        return ApiCalls(self, api)

    def value(self, step: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returned when this step first ran in this generation; it is kept as JSON."""
        self.check_time()

        def computed() -> str:
            # One value may be computed inside another.
            before, self._computing = self._computing, step
            try:
                return _value_json(step, compute())
            finally:
                self._computing = before

        stored = compute_once(self._context.store, self._held, _checked_step(step), computed)
        if stored is None:
            raise ClaimLost("Another worker has taken this event over.")
        return json.loads(stored)

    def check_time(self) -> None:
        """Raise ClaimLost when the handler has run for longer than max_runtime."""
        if time.monotonic() > self._ends:
            reason = f"The handler has run for longer than {self._context.max_runtime}."
            self.unjournaled_error = ClaimLost(reason)
            raise self.unjournaled_error

    def make(
        self, api: Api, request: OutboundRequest, protected_by: Protection, step: str, once: str | None
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
        # A failed call keeps its position: the handler may go on, and every attempt must count alike.
        position, self._position = self._position, self._position + 1
        try:
            step_made = Step(api, request, protected_by, step, position, once)
            return CallPerformer(self._context, self._held, step_made).run()
        except CallError as error:
            # A changed call names the one that an earlier attempt made in its place.
            if error.call is None or isinstance(error, CallChanged):
                self.unjournaled_error = error
            raise

    def read(self, api: Api, request: OutboundRequest) -> httpx.Response:
        """Send a GET, unjournaled and unkeyed. Raises CallRejected for a 4xx, CallLater for what may pass."""
        self.check_time()
        if api.problem:
            raise CallLater(api.problem, RETRY_GET)
        outgoing = complete(api, request, None)
        with send_span(api.name, request.method):
            reply = self._context.transports[api.name].send(with_traceparent(outgoing), lambda: None)
        if isinstance(reply, NoReply):
            raise CallLater(f"GET {request.path}: {reply.error}.", RETRY_GET)
        response = respond(request, reply.status, reply.headers, reply.body)
        if reply.truncated:
            raise CallRejected(f"GET {request.path}: the answer is too long.", response)
        if reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or reply.status == HTTPStatus.TOO_MANY_REQUESTS:
            # Only a date in Retry-After needs a clock: the host's will do, since nothing is stored of a GET.
            wait = retry_after(reply, datetime.now(UTC)) or RETRY_GET
            raise CallLater(f"GET {request.path}: it answered {reply.status}.", wait)
        if reply.status >= HTTPStatus.BAD_REQUEST:
            raise CallRejected(f"GET {request.path}: it answered {reply.status}.", response)
        return response

    def derived(self, api: Api, method: str, path: str) -> str:
        """Name a step after API, method and path; the second of a name in one attempt is number 2."""
        bare = f"{api.name} {method} {path.partition('?')[0]}"
        # Room is left for the number.
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
        **arguments: Any,
    ) -> httpx.Response:
        """Make one mutating call and return its response, live or stored.

        Body and address as httpx takes them: `json`, `data`, `content`, `files`, `params`, `headers`. `step`
        names the call within its event; `once` makes it unique over all events of this API. Raises CallError.
        """
        name = self._calls.derived(self._api, method, path) if step is None else _checked_step(step)
        # A multipart body's boundary comes from the step, so that a retry's bytes are the same.
        boundary = digest([name.encode()])[:32]
        request = build(self._api, method, path, CallArguments(**arguments), boundary)
        protected_by = protection(self._api.dialect, method, request.path)
        if protected_by == Protection.UNPROTECTED and not unprotected:
            raise CallRefused(
                f"{method} {request.path}: {self._api.dialect.title} keys no such request, so nothing"
                " protects it from happening twice when its answer is lost: unprotected=True accepts that."
            )
        if once is not None and not _is_name(once):
            raise CallRefused(f"once= takes 1 to {STEP_MAX} characters that print, not {once!r:.80}.")
        return self._calls.make(self._api, request, protected_by, name, once)


def _checked_step(step: str) -> str:
    if not _is_name(step):
        raise CallRefused(f"A step is named by 1 to {STEP_MAX} characters that print, not by {step!r:.80}.")
    return step


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= STEP_MAX and text.isprintable()


def _value_json(step: str, value: Any) -> str:
    try:
        text = dump_json(value, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CallRefused(f"The value of {step!r} is not JSON: {error}.") from None
    if len(text) > VALUE_MAX:
        raise CallRefused(f"The value of {step!r} is longer than {VALUE_MAX} characters.")
    return text
