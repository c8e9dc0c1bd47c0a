"""`FifoSemaphore`: bounded, in order, and no turn is lost."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from receiver.ledger.errors import LedgerUnavailable
from receiver.ledger.pool import FifoSemaphore
from tests.services.waiting import wait_until


def test_no_more_than_its_width_hold_a_turn() -> None:
    """Twenty threads share three turns: three are always held while others wait, never four."""
    gate, lock, full = FifoSemaphore(3), threading.Lock(), threading.Barrier(3)
    inside, most = [0], [0]

    def go(_: int) -> None:
        with gate.turn(60):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            full.wait(60)
            with lock:
                inside[0] -= 1
            full.wait(60)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(go, range(99)))
    assert most[0] == 3


def test_turns_are_given_in_order_of_arrival() -> None:
    gate, order, threads = FifoSemaphore(1), [], []
    with gate.turn(1):
        for n in range(8):

            def go(n: int = n) -> None:
                with gate.turn(60):
                    order.append(n)

            threads.append(threading.Thread(target=go))
            threads[-1].start()
            wait_until(lambda n=n: len(gate._waiting) > n, "it to wait")
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_a_returning_thread_does_not_overtake_a_waiting_one() -> None:
    gate, order = FifoSemaphore(1), []

    def go() -> None:
        with gate.turn(60):
            order.append("waiting")

    waiting = threading.Thread(target=go)
    with gate.turn(1):
        waiting.start()
        wait_until(lambda: gate._waiting, "it to wait")
    with gate.turn(60):
        order.append("again")
    waiting.join()
    assert order == ["waiting", "again"]


def test_a_timeout_raises_and_loses_no_turn() -> None:
    gate = FifoSemaphore(1)
    with gate.turn(1):
        begun = time.monotonic()
        with pytest.raises(LedgerUnavailable), gate.turn(0.05):
            pytest.fail("two are in")
        assert time.monotonic() - begun >= 0.05
    with gate.turn(0):
        pass


def test_an_error_releases_the_turn() -> None:
    gate = FifoSemaphore(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), gate.turn(0):
            raise ZeroDivisionError


def test_no_turn_is_lost_when_a_timeout_meets_a_release() -> None:
    """Many threads whose timeout is as short as a turn: in the end all turns are free."""
    gate = FifoSemaphore(2)

    def go(_: int) -> None:
        try:
            with gate.turn(0.001):
                time.sleep(0.001)
        except LedgerUnavailable:
            pass

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(go, range(600)))
    with gate.turn(0), gate.turn(0):
        assert not gate._waiting
