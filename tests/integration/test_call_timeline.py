"""Reports of calls: lists, one call's timeline, and the calls in an event's timeline."""

import json
from datetime import timedelta
from uuid import uuid4

import pytest

from receiver.ledger.control import Resolution, discard, resolve, retry
from receiver.ledger.errors import BadCursor, UnknownCall
from receiver.ledger.filter import CallFilter
from receiver.ledger.lease import Outcome
from receiver.ledger.queue import settle
from receiver.ledger.reports import call_story, list_calls, stats, story
from receiver.ledger.states import CallState, Move, Protection, SendOutcome
from receiver.ledger.store import Store
from tests.integration.call_steps import (
    answered,
    call_row,
    change_call,
    planned,
    sent,
    with_parked_call,
)
from tests.integration.steps import change, deliver, later, row, take

YES = SendOutcome.SUCCEEDED


def steps(store: Store, **which: object) -> list[str]:
    """Return the steps of the calls that match a filter."""
    return [call.step for call in list_calls(store, CallFilter(**which)).data]  # type: ignore[arg-type]


def test_each_part_of_a_filter_narrows(store: Store) -> None:
    """State, API, source and event each narrow the list, and together they intersect."""
    event, _ = with_parked_call(store)
    held = take(store, deliver(store, "evt_2", source="github").event)
    done = planned(store, held, "contact", api="salesly").id
    answered(store, held, done, YES)
    assert steps(store) == ["contact", "letter"]
    assert steps(store, state=CallState.PARKED) == ["letter"]
    assert steps(store, state=CallState.REJECTED) == []
    assert steps(store, api="salesly") == ["contact"]
    assert steps(store, source="stripe") == ["letter"]
    assert steps(store, event_id="evt_2") == ["contact"]
    assert steps(store, event=event) == ["letter"]
    assert steps(store, event=event, api="salesly") == []
    assert steps(store, source="stripe", event_id="evt_1", state=CallState.PARKED, api="stannp") == ["letter"]


@pytest.mark.parametrize("text", ["\x00", "\ud800", "é" * 300])
def test_texts_that_no_column_holds_match_nothing(store: Store, text: str) -> None:
    """They match no call and cause no error."""
    with_parked_call(store)
    for which in (CallFilter(api=text), CallFilter(source=text), CallFilter(event_id=text)):
        assert list_calls(store, which).data == []


def test_pages_are_complete_and_disjoint_while_calls_arrive(store: Store) -> None:
    """Following `next` returns every call once, newest first, while others arrive."""
    held = take(store, deliver(store).event)
    there = [str(planned(store, held, f"step {n}", n).id) for n in range(11)]
    seen: list[str] = []
    cursor = None
    for _ in range(len(there)):
        page = list_calls(store, CallFilter(), limit=3, cursor=cursor)
        seen += [str(call.id) for call in page.data]
        planned(store, held, f"late {len(seen)}", len(there) + len(seen))
        cursor = page.next
        if cursor is None:
            break
    assert seen == there[::-1]


def test_a_foreign_cursor_is_refused(store: Store) -> None:
    """A cursor that this ledger did not make is a BadCursor."""
    with pytest.raises(BadCursor):
        list_calls(store, CallFilter(), cursor="nonsense")


def test_an_events_story_has_its_calls_with_their_sends(store: Store) -> None:
    """The timeline joins attempts, calls, sends, keys and responses: a send names its attempt."""
    event = deliver(store).event
    held = take(store, event)
    call = planned(store, held, once="letter-7").id
    answered(store, held, call, SendOutcome.UNKNOWN, 0, open=True)
    assert settle(store, [(held, Outcome(Move.RETRY_LATER))])
    later(store, minutes=1)
    held = take(store, event)
    assert planned(store, held, once="letter-7").id == call
    answered(store, held, call, YES)
    planned(store, held, "second", 1)
    report = story(store, event).as_json()
    json.dumps(report)
    first, second = report["calls"]
    assert (first["step"], first["state"], first["key"], first["once"]) == (
        "letter", "succeeded", "key-letter-0", "letter-7",
    )  # fmt: skip
    assert (first["status"], first["answer"]) == (201, {"size": 8, "content_type": "application/json"})
    assert first["expires_at"] > first["first_sent_at"] > first["created_at"]
    assert [(s["number"], s["attempt"], s["outcome"], s["status"], s["open"]) for s in first["sends"]] == [
        (1, 1, "unknown", None, False), (2, 2, "succeeded", 201, False),
    ]  # fmt: skip
    claims = [attempt["claim"] for attempt in report["attempts"]]
    assert [send["claim"] for send in first["sends"]] == claims
    assert (second["state"], second["sends"], second["answer"]) == ("pending", [], None)
    assert "body" not in json.dumps(report["calls"]), "a call's contents stand in its event's story"


