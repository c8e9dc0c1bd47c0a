"""`/v1/calls`: lists, timelines and resolutions of outbound calls."""

from typing import Any
from uuid import UUID

import pytest

from receiver.ledger.reports.models import CallStory, CallsView
from receiver.ledger.store import Store
from tests.integration.call_steps import call_row, change_call, with_parked_call
from tests.integration.steps import change, later, state
from tests.services.api import Api, problem


@pytest.fixture
def parked(store: Store) -> tuple[UUID, UUID]:
    """Give an event parked for a call that may be resent as new."""
    found = with_parked_call(store)
    later(store, minutes=2)
    return found


def test_calls_are_listed_and_shown(api: Api, parked: tuple[UUID, UUID]) -> None:
    """The list has the call's row, its own page the whole timeline, both as documented."""
    event, call = parked
    listed, answer = api.get("/v1/calls", state="parked").json, api.get(f"/v1/calls/{call}").json
    assert CallsView.model_validate(listed).data[0].event == event
    assert CallStory.model_validate(answer).sends[0].open
    assert listed["data"] == [answer["call"]]
    assert answer["request"]["body"] == '{"to":"Ann"}'
    assert api.get("/v1/calls", state="succeeded").json == {"data": [], "next": None}


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("state=asleep", "state is wrong"),
        ("event=evt_1", "event is wrong: write an id such as"),
        ("event=0199c0de00007000800000000000000a", "event is wrong: write an id such as"),
        ("cursor=x", "cursor is wrong"),
        ("limit=0", "limit is wrong"),
        ("type=a", "type is unknown; known are"),
    ],
)
def test_a_wrong_query_is_refused_with_a_sentence(api: Api, query: str, sentence: str) -> None:
    """The sentence names the parameter and what is allowed."""
    refused = api.get(f"/v1/calls?{query}")
    assert problem(refused) == (422, "invalid-request")
    assert sentence in refused.json["detail"]


def test_happened_is_resolved_with_a_response(api: Api, store: Store, parked: tuple[UUID, UUID]) -> None:
    """The call gets the given response, its event is nudged, and the audit names the key."""
    event, call = parked
    given = {"status": 201, "content_type": "application/json", "body": '{"id": "é"}'}
    response = api.post(f"/v1/calls/{call}/resolve", {"how": "happened", "response": given})
    assert response.status_code == 200
    answer = response.json["answer"]
    assert (response.json["call"]["state"], response.json["call"]["status"]) == ("succeeded", 201)
    assert (answer["body"], answer["content_type"]) == (given["body"], "application/json")
    assert (response.json["event"]["state"], api.nudged) == ("waiting", 1)
    (action,) = response.json["actions"]
    assert (action["what"], action["who"]) == ("happened", "api:ops")
    assert state(store, event) == "waiting"


@pytest.mark.parametrize("how", ["resend-as-new", "use-stored", "give-up"])
def test_each_resolution_is_taken(api: Api, store: Store, parked: tuple[UUID, UUID], how: str) -> None:
    """Giving up ends the event without a nudge; every other resolution lets it continue."""
    _, call = parked
    change_call(store, call, changed_to="e" * 64)
    answer = api.post(f"/v1/calls/{call}/resolve", {"how": how})
    ended = how == "give-up"
    assert (answer.status_code, answer.json["event"]["state"]) == (200, "dead" if ended else "waiting")
    assert api.nudged == (0 if ended else 1)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"how": "maybe"},
        {"how": None},
        {"how": "give-up", "response": {}},
        {"how": "happened", "response": {"status": 404}},
        {"how": "happened", "response": {"status": "200"}},
        {"how": "happened", "response": {"content_type": "text/html\r\nX-A: b"}},
        {"how": "happened", "response": {"headers": {}}},
        {"how": "happened", "body": ""},
    ],
)
def test_a_wrong_resolution_is_refused(
    api: Api, store: Store, parked: tuple[UUID, UUID], body: dict[str, Any]
) -> None:
    """The call stays parked."""
    _, call = parked
    assert problem(api.post(f"/v1/calls/{call}/resolve", body)) == (422, "invalid-request")
    assert call_row(store, call).state == "parked"


def test_a_resolution_that_the_states_forbid_is_refused(
    api: Api, store: Store, parked: tuple[UUID, UUID]
) -> None:
    """A resolved call, and a call whose event is not parked, are 409."""
    event, call = parked
    change(store, event, state="waiting")
    moved = api.post(f"/v1/calls/{call}/resolve", {"how": "happened"})
    assert problem(moved) == (409, "not-allowed")
    assert "while its event is waiting" in moved.json["detail"]
    change(store, event, state="parked")
    assert api.post(f"/v1/calls/{call}/resolve", {"how": "happened"}).status_code == 200
    again = api.post(f"/v1/calls/{call}/resolve", {"how": "give-up"})
    assert problem(again) == (409, "not-allowed")
    assert "is succeeded" in again.json["detail"]
    assert api.nudged == 1


def test_a_resend_as_new_that_comes_too_early_is_refused(api: Api, store: Store) -> None:
    """The sentence says when the call may be resent."""
    _, call = with_parked_call(store)
    refused = api.post(f"/v1/calls/{call}/resolve", {"how": "resend-as-new"})
    assert problem(refused) == (409, "not-allowed")
    assert "resend it as new after 20" in refused.json["detail"]
