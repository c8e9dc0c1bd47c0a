"""The threads of a source whose verifier may wait: a verifier that never ends piles nothing up."""

import asyncio
import threading

import pytest

from receiver.gateway import VERIFYING, _Verifying
from receiver.problems import Answer

ANSWER = Answer(200, "text/plain", b"")


def test_deliveries_that_were_given_up_before_their_turn_never_run() -> None:
    """A delivery that waits behind threads that hang leaves nothing; threads that end are taken again."""
    begun, go_on = threading.Semaphore(0), threading.Event()
    ran = []

    def hang() -> Answer:
        begun.release()
        assert go_on.wait(60)
        return ANSWER

    def note() -> Answer:
        ran.append(1)
        return ANSWER

    async def flood() -> None:
        verifying = _Verifying("sleepy")
        hanging = [asyncio.create_task(verifying.run(hang)) for _ in range(VERIFYING)]
        for _ in hanging:
            assert await asyncio.to_thread(begun.acquire, timeout=60)
        for _ in range(50):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(verifying.run(note), 0.001)
        # One whose thread runs on is given up as well.
        hanging[0].cancel()
        go_on.set()
        assert await asyncio.gather(*hanging[1:]) == [ANSWER] * (VERIFYING - 1)
        assert await verifying.run(note) == ANSWER

    asyncio.run(flood())
    assert ran == [1]
