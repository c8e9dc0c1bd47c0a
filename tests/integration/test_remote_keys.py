"""Fetched verification keys: caching, limits, and the response to a delivery if the fetch fails."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from receiver.signatures import CannotVerify
from receiver.verifiers import remote_keys as fetching
from receiver.verifiers.remote_keys import (
    AT_ONCE,
    DAY,
    LARGEST,
    PAUSE,
    ROOM,
    WAITING,
    FetchedKeys,
    KeyCache,
    KeyRequest,
)
from tests.services.publisher import Publisher
from tests.services.waiting import wait_until

KEY = KeyRequest("https://keys.example.com/one.pem")


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """Publish a key."""
    found = Publisher(tmp_path)
    found.body = b"a key"
    yield found
    found.stop()


class Clock:
    """A clock that the test moves."""

    now = 1_000.0

    def __call__(self) -> float:
        """Return its time."""
        return self.now


def test_a_key_is_fetched_once_and_again_when_it_is_old(publisher: Publisher) -> None:
    """The cached key is used until it is older than the caller allows."""
    clock = Clock()
    keys = FetchedKeys(publisher.transport(), KeyCache(clock))
    assert [keys.get(KEY, DAY) for _ in range(5)] == [b"a key"] * 5
    assert publisher.asked == ["GET https://keys.example.com/one.pem"]
    clock.now += DAY + 1
    publisher.body = b"another"
    assert keys.get(KEY, DAY) == b"another"
    assert keys.get(KeyRequest(KEY.url, (("key_id", "1"),)), DAY) == b"another"
    assert publisher.asked[2] == "POST https://keys.example.com/one.pem"


def test_concurrent_deliveries_share_one_request(publisher: Publisher) -> None:
    """Twelve concurrent deliveries that need one key make one request."""
    publisher.gate.clear()
    cache = KeyCache(patience=60)
    keys = FetchedKeys(publisher.transport(), cache)
    with ThreadPoolExecutor(12) as pool:
        found = [pool.submit(keys.get, KEY, DAY) for _ in range(12)]
        wait_until(lambda: cache._waiting == 12, "the deliveries to wait")
        publisher.gate.set()
    assert [item.result() for item in found] == [b"a key"] * 12
    assert len(publisher.asked) == 1


def test_a_failed_fetch_is_not_repeated_at_once(publisher: Publisher) -> None:
    """A failure is cached for a few seconds, then the fetch is tried again."""
    clock = Clock()
    keys = FetchedKeys(publisher.transport(), KeyCache(clock))
    publisher.status = 500
    for _ in range(3):
        with pytest.raises(CannotVerify):
            keys.get(KEY, DAY)
    assert len(publisher.asked) == 1
    publisher.status = 200
    clock.now += PAUSE
    assert keys.get(KEY, DAY) == b"a key"


@pytest.mark.parametrize("status", [204, 301, 302, 307, 400, 404, 503])
def test_only_200_is_an_answer(publisher: Publisher, status: int) -> None:
    """Redirects are not followed, and only a 200 gives a key."""
    publisher.status = status
    publisher.headers = {"Location": "https://keys.example.com/two.pem"}
    with pytest.raises(CannotVerify, match=f"answers {status}"):
        FetchedKeys(publisher.transport()).get(KEY, DAY)
    assert len(publisher.asked) == 1


def test_an_answer_is_short(publisher: Publisher) -> None:
    """A response larger than any key is not read to its end."""
    publisher.body = bytes(LARGEST)
    assert len(FetchedKeys(publisher.transport()).get(KEY, DAY)) == LARGEST
    publisher.body = bytes(LARGEST + 1)
    with pytest.raises(CannotVerify, match="more than a key"):
        FetchedKeys(publisher.transport()).get(KEY, DAY)


def test_a_dripping_server_is_given_up(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery waits a few seconds at most, and the request ends at its deadline."""
    monkeypatch.setattr(fetching, "DEADLINE", 1.0)
    publisher.body, publisher.drip = bytes(10_000), 0.05
    cache = KeyCache(patience=0.3)
    keys = FetchedKeys(publisher.transport(), cache)
    with pytest.raises(CannotVerify, match="did not arrive"):
        keys.get(KEY, DAY)
    assert len(cache._flights) == 1
    wait_until(lambda: not cache._flights, "the request to be given up")


def test_made_up_names_take_few_threads(publisher: Publisher) -> None:
    """Beyond a few concurrent requests no further key is fetched."""
    publisher.gate.clear()
    cache = KeyCache(patience=0.01)
    keys = FetchedKeys(publisher.transport(), cache)
    for number in range(AT_ONCE * 3):
        with pytest.raises(CannotVerify):
            keys.get(KeyRequest(f"https://keys.example.com/{number}"), DAY)
    assert len(cache._flights) == AT_ONCE
    publisher.gate.set()
    wait_until(lambda: not cache._flights, "the requests to end")
    assert len(publisher.asked) == AT_ONCE


def test_a_slow_key_leaves_threads_to_others(publisher: Publisher) -> None:
    """A bounded number of deliveries wait for a key; the next is refused at once."""
    publisher.gate.clear()
    cache = KeyCache(patience=60)
    keys = FetchedKeys(publisher.transport(), cache)
    with ThreadPoolExecutor(WAITING) as pool:
        found = [pool.submit(keys.get, KEY, DAY) for _ in range(WAITING)]
        wait_until(lambda: cache._waiting == WAITING, "the deliveries to wait")
        with pytest.raises(CannotVerify, match="too many deliveries wait"):
            keys.get(KEY, DAY)
        publisher.gate.set()
    assert [item.result() for item in found] == [b"a key"] * WAITING
    assert cache._waiting == 0
    assert keys.get(KEY, DAY) == b"a key"


def test_the_cache_is_bounded() -> None:
    """The least recently used keys are evicted."""
    cache, made = KeyCache(), []
    for number in range(ROOM + 1):
        cache.get(number, lambda number=number: made.append(number) or b"x", DAY)
    cache.get(ROOM, lambda: b"not made again", DAY)
    cache.get(0, lambda: made.append("again") or b"x", DAY)
    assert made == [*range(ROOM + 1), "again"]


def test_a_publisher_needs_a_trusted_certificate(publisher: Publisher) -> None:
    """A certificate without a trusted authority is refused, and so is plain http."""
    with pytest.raises(CannotVerify, match="ConnectError"):
        FetchedKeys(publisher.transport(trusted=False)).get(KEY, DAY)
    with pytest.raises(CannotVerify, match="https only"):
        FetchedKeys(publisher.transport()).get(KeyRequest("http://keys.example.com/one.pem"), DAY)
    assert publisher.asked == []
