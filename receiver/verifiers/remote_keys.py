"""Keys and certificates that providers publish: fetched over https, without redirects, bounded, and kept.

Verifiers get them from `FetchedKeys`; its `KeyCache` fetches each once for all deliveries that wait for it.
An address comes with the delivery, so anybody can write it: `own_address` checks that it is the provider's.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol, TypeVar

from receiver.signatures.errors import CannotVerify, InvalidSignature

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

HOUR, DAY = 3_600.0, 86_400.0

# Values kept; the ones used longest ago go first. A provider has a handful of keys.
ROOM = 256

# Values in the making. Made-up names of keys must not take every thread that verifies.
AT_ONCE = 4

# Deliveries that wait for keys at once: the gateway gives a source more threads than that.
WAITING = 12

# Seconds that a delivery waits for its key: the gateway answers it after four and a half.
PATIENCE = 4.0

# Seconds in which a failed value is not tried again.
PAUSE = 5.0

# Bytes: a certificate has 2,000, Google's list of keys 1,600.
LARGEST = 65_536

# Seconds to connect, and again for each read.
TIMEOUT = 3.0

# Seconds for a whole response: one byte at a time would pass every read's timeout.
DEADLINE = 5.0


@dataclass(frozen=True)
class KeyRequest:
    """One request; equal ones share a response. With `form`, pairs that are posted as a JSON object."""

    url: str
    form: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class Keys(Protocol):
    """Where verifiers get keys from."""

    def get(self, wanted: KeyRequest, max_age: float) -> bytes:
        """Return a response's body, at most `max_age` seconds old; raise CannotVerify when there is none."""


class FetchedKeys:
    """Keys from their providers. One of these serves a process; `transport` is the seam of tests."""

    def __init__(
        self, transport: "httpx.BaseTransport | None" = None, cache: "KeyCache | None" = None
    ) -> None:
        self._transport, self._cache = transport, cache or KeyCache()

    def get(self, wanted: KeyRequest, max_age: float) -> bytes:
        """See `Keys`."""
        return self._cache.get(wanted, lambda: fetch(wanted, self._transport), max_age)


def own_address(pattern: re.Pattern[str], text: str | None, place: str) -> str:
    """Return an address that is the provider's by its whole text; raise InvalidSignature before any request.

    `place` names where in the delivery it stood.
    """
    if not text:
        raise InvalidSignature("missing_value", place)
    # Matched and not taken apart: two parsers may disagree on where a host ends.
    if not pattern.fullmatch(text):
        raise InvalidSignature("foreign_key", place)
    return text


def fetch(wanted: KeyRequest, transport: "httpx.BaseTransport | None" = None) -> bytes:
    """Send one request; raise CannotVerify for everything but 200 with a short body in time."""
    import httpx  # noqa: PLC0415 - most deployments never fetch a key

    if not wanted.url.startswith("https://"):
        raise CannotVerify("a key is fetched over https only")
    host = wanted.url.split("/", 3)[2]
    method, form = ("POST", dict(wanted.form)) if wanted.form else ("GET", None)
    headers = {"Accept-Encoding": "identity"}  # no small body that unpacks into a large one
    body = bytearray()
    try:
        with (
            httpx.Client(transport=transport, timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream(method, wanted.url, headers=headers, json=form) as response,
        ):
            if response.status_code != HTTPStatus.OK:
                raise CannotVerify(f"{host} answers {response.status_code}, and not with what was asked for")
            end = time.monotonic() + DEADLINE
            for part in response.iter_raw():
                body += part
                if len(body) > LARGEST or time.monotonic() > end:
                    raise CannotVerify(f"{host} sends more than a key, or sends it too slowly")
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise CannotVerify(f"{host} does not answer: {type(error).__name__}") from None
    return bytes(body)


class KeyCache:
    """Values by name, each made by one thread for all callers that wait, and bounded in every way.

    `clock` counts seconds from anywhere, `patience` is how many of them a caller waits.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, patience: float = PATIENCE) -> None:
        self._clock, self._patience = clock, patience
        self._guard = threading.Lock()
        self._values: OrderedDict[Hashable, tuple[float, bytes]] = OrderedDict()
        # Apart from the values: a refresh that fails must not lose the value that is still good for others.
        self._failed_at: OrderedDict[Hashable, float] = OrderedDict()
        self._flights: dict[Hashable, Future[bytes]] = {}
        self._waiting = 0

    def get(self, name: Hashable, make: Callable[[], bytes], max_age: float) -> bytes:
        """Return a value at most `max_age` seconds old.

        Raise CannotVerify when that takes long, failed a moment ago or too many wait already, and whatever
        `make` raises.
        """
        with self._guard:
            made_at, value = self._values.get(name, (0.0, None))
            if value is not None and self._clock() - made_at <= max_age:
                self._values.move_to_end(name)
                return value
            flight = self._flights.get(name) or self._start(name, make)
            if self._waiting >= WAITING:
                raise CannotVerify("too many deliveries wait for their senders' keys")
            self._waiting += 1
        try:
            return flight.result(self._patience)
        except TimeoutError:
            raise CannotVerify(f"the sender's key did not arrive within {self._patience:g} s") from None
        finally:
            with self._guard:
                self._waiting -= 1

    def _start(self, name: Hashable, make: Callable[[], bytes]) -> Future[bytes]:
        failed_at = self._failed_at.get(name)
        if failed_at is not None and self._clock() - failed_at < PAUSE:
            raise CannotVerify("the sender's key could not be fetched a moment ago")
        if len(self._flights) >= AT_ONCE:
            raise CannotVerify("too many keys are being fetched at once")
        future: Future[bytes] = Future()
        # A thread of its own: a server that sends a byte a second would hold the delivery's for ever.
        thread = threading.Thread(target=self._make, args=(name, make, future), daemon=True, name="key")
        try:
            thread.start()
        except RuntimeError:
            raise CannotVerify("no thread is left to fetch a key with") from None
        # The guard is held, so the thread cannot take its flight off the list before it stands there.
        self._flights[name] = future
        return future

    def _make(self, name: Hashable, make: Callable[[], bytes], future: Future[bytes]) -> None:
        try:
            value = make()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            with self._guard:
                _keep(self._failed_at, name, self._clock())
                del self._flights[name]
            future.set_exception(error)
        else:
            with self._guard:
                _keep(self._values, name, (self._clock(), value))
                del self._flights[name]
            future.set_result(value)


def _keep(kept: OrderedDict[Hashable, T], name: Hashable, value: T) -> None:
    kept[name] = value
    kept.move_to_end(name)
    if len(kept) > ROOM:
        kept.popitem(last=False)
