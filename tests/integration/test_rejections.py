"""Rejections: counted by minute, with a bounded number of samples."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from sqlalchemy import func, select

from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.reports import rejections
from receiver.ledger.store import Store
from receiver.ledger.tables import SAMPLE
from tests.integration.steps import later


def test_rejections_are_counted_by_source_reason_and_minute(store: Store) -> None:
    """Counts of one minute add up; another minute is counted separately."""
    first = [
        Rejected("stripe", "bad_signature"),
        Rejected("stripe", "too_old"),
        Rejected("github", "too_large"),
    ]
    record_rejections(store, first + first[:1])
    later(store, minutes=2)
    record_rejections(store, first[:1])
    found = rejections(store).as_json()
    counted = [(item["source"], item["reason"], item["count"]) for item in found["data"]]
    assert counted == [
        ("stripe", "bad_signature", 1),
        ("github", "too_large", 1),
        ("stripe", "bad_signature", 2),
        ("stripe", "too_old", 1),
    ]
    assert {datetime.fromisoformat(item["minute"]).second for item in found["data"]} == {0}


def test_a_source_can_be_asked_for_alone(store: Store) -> None:
    """Counts and samples can be filtered by source."""
    record_rejections(store, [Rejected("stripe", "too_old", "192.0.2.1"), Rejected("github", "too_large")])
    found = rejections(store, "stripe").as_json()
    assert [item["source"] for item in found["data"]] == ["stripe"]
    assert [(item["reason"], item["address"]) for item in found["latest"]] == [("too_old", "192.0.2.1")]


def test_the_last_hundred_of_each_source_are_kept(store: Store) -> None:
    """Each source keeps its last hundred samples, whatever arrives for others."""
    record_rejections(store, [Rejected("quiet", "too_old", "192.0.2.9")])
    for number in range(5):
        record_rejections(store, [Rejected("loud", "bad_signature", f"192.0.2.{number}")] * 90)
    assert len(rejections(store, "loud").as_json()["latest"]) == 100
    assert rejections(store, "loud").as_json()["latest"][0]["address"] == "192.0.2.4"
    assert len(rejections(store, "quiet").as_json()["latest"]) == 1
    assert rejections(store, "loud").as_json()["data"][0]["count"] == 450
    with store.read() as connection:
        assert connection.execute(select(func.count()).select_from(SAMPLE)).scalar_one() == 101


def test_concurrent_batches_add_up(store: Store) -> None:
    """Concurrent batches in different orders lose no count and do not deadlock."""
    batch = [Rejected(source, reason) for source in ("a", "b", "c") for reason in ("x", "y")]

    def one(turn: int) -> None:
        for _ in range(5):
            record_rejections(store, batch[turn % 6 :] + batch[: turn % 6])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert sum(one["count"] for one in rejections(store).as_json()["data"]) == 8 * 5 * 6


def test_long_reasons_and_addresses_are_cut(store: Store) -> None:
    """A long reason or address is cut instead of failing the batch."""
    record_rejections(store, [])
    record_rejections(store, [Rejected("stripe", "r" * 99, "a" * 999), Rejected("stripe", "too_old", "\x00")])
    latest = rejections(store).as_json()["latest"]
    assert sorted((len(sample["reason"]), len(sample["address"])) for sample in latest) == [(7, 4), (64, 255)]
