"""Unit tests need no network: opening a socket fails the test."""

import socket
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from receiver.ledger.schema import migrate
from receiver.ledger.store import Store


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection, listener and look-up."""
    mine = threading.enumerate()

    def refuse(*_: Any, **__: Any) -> NoReturn:
        if threading.current_thread() in mine and threading.current_thread() is not threading.main_thread():
            # A thread left running by an earlier test of this process, such as a dispatcher without a broker.
            raise ConnectionRefusedError
        pytest.fail("a unit test used the network: move it to tests/integration")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def store() -> Iterator[Store]:
    """Open a migrated ledger in memory."""
    opened = Store("sqlite://", pool=1)
    migrate(opened)
    yield opened
    opened.close()