def test_successors_and_generations_stand_in_order(store: Store) -> None:
    """Calls are ordered by generation, position and successor."""
    event, call = with_parked_call(store)
    later(store, minutes=2)
    resolve(store, call, Resolution.RESEND_AS_NEW, "ann")
    held = take(store, event)
    answered(store, held, planned(store, held).id, YES)
    planned(store, held, "second", 1)
    change(store, event, generation=1)
    change_call(store, planned(store, held, "third", 2).id, generation=1, position=0)
    report = story(store, event).as_json()["calls"]
    assert [(c["generation"], c["position"], c["successor"], c["step"], c["state"]) for c in report] == [
        (0, 0, 0, "letter", "replaced"),
        (0, 0, 1, "letter", "succeeded"),
        (0, 1, 0, "second", "pending"),
        (1, 0, 0, "third", "pending"),
    ]
    assert [c["key"] for c in report[:2]] == ["key-letter-0", "key-letter-1"]


def test_a_story_stays_readable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many calls and sends the latest are shown, and all are counted."""
    monkeypatch.setattr("receiver.ledger.reports.call_timeline.CALLS_SHOWN", 3)
    monkeypatch.setattr("receiver.ledger.reports.call_timeline.SENDS_SHOWN", 2)
    event = deliver(store).event
    held = take(store, event)
    for number in range(4):
        call = planned(store, held, f"step {number}", number).id
    for _ in range(3):
        sent(store, held, call)
    report = story(store, event).as_json()["calls"]
    assert [item["step"] for item in report] == ["step 1", "step 2", "step 3"]
    assert [send["number"] for send in report[-1]["sends"]] == [2, 3]
    assert report[-1]["send_count"] == 3
    assert len(call_story(store, call).as_json()["sends"]) == 3


def test_a_calls_story_has_what_went_out_and_came_back(store: Store) -> None:
    """Request and response are text if they are UTF-8, else base64, and null once erased."""
    held = take(store, deliver(store).event)
    call = planned(store, held, body=b"\xff\x00").id
    answered(store, held, call, YES)
    report = call_story(store, call).as_json()
    assert report["request"] == {
        "content_type": "application/json", "size": 2, "encoding": "base64", "body": "/wA=",
    }  # fmt: skip
    assert report["answer"] == {
        "content_type": "application/json", "size": 8, "encoding": "utf-8", "body": '{"id":7}',
    }  # fmt: skip
    assert (report["event"]["event_id"], report["call"]["source"]) == ("evt_1", "stripe")
    change_call(store, call, body=None, answer=None, answer_headers=None, headers="{}")
    erased = call_story(store, call).as_json()
    assert (erased["request"], erased["answer"]) == (None, None)


def test_an_unknown_call_is_named(store: Store) -> None:
    """The error contains the id."""
    missing = uuid4()
    with pytest.raises(UnknownCall, match=str(missing)):
        call_story(store, missing).as_json()


def test_a_parked_event_says_what_each_choice_does(store: Store) -> None:
    """The next step lists the command of each resolution, its earliest time, and its risk."""
    event, call = with_parked_call(store)
    report = story(store, event).as_json()
    assert (report["event"]["parked_call"], report["event"]["calls_changed"]) == (str(call), False)
    sentence = report["next"]
    for words in (
        "Nobody knows whether it happened: look at stannp.",
        f"`firstseen call resolve {call} --happened`",
        "`--resend-as-new` sends what the handler asks for now in its place, under a new key, so it happens",
        "happens twice if it did happen, not before 20",
        "`--give-up` ends the event",
    ):
        assert words in sentence, sentence
    assert "--use-stored" not in sentence
    assert call_story(store, call).as_json()["next"] in sentence
    later(store, minutes=2)
    assert "not before" not in story(store, event).as_json()["next"]


def test_a_changed_handler_has_two_more_choices(store: Store) -> None:
    """Both resolutions for a changed request are offered, and both fingerprints are shown."""
    event = deliver(store).event
    held = take(store, event)
    call = planned(store, held).id
    settle(store, [(held, Outcome(Move.RETRY_LATER))])
    held = take(store, event)
    assert planned(store, held, fingerprint="e" * 64).handler_changed
    settle(store, [(held, Outcome(Move.PARK, call=call))])
    report = story(store, event).as_json()
    assert (report["calls"][0]["fingerprint"], report["calls"][0]["changed_to"]) == ("f" * 64, "e" * 64)
    sentence = report["next"]
    assert "It has not happened" in sentence
    assert "`--use-stored` sends the stored bytes under the stored key" in sentence
    assert "`--resend-as-new` sends what the handler asks for now in its place, under a new key;" in sentence


def test_other_bytes_of_a_call_that_succeeded_flag_the_event(store: Store) -> None:
    """The event is flagged if its handler would now make another request."""
    event = deliver(store).event
    held = take(store, event)
    answered(store, held, planned(store, held).id, YES)
    planned(store, held, fingerprint="e" * 64)
    assert story(store, event).as_json()["event"]["calls_changed"] is True


def test_a_waiting_event_says_which_call_waits(store: Store) -> None:
    """The next step names the call and says that it keeps its key."""
    event = deliver(store).event
    held = take(store, event)
    answered(store, held, planned(store, held).id, SendOutcome.LATER, 429, retry_after=timedelta(minutes=5))
    settle(store, [(held, Outcome(Move.FINISH))])
    report = story(store, event).as_json()["next"]
    assert report.endswith("Its call 'letter' waits, and goes out again then, under the same key."), report


def test_a_retry_after_the_life_of_a_key_says_that_it_parks_again(store: Store) -> None:
    """The next step does not promise a send after the key's expiry."""
    event, _ = with_parked_call(store)
    later(store, days=2)
    retry(store, event, "ann")
    report = story(store, event).as_json()["next"]
    assert report.endswith("'letter' parks then: it may have happened, and its key's life is over."), report


