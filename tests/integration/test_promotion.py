"""A conflicting body becomes an event of its own."""

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from receiver.ledger.control import promote
from receiver.ledger.errors import NotAllowed, UnknownEvent
from receiver.ledger.reports import story
from receiver.ledger.store import Store
from tests.integration.steps import conflicts, count, deliver, row, take


def test_a_conflicting_body_becomes_an_event(store: Store) -> None:
    """The new event has the body, headers and type it came with, an id that names its origin, and is due."""
    event = deliver(store, body=b"first").event
    deliver(store, body=b"other", headers={"X-Shop": "a"}, content_type="text/plain")
    kept = conflicts(store, event)[0]
    made = promote(store, event, kept.body_hash, "ann")
    assert (made.created, made.event_id) == (True, f"evt_1#{kept.body_hash[:12]}")
    held = take(store, made.id)
    assert (held.body, held.content_type, held.type) == (b"other", "text/plain", "invoice.paid")
    assert held.headers == '{"X-Shop": "a"}'


def test_a_second_promotion_returns_the_same_event(store: Store) -> None:
    """Asking twice, even at once, makes one event and one audit row."""
    event = deliver(store, body=b"first").event
    deliver(store, body=b"other")
    body_hash = conflicts(store, event)[0].body_hash
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: promote(store, event, body_hash, "ann"), range(6)))
    assert len({one.id for one in made}) == 1
    assert sum(one.created for one in made) == 1
    assert count(store) == 2
    told = story(store, event).as_json()
    assert told["conflicts"][0]["promoted_to"] == str(made[0].id)
    assert [action["what"] for action in told["actions"]] == ["promote"]


def test_an_id_at_the_limit_still_gets_its_suffix(store: Store) -> None:
    """The derived id fits the column however long the first one is."""
    event = deliver(store, "e" * 255, body=b"first").event
    deliver(store, "e" * 255, body=b"other")
    made = promote(store, event, conflicts(store, event)[0].body_hash, "ann")
    assert len(row(store, made.id).event_id) == 255


def test_what_is_not_kept_cannot_be_promoted(store: Store) -> None:
    """An unknown body is refused, and so is an unknown event."""
    event = deliver(store).event
    with pytest.raises(NotAllowed, match="keeps no conflicting body abc"):
        promote(store, event, "abc", "ann")
    with pytest.raises(UnknownEvent):
        promote(store, uuid4(), "abc", "ann")
