"""Waiting for conditions instead of sleeping."""

import socket
import sys
import time
from collections.abc import Callable
from typing import TypeVar

POLL, POLL_MAX = 0.02, 0.2
"""Seconds between two polls; they grow, so that a short wait ends soon and a long one is no load."""

_reserved: list[socket.socket] = []

T = TypeVar("T")


def wait_until(
    predicate: Callable[[], T], message: str | Callable[[], str] = "the condition", *, timeout: float = 60
) -> T:
    """Return the first true result of `predicate`; fail the test after `timeout` seconds.

    The timeout only bounds a failure, so it is longer than any busy machine takes. The failure names
    `message`, which may be a function, and the last result.
    """
    deadline, pause = time.monotonic() + timeout, POLL
    while True:
        answer = predicate()
        if answer:
            return answer
        if time.monotonic() > deadline:
            subject = message() if callable(message) else message
            raise AssertionError(f"waited {timeout:g} s for {subject}; last seen: {answer!r}")
        time.sleep(pause)
        pause = min(1.5 * pause, POLL_MAX)


def free_port() -> int:
    """Return a free loopback TCP port that no other caller of this run gets.

    It stays bound, so that the kernel gives it to no socket that asks for any port. A server that sets
    SO_REUSEADDR, as all of ours do, can still listen on it, because this socket does not listen.
    """
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    probe.bind(("127.0.0.1", 0))
    port = int(probe.getsockname()[1])
    if sys.platform == "linux":  # elsewhere a bound port is refused to every server
        _reserved.append(probe)
    else:
        probe.close()
    return port


def answers(port: int) -> bool:
    """Return whether a server accepts connections on this loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
