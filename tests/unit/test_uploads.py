"""Uploads: bodies taken whole, each with a deadline and all within a budget."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from receiver import gateway
from receiver.gateway import UploadRefused, Uploads

BUDGET, LIMIT = 1000, 800
FOREVER = 60.0

Message = dict[str, Any]


class Sender:
    """A client that sends what the test tells it to; `receive` is the application's end of it."""

    def __init__(self, *pieces: bytes, whole: bool = False) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        for place, piece in enumerate(pieces):
            self.send(piece, more=not whole or place + 1 < len(pieces))

    def send(self, piece: bytes, *, more: bool = False) -> None:
        """Send a piece of the body, by default the last."""
        self._messages.put_nowait({"type": "http.request", "body": piece, "more_body": more})

    def leave(self) -> None:
        """Go away."""
        self._messages.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Message:
        """Return the next message once there is one."""
        return await self._messages.get()


Test = Callable[[Uploads], Coroutine[Any, Any, None]]
Run = Callable[[Test], None]


@pytest.fixture
def run() -> Run:
    """Run a test's coroutine with empty uploads, and check that no byte and no upload is left in them."""

    def run(test: Test) -> None:
        async def body() -> None:
            uploads = Uploads(FOREVER, BUDGET)
            await test(uploads)
            assert uploads.bytes == 0
            assert not uploads._unfinished

        asyncio.run(body())

    return run


def take(uploads: Uploads, sender: Sender, length: int | None = None) -> "asyncio.Task[bytes | None]":
    """Begin to take a body whole."""
    return asyncio.create_task(uploads.whole(sender.receive, length, LIMIT))


async def settle() -> None:
    """Let every task come as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_body_is_taken_whole(run: Run) -> None:
    """Its pieces are put together; its bytes count until its user gives them back."""

    async def test(uploads: Uploads) -> None:
        assert await take(uploads, Sender(b"ab", b"", b"cd", whole=True)) == b"abcd"
        assert await take(uploads, Sender(b"x" * LIMIT, whole=True), LIMIT) == b"x" * LIMIT
        assert await take(uploads, Sender(b"", whole=True), 0) == b""
        assert uploads.bytes == 4 + LIMIT
        uploads.bytes -= 4 + LIMIT

    run(test)


def test_a_long_body_is_not_read_on(run: Run) -> None:
    """None is returned at an announced length, and at the first byte too many."""

    async def test(uploads: Uploads) -> None:
        assert await take(uploads, Sender(), LIMIT + 1) is None
        assert await take(uploads, Sender(b"x" * LIMIT, b"y")) is None

    run(test)


def test_a_stalled_body_is_refused_at_its_deadline(run: Run) -> None:
    """Pieces do not put the deadline off; whoever is not late stays."""

    async def test(uploads: Uploads) -> None:
        late = take(uploads, dribbling := Sender(b"a"))
        await settle()
        clock = uploads._loop.time
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(uploads._loop, "time", lambda: clock() + FOREVER - 1)
            in_time = take(uploads, honest := Sender(b"b"))
            dribbling.send(b"a", more=True)
            await settle()
            uploads.expire()
            await settle()
            assert not late.done()
            patch.setattr(uploads._loop, "time", lambda: clock() + FOREVER + 1)
            uploads.expire()
            await settle()
            assert late.done()
        with pytest.raises(UploadRefused, match="stalled"):
            await late
        honest.send(b"!")
        assert await in_time == b"b!"
        uploads.bytes -= 2

    run(test)


def test_a_sender_that_goes_away_leaves_nothing(run: Run) -> None:
    """Its part of a body is given back; so is that of a request that is cancelled."""

    async def test(uploads: Uploads) -> None:
        gone = take(uploads, sender := Sender(b"abc"))
        cancelled = take(uploads, Sender(b"def"))
        await settle()
        assert uploads.bytes == 6
        sender.leave()
        cancelled.cancel()
        with pytest.raises(UploadRefused, match="cut_off"):
            await gone
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    run(test)


def test_uploads_that_stall_before_their_end_stay_within_the_budget(run: Run) -> None:
    """The oldest make room for the newer ones, and a large honest delivery passes beside them."""

    async def test(uploads: Uploads) -> None:
        stalled = []
        for _ in range(20):
            stalled.append(take(uploads, Sender(b"x" * 100, b"y" * 99)))
            await settle()
            assert uploads.bytes <= BUDGET
        assert [task.done() for task in stalled] == [True] * 15 + [False] * 5
        for pieces in ([b"z" * LIMIT], [b"z" * (LIMIT // 4)] * 4):
            assert await take(uploads, Sender(*pieces, whole=True)) == b"z" * LIMIT
            assert uploads.bytes <= BUDGET
            assert not uploads.full
            uploads.bytes -= LIMIT
        for task in stalled:
            if not task.done():
                task.cancel()
        ends = await asyncio.gather(*stalled, return_exceptions=True)
        assert {getattr(end, "reason", "cancelled") for end in ends} == {"no_room", "cancelled"}

    run(test)


def test_a_single_turn_refuses_no_more_than_it_must(run: Run) -> None:
    """Room counts as made when an upload is refused, not only when its task has noticed."""

    async def test(uploads: Uploads) -> None:
        stalled = [take(uploads, Sender(b"x" * 400)) for _ in range(2)]
        await settle()
        newer = [take(uploads, Sender(b"x" * 100, whole=True)) for _ in range(3)]
        await settle()
        assert [task.done() for task in stalled] == [True, False]
        assert [await task for task in newer] == [b"x" * 100] * 3
        stalled[1].cancel()
        await asyncio.gather(*stalled, return_exceptions=True)
        uploads.bytes -= 300

    run(test)


def test_an_upload_that_is_the_oldest_itself_is_refused(run: Run) -> None:
    """With a receive that never waits, too: nothing else breaks, and the task is not cancelled."""

    async def test(uploads: Uploads) -> None:
        kept = [await take(uploads, Sender(b"x" * 300, whole=True)) for _ in range(3)]

        async def receive() -> Message:
            return {"type": "http.request", "body": b"y" * 60, "more_body": True}

        with pytest.raises(UploadRefused, match="no_room"):
            await uploads.whole(receive, None, LIMIT)
        await asyncio.sleep(0)
        uploads.bytes -= sum(map(len, filter(None, kept)))

    run(test)


def test_whole_bodies_alone_can_fill_the_budget(run: Run) -> None:
    """They are never refused here; `full` tells their users to."""

    async def test(uploads: Uploads) -> None:
        for _ in range(2):
            assert await take(uploads, Sender(b"x" * 600, whole=True))
        assert uploads.full
        uploads.bytes -= 1200
        assert not uploads.full

    run(test)


def test_a_stop_refuses_what_is_unfinished_then_and_later(run: Run) -> None:
    """A body that begins to arrive after the stop does not hold it up either."""

    async def test(uploads: Uploads) -> None:
        before = take(uploads, Sender(b"a"))
        await settle()
        uploads.stop()
        after = take(uploads, Sender(b"a"))
        whole = take(uploads, Sender(b"a", whole=True))
        await settle()
        uploads.expire()
        ends = await asyncio.gather(before, after, whole, return_exceptions=True)
        assert [getattr(end, "reason", end) for end in ends] == ["stopping", "stopping", b"a"]
        uploads.bytes -= 1

    run(test)


def test_the_budget_holds_the_largest_body_of_a_source() -> None:
    """However much a source may send, twice of it fits."""
    assert gateway.budget(10) == gateway.BUDGET
    assert gateway.budget(gateway.BUDGET) == 2 * gateway.BUDGET
