"""Keys and certificates that providers publish: fetched over https, without redirects, bounded, and kept.

Whether an address is the provider's own is asked before (`own_address`): it comes with the delivery, so
anybody can write it.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from receiver.signatures.errors import CannotVerify, InvalidSignature
from receiver.verifiers.once import Once

if TYPE_CHECKING:
    import httpx

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
