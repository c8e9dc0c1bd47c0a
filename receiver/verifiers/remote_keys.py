"""Keys and certificates that providers publish: fetched over https, without redirects, bounded, and kept.

Whether an address is the provider's own is asked before (`own_address`): it comes with the delivery, so
anybody can write it.
"""

import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from receiver.signatures.errors import CannotVerify, InvalidSignature

if TYPE_CHECKING:
    import httpx


# A cache of what is slow to make: made by one thread for everybody who waits, and bounded in every way.


ROOM = 256
"""Values kept; the ones used longest ago go first. A provider has a handful of keys."""

AT_ONCE = 4
"""Values in the making. Made-up names of keys must not take every thread of web."""

WAITING = 12
"""Deliveries that wait at once. Web has 16 threads, and a sender's slow key must leave some to the others."""

PATIENCE = 5.0
"""Seconds that a delivery waits for its key: providers give up after 5 to 30."""

PAUSE = 5.0
"""Seconds in which what failed is not tried again."""


@dataclass(frozen=True)
class _Kept:
    at: float
    value: bytes | None  # None: it failed


class Once:
    """Values by name. `clock` counts seconds from anywhere."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, patience: float = PATIENCE) -> None:
        self._clock, self._patience = clock, patience
        self._guard = threading.Lock()
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._failed: OrderedDict[Hashable, _Kept] = OrderedDict()
        self._flights: dict[Hashable, Future[bytes]] = {}
        self._waiting = 0

    def get(self, name: Hashable, make: Callable[[], bytes], max_age: float) -> bytes:
        """Return a value at most `max_age` seconds old.

        Raise CannotVerify when that takes long, failed a moment ago or too many wait already, and whatever
        `make` raises.
        """
        with self._guard:
            kept = self._kept.get(name)
            if kept and kept.value is not None and self._clock() - kept.at <= max_age:
                self._kept.move_to_end(name)
                return kept.value
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

    @property
    def making(self) -> int:
        """How many values are in the making."""
        return len(self._flights)

    @property
    def waiting(self) -> int:
        """How many deliveries wait for one."""
        return self._waiting

    def _start(self, name: Hashable, make: Callable[[], bytes]) -> Future[bytes]:
        failed = self._failed.get(name)
        if failed and self._clock() - failed.at < PAUSE:
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
        self._flights[name] = future  # the guard is held, so its end comes after this
        return future

    def _make(self, name: Hashable, make: Callable[[], bytes], future: Future[bytes]) -> None:
        try:
            value = make()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            self._end(name, self._failed, None)
            future.set_exception(error)
        else:
            self._end(name, self._kept, value)
            future.set_result(value)

    def _end(self, name: Hashable, into: OrderedDict[Hashable, _Kept], value: bytes | None) -> None:
        with self._guard:
            self._flights.pop(name, None)
            into[name] = _Kept(self._clock(), value)
            into.move_to_end(name)
            while len(into) > ROOM:
                into.popitem(last=False)


HOUR, DAY = 3_600.0, 86_400.0

LARGEST = 65_536
"""Bytes: a certificate has 2,000, Google's list of keys 1,600."""

TIMEOUT = 3.0
"""Seconds to connect, and again for each read."""

DEADLINE = 5.0
"""Seconds for a whole answer."""


@dataclass(frozen=True)
class Ask:
    """One request; equal ones share an answer. With `form`, pairs that are posted as a JSON object."""

    url: str
    form: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class Keys(Protocol):
    """Where verifiers get keys from."""

    def get(self, ask: Ask, max_age: float) -> bytes:
        """Return an answer at most `max_age` seconds old; raise CannotVerify when there is none."""


class FetchedKeys:
    """Keys from their providers. One of these serves a process; `transport` is the seam of tests."""

    def __init__(self, transport: "httpx.BaseTransport | None" = None, once: Once | None = None) -> None:
        self._transport, self._once = transport, once or Once()

    def get(self, ask: Ask, max_age: float) -> bytes:
        """See `Keys`."""
        return self._once.get(ask, lambda: fetch(ask, self._transport), max_age)


def own_address(pattern: re.Pattern[str], text: str | None, what: str) -> str:
    """Return an address that is the provider's by its whole text; raise InvalidSignature before any request.

    It is matched and not taken apart: two parsers may disagree on where a host ends.
    """
    if not text:
        raise InvalidSignature("missing_value", what)
    if not pattern.fullmatch(text):
        raise InvalidSignature("foreign_key", what)
    return text


def fetch(ask: Ask, transport: "httpx.BaseTransport | None" = None) -> bytes:
    """Ask once; raise CannotVerify for everything but 200 with a short answer in time."""
    import httpx  # noqa: PLC0415 - most deployments never fetch a key

    if not ask.url.startswith("https://"):
        raise CannotVerify("a key is fetched over https only")
    host = ask.url.split("/", 3)[2]
    headers = {"Accept-Encoding": "identity"}  # no small answer that unpacks into a large one
    try:
        with (
            httpx.Client(transport=transport, timeout=TIMEOUT, follow_redirects=False) as client,
            client.stream(
                "POST" if ask.form else "GET",
                ask.url,
                headers=headers,
                json=dict(ask.form) if ask.form else None,
            ) as response,
        ):
            if response.status_code != HTTPStatus.OK:
                raise CannotVerify(f"{host} answers {response.status_code}, and not with what was asked for")
            return _read(response, host)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        raise CannotVerify(f"{host} does not answer: {type(error).__name__}") from None


def _read(response: "httpx.Response", host: str, clock: Callable[[], float] = time.monotonic) -> bytes:
    parts, length, end = [], 0, clock() + DEADLINE
    for part in response.iter_raw():
        parts.append(part)
        length += len(part)
        if length > LARGEST or clock() > end:
            raise CannotVerify(f"{host} sends more than a key, or sends it too slowly")
    return b"".join(parts)