def test_a_dead_event_says_what_a_retry_would_send(store: Store) -> None:
    """A retry sends a successor of the rejected call; a discarded event promises nothing."""
    event = deliver(store).event
    held = take(store, event)
    call = planned(store, held).id
    answered(store, held, call, SendOutcome.REJECTED, 422)
    settle(store, [(held, Outcome(Move.GIVE_UP, reason="It was refused."))])
    assert "A retry sends its rejected call 'letter' as a successor" in story(store, event).as_json()["next"]
    assert "did not happen" in call_story(store, call).as_json()["next"]
    retry(store, event, "ann")
    assert call_row(store, call).state == "replaced"
    discard(store, event, "ann")
    assert "successor" not in story(store, event).as_json()["next"]


@pytest.mark.parametrize("state", CallState)
@pytest.mark.parametrize("parked", [True, False])
def test_every_state_of_a_call_has_a_sentence(store: Store, state: CallState, *, parked: bool) -> None:
    """Every state of a call has a next step, whatever the state of its event."""
    event, call = with_parked_call(store)
    change_call(store, call, state=state)
    if not parked:
        change(store, event, state="waiting")
    report = call_story(store, call).as_json()["next"]
    assert report.endswith("."), report
    assert ("firstseen call resolve" in report) == (parked and state in ("pending", "parked"))


def test_a_call_of_an_earlier_generation_needs_no_resolution(store: Store) -> None:
    """Its next step names the event's present generation."""
    event, call = with_parked_call(store)
    change(store, event, generation=1)
    assert call_story(store, call).as_json()["next"] == "Nothing: its event is in generation 1 now."


def test_a_call_that_shares_another_events_answer_says_so(store: Store) -> None:
    """While the first call with the same `once` is unfinished, the second waits for it."""
    first = take(store, deliver(store, "evt_1").event)
    holder = planned(store, first, once="order-1").id
    second = take(store, deliver(store, "evt_2").event)
    call = planned(store, second, once="order-1").id
    report = call_story(store, call).as_json()
    assert (report["call"]["shares"], report["next"]) == (
        str(holder), f"It waits for the call {holder} of another event.",
    )  # fmt: skip
    settle(store, [(second, Outcome(Move.FINISH))])
    assert "waits for another event's call" in story(store, second.event).as_json()["next"]


def test_calls_are_counted_by_api(store: Store) -> None:
    """Calls are counted by state and latest outcome; a call that was never sent has no outcome."""
    held = take(store, deliver(store).event)
    answered(store, held, planned(store, held, "one", 0).id, YES)
    answered(store, held, planned(store, held, "two", 1).id, SendOutcome.LATER, 429)
    planned(store, held, "three", 2, api="salesly", protection=Protection.UNPROTECTED)
    salesly, stannp = stats(store).as_json()["calls"]
    assert (salesly["api"], salesly["count"], salesly["states"]["pending"], salesly["outcomes"]) == (
        "salesly", 1, 1, {},
    )  # fmt: skip
    assert (stannp["count"], stannp["states"]["succeeded"], stannp["states"]["pending"]) == (2, 1, 1)
    assert stannp["outcomes"] == {"succeeded": 1, "later": 1}
    assert row(store, held.event).state == "processing"
