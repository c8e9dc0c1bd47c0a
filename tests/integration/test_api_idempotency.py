"""Idempotency-Key on the management API: each mutation takes effect once, however often it is sent."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from receiver.ledger.idempotency_keys import KEY
from receiver.ledger.reports import story
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from receiver.ledger.tables import ACTION, REPLAY
from tests.integration.call_steps import with_parked_call
from tests.integration.steps import deliver, end, row
from tests.services.api import DEV, Api, problem

OTHER = b'{"other": 1}'
MUTATIONS: dict[str, Any] = {
    "/v1/events/{event}/retry": {},
    "/v1/events/{event}/rerun": {"generation": 0},
    "/v1/events/{event}/discard": {"generation": 0},
    f"/v1/events/{{event}}/conflicts/{hashlib.sha256(OTHER).hexdigest()}/promote": None,
    "/v1/replays": {"what": "retry", "filter": {"state": "parked"}},
    "/v1/calls/{call}/resolve": {"how": "happened", "response": {"status": 201}},
}


@pytest.fixture
def event(store: Store) -> UUID:
    """Record an event with a conflicting body, parked for a call."""
    event, _ = with_parked_call(store)
    deliver(store, body=OTHER)
    return event


def done(store: Store) -> int:
    """Count the actions and bulk operations."""
    with store.read() as connection:
        counted = [
            connection.execute(select(func.count()).select_from(t)).scalar_one() for t in (ACTION, REPLAY)
        ]
    return sum(counted)


def keys(store: Store) -> int:
    """Count the stored idempotency keys."""
    with store.read() as connection:
        return connection.execute(select(func.count()).select_from(KEY)).scalar_one()


def address(store: Store, path: str, event: UUID) -> str:
    """Return the path with the ids of the event and of the call that it is parked for."""
    return path.format(event=event, call=row(store, event).parked_call)


def each_mutation(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test for each mutating endpoint."""
    cases = [pytest.param(path, body, id=path.rpartition("/")[2]) for path, body in MUTATIONS.items()]
    return pytest.mark.parametrize(("path", "body"), cases)(test)


@each_mutation
def test_a_repeated_request_is_replayed(api: Api, store: Store, event: UUID, path: str, body: Any) -> None:
    """The second response has the same status and bytes and is marked as a replay; nothing is done twice."""
    url = address(store, path, event)
    first, again = (api.post(url, body, once="k1") for _ in range(2))
    assert first.status_code in (200, 201, 202)
    assert (again.status_code, again.data, again.headers.get("Location")) == (
        first.status_code, first.data, first.headers.get("Location"),
    )  # fmt: skip
    assert "Idempotent-Replayed" not in first.headers
    assert again.headers["Idempotent-Replayed"] == "true"
    assert done(store) == 1
    assert api.nudged == (0 if path.endswith(("discard", "replays")) else 1)


@each_mutation
def test_concurrent_copies_have_one_effect(api: Api, store: Store, event: UUID, path: str, body: Any) -> None:
    """Concurrent copies get one response, or 409 while it is being made, and have one effect."""
    url = address(store, path, event)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.post(url, body, once="k1"), range(8)))
    answers.append(api.post(url, body, once="k1"))
    for locked in [answer for answer in answers if answer.status_code == 409]:
        assert problem(locked) == (409, "idempotency_key_locked")
        assert int(locked.headers["Retry-After"]) >= 1
    assert len({answer.data for answer in answers if answer.status_code != 409}) == 1
    assert done(store) == 1


@each_mutation
def test_another_request_under_the_key_is_a_mismatch(
    api: Api, store: Store, event: UUID, path: str, body: Any
) -> None:
    """Another body or query gets 422, and the stored response stays."""
    url = address(store, path, event)
    first = api.post(url, body, once="k1")
    unlike = {"replays": "dry_run", "resolve": "response"}.get(path.rpartition("/")[2], "generation")
    other = {**(body or {}), unlike: 7}
    assert problem(api.post(url, other, once="k1")) == (422, "idempotency_key_mismatch")
    assert problem(api.post(url + "?a=b", body, once="k1")) == (422, "idempotency_key_mismatch")
    assert api.post(url, body, once="k1").data == first.data
    assert done(store) == 1


@each_mutation
def test_without_a_key_each_request_is_its_own(
    api: Api, store: Store, event: UUID, path: str, body: Any
) -> None:
    """Nothing is stored; the ledger's own guards decide about the second request."""
    url = address(store, path, event)
    first, again = (api.post(url, body) for _ in range(2))
    assert "Idempotent-Replayed" not in again.headers
    assert first.status_code < 300
    assert keys(store) == 0


def test_keys_belong_to_an_api_key_and_an_endpoint(api: Api, store: Store) -> None:
    """The same key under another API key, or at another endpoint, is a different key."""
    one, two = (deliver(store, name).event for name in ("evt_1", "evt_2"))
    for event in (one, two):
        end(store, event, Move.PARK)
    for event, who in ((one, None), (one, DEV), (two, None)):
        named = {"key": who} if who else {}
        assert (
            "Idempotent-Replayed" not in api.post(f"/v1/events/{event}/retry", {}, once="k1", **named).headers
        )
    assert [len(story(store, event).as_json()["actions"]) for event in (one, two)] == [2, 1]


def test_a_refusal_that_would_not_change_is_remembered(api: Api, store: Store) -> None:
    """A 409 caused by the event's state is stored and replayed."""
    event = deliver(store).event
    end(store, event)
    first, again = (api.post(f"/v1/events/{event}/retry", {}, once="k1") for _ in range(2))
    assert problem(first) == problem(again) == (409, "not-allowed")
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_404_is_not_remembered(api: Api, store: Store) -> None:
    """What does not exist yet may exist later, so a 404 is not stored."""
    event = deliver(store).event
    end(store, event, Move.PARK)
    nobody = str(event)[:-1] + ("0" if str(event)[-1] != "0" else "1")
    assert problem(api.post(f"/v1/events/{nobody}/retry", {}, once="k1"))[0] == 404
    assert keys(store) == 0


@pytest.mark.parametrize("key", ["", "k" * 256, "kéy", '"open', '""', "a\tb"])
def test_a_bad_key_is_400_naming_the_limit(api: Api, store: Store, event: UUID, key: str) -> None:
    """It is refused before anything runs or is stored."""
    refused = api.post(f"/v1/events/{event}/retry", {}, once=key)
    assert problem(refused) == (400, "idempotency_key_invalid")
    assert "1 to 255 printable ASCII characters" in refused.json["detail"]
    assert (done(store), keys(store)) == (0, 0)


def test_the_quoted_form_is_the_same_key(api: Api, store: Store, event: UUID) -> None:
    """A key quoted as in the IETF draft (a structured field string) equals the bare one."""
    api.post(f"/v1/events/{event}/retry", {}, once="k1")
    assert api.post(f"/v1/events/{event}/retry", {}, once='"k1"').headers["Idempotent-Replayed"] == "true"
    assert done(store) == 1


def test_a_view_that_breaks_leaves_nothing_and_frees_its_key(api: Api, store: Store, event: UUID) -> None:
    """Action, response and key are one transaction: here the audit's table is missing for a while."""
    url = f"/v1/events/{event}/retry"
    with store.write() as connection:
        connection.execute(text("ALTER TABLE action RENAME TO action_away"))
    try:
        broken = api.post(url, {}, once="k1")
    finally:
        with store.write() as connection:
            connection.execute(text("ALTER TABLE action_away RENAME TO action"))
    assert broken.status_code in (500, 503)
    assert story(store, event).as_json()["event"]["state"] == "parked"
    mended = api.post(url, {}, once="k1")
    assert (mended.status_code, mended.json["state"]) == (200, "waiting")
    assert "Idempotent-Replayed" not in mended.headers
