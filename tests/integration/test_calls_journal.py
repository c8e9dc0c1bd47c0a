"""The journal: rows before bytes, the order of a handler's calls, keys, and values computed once."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import delete, select, text

from receiver.ledger.control import Resolution, rerun, resolve, retry
from receiver.ledger.queue.sweep import erase_contents
from receiver.ledger.reports import story
from receiver.ledger.tables import CALL, VALUE
from tests.integration.call_harness import (
    SECRET,
    SILENCE,
    UNSENT,
    CallHarness,
    Handle,
    crash,
    letter,
    posts,
    reply,
    total,
)
from tests.integration.steps import deliver, later, row, state
from worker.calls.client import Calls
from worker.calls.errors import CallChanged, ClaimLost
from worker.calls.transport import Outgoing, Reply


def test_call_and_send_are_committed_before_the_first_byte(harness: CallHarness, event: UUID) -> None:
    """While the request leaves, the call with its key and the send are already committed."""
    seen: list[Any] = []

    def look(request: Outgoing) -> Reply:
        call = harness.call(event)
        seen.extend([call, *harness.sends(call.id)])
        assert ("Idempotency-Key", call.key) in request.headers
        assert request.body == call.body == b'{"to":"ada"}'
        assert request.url == call.url
        return reply()

    harness.transport.script = [look]
    assert harness.run(event, letter) == "done"
    call, send = seen
    assert (call.state, call.step, call.sends, call.method) == ("pending", "letter", 1, "POST")
    assert call.expires_at - call.first_sent_at == harness.api.key_life
    assert (send.open, send.ended_at) == (True, None)
    assert send.sending_until - send.at == harness.api.deadline


def test_no_transaction_is_open_while_a_call_is_on_its_way(harness: CallHarness, event: UUID) -> None:
    """No database connection is checked out during a send."""

    def busy(_request: Outgoing) -> Reply:
        assert harness.store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        return reply()

    harness.transport.script = [busy]
    assert harness.run(event, letter) == "done"


def test_a_resend_is_the_same_request(harness: CallHarness, event: UUID) -> None:
    """A resend has the same bytes and the same key."""
    harness.transport.script = [SILENCE, SILENCE]
    assert [harness.run(event, letter) for _ in range(3)] == ["waiting", "waiting", "done"]
    first, *others = harness.transport.sent
    assert others == [first, first]


def test_a_succeeded_call_is_not_sent_again(harness: CallHarness, event: UUID) -> None:
    """After a crash the handler gets the stored response and continues behind it."""
    harness.transport.script = [reply(202, b"\x00\xffkept", x_request="7"), crash]
    harness.die(event, posts("letter", "order"))
    seen: list[Any] = []

    def handle(_event: Any, calls: Any) -> None:
        seen.append(calls.shop.post("/letter", json={"for": "letter"}, step="letter"))
        calls.shop.post("/order", json={"for": "order"}, step="order")

    assert harness.run(event, handle) == "done"
    (stored,) = seen
    assert (stored.status_code, stored.content, stored.headers["x-request"]) == (202, b"\x00\xffkept", "7")
    assert [request.url.rpartition("/")[2] for request in harness.transport.sent] == [
        "letter",
        "order",
        "order",
    ]


def test_credentials_are_not_in_the_database(harness: CallHarness, event: UUID) -> None:
    """The ledger stores a credential only as an HMAC."""
    harness.transport.script = [SILENCE]
    harness.run(event, letter)
    assert "Bearer first-credential" in dict(harness.transport.sent[0].headers).values()
    assert "first-credential" not in str(harness.calls(event)) + str(harness.sends(harness.call(event).id))
    assert re.fullmatch("[0-9a-f]{64}", harness.call(event).credential)


@pytest.mark.parametrize(
    ("answer", "before"),
    [(SILENCE, "a send is open"), (reply(429), "nothing is open"), (UNSENT, "nothing left")],
)
def test_another_step_in_the_nth_place_parks(
    harness: CallHarness, event: UUID, answer: Reply, before: str
) -> None:
    """A changed handler sends nothing if another step stood in that position."""
    harness.transport.script = [answer]
    harness.run(event, posts("letter"))
    sent = len(harness.transport.sent)
    assert harness.run(event, posts("order")) == "parked", before
    assert len(harness.transport.sent) == sent
    assert "was 'letter' and is 'order' now" in str(row(harness.store, event).reason)
    assert row(harness.store, event).parked_call == harness.call(event).id


def test_another_step_parks_behind_a_finished_one_too(harness: CallHarness, event: UUID) -> None:
    """A finished call under another step name parks the event, and the second call is not sent."""
    harness.transport.script = [reply(), SILENCE]
    harness.run(event, posts("letter", "order"))
    assert harness.run(event, posts("parcel", "order")) == "parked"
    assert len(harness.transport.sent) == 2
    report = story(harness.store, event).as_json()["next"]
    assert "'parcel' now. Nothing was sent: let it make the calls in their first order and retry" in report
    assert "firstseen call resolve" not in report


@pytest.mark.parametrize("caught", [True, False])
def test_a_step_that_moved_to_another_place_is_not_sent_twice(
    harness: CallHarness, event: UUID, *, caught: bool
) -> None:
    """A retried handler that begins with its former second call does not resend it."""
    harness.transport.script = [reply(422), reply()]
    assert harness.run(event, _both_then_fail) == "waiting"
    retry(harness.store, event, "ada")
    assert harness.run(event, posts("order", caught=caught)) != "done"
    assert len(harness.transport.sent) == 2


def test_a_step_is_not_begun_again_in_the_place_of_a_replaced_one(harness: CallHarness, event: UUID) -> None:
    """A step that succeeded is not sent in the position of a replaced call."""
    harness.transport.script = [SILENCE, reply()]
    harness.run(event, posts("letter", "order", caught=True))
    later(harness.store, days=2)
    assert harness.run(event, posts("letter", "order", caught=True)) == "parked"
    resolve(harness.store, harness.calls(event)[0].id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run(event, posts("order")) != "done"
    assert len(harness.transport.sent) == 2


def _both_then_fail(_event: Any, calls: Any) -> None:
    posts("letter", "order", caught=True)(_event, calls)
    raise RuntimeError


@pytest.mark.parametrize("caught", [True, False])
def test_a_step_of_an_earlier_place_is_not_begun_again(
    harness: CallHarness, event: UUID, *, caught: bool
) -> None:
    """A step that moved to a later position parks with a sentence, and not with a database error."""
    harness.transport.script = [SILENCE]
    harness.run(event, posts("letter"))
    assert harness.run(event, posts("order", "letter", caught=caught)) == "parked"
    assert len(harness.transport.sent) == 1
    assert "SQL" not in str(row(harness.store, event).reason)


def test_a_rejected_call_moves_behind_one_that_the_handler_makes_first_now(
    harness: CallHarness, event: UUID
) -> None:
    """After a rejection a fixed handler may make a new call first; both are sent under new keys."""
    harness.transport.script = [reply(422)]
    assert harness.run(event, posts("order")) == "dead"
    assert harness.run_after_retry(event, posts("contact", "order")) == "done"
    assert [(call.position, call.step, call.state) for call in harness.calls(event)] == [
        (0, "order", "replaced"),
        (0, "contact", "succeeded"),
        (1, "order", "succeeded"),
    ]
    assert len(set(harness.transport.keys())) == 3


def test_a_caught_change_names_the_call_that_it_is_about(harness: CallHarness, event: UUID) -> None:
    """CallChanged has the id of the call whose step moved."""
    harness.run(event, _then(posts("letter"), _fail))
    raised: list[Exception] = []

    def moved(_event: Any, calls: Any) -> None:
        for step in ("order", "letter"):
            try:
                posts(step)(_event, calls)
            except Exception as error:  # noqa: BLE001 - the test inspects every error
                raised.append(error)

    assert harness.run(event, moved) == "parked"
    assert [(type(item), getattr(item, "call", None)) for item in raised] == [
        (CallChanged, harness.call(event).id)
    ] * 2


def _fail(_event: Any, _calls: Any) -> None:
    raise RuntimeError


@pytest.mark.parametrize("answer", [SILENCE, reply(429)])
def test_other_bytes_for_an_unfinished_step_park(harness: CallHarness, event: UUID, answer: Reply) -> None:
    """The reason has both fingerprints and both resolutions, and nothing is sent."""
    harness.transport.script = [answer]
    harness.run(event, posts("letter"))
    old = harness.call(event).fingerprint
    assert harness.run(event, posts("letter", json={"for": "eve"})) == "parked"
    assert len(harness.transport.sent) == 1
    call = harness.call(event)
    assert (call.state, call.fingerprint) == ("parked", old)
    reason = str(row(harness.store, event).reason)
    assert old[:12] in reason
    assert call.changed_to[:12] in reason
    assert "use the stored bytes" in reason
    assert "successor" in reason


def test_the_handler_gets_call_changed(harness: CallHarness, event: UUID) -> None:
    """The handler gets CallChanged; the event parks even if the handler catches it."""
    harness.transport.script = [SILENCE]
    harness.run(event, posts("letter"))
    caught: list[Exception] = []

    def handle(_event: Any, calls: Any) -> None:
        try:
            calls.shop.post("/letter", json={"for": "eve"}, step="letter")
        except CallChanged as error:
            caught.append(error)

    assert harness.run(event, handle) == "parked"
    assert len(caught) == 1


def test_other_bytes_for_a_succeeded_step_flag_the_event(harness: CallHarness, event: UUID) -> None:
    """The stored response is returned, nothing is sent, and the event is flagged as changed."""
    harness.transport.script = [reply(201, b"stored"), crash]
    harness.die(event, posts("letter", "order"))
    handle = _then(posts("letter", json={"for": "eve"}), posts("order"))
    assert harness.run(event, handle) == "done"
    assert row(harness.store, event).calls_changed
    assert [request.body for request in harness.transport.sent].count(b'{"for":"eve"}') == 0


def _then(*parts: Handle) -> Handle:
    def handle(event: Any, calls: Any) -> None:
        for part in parts:
            part(event, calls)

    return handle


def test_the_stored_bytes_go_out_when_a_person_says_so(harness: CallHarness, event: UUID) -> None:
    """`use-stored` sends the stored request under the stored key."""
    harness.transport.script = [reply(429)]
    harness.run(event, posts("letter"))
    changed = posts("letter", json={"for": "eve"})
    harness.run(event, changed)
    resolve(harness.store, harness.call(event).id, Resolution.USE_STORED, "ada")
    assert harness.run(event, changed) == "done"
    first, second = harness.transport.sent
    assert first == second


def test_a_successor_takes_the_new_bytes(harness: CallHarness, event: UUID) -> None:
    """`resend-as-new` sends the handler's present request under a new key."""
    harness.transport.script = [reply(429)]
    harness.run(event, posts("letter"))
    changed = posts("letter", json={"for": "eve"})
    harness.run(event, changed)
    later(harness.store, minutes=1)
    resolve(harness.store, harness.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run(event, changed) == "done"
    assert harness.transport.sent[1].body == b'{"for":"eve"}'
    assert len(set(harness.transport.keys())) == 2


def test_stored_bytes_do_not_go_to_another_host(harness: CallHarness, event: UUID) -> None:
    """A stored request is not sent to another base_url than its own."""
    harness.transport.script = [reply(429)]
    harness.run(event, letter)
    harness.api = _moved(harness)
    assert harness.run(event, letter) == "parked"
    resolve(harness.store, harness.call(event).id, Resolution.USE_STORED, "ada")
    assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 1


def _moved(harness: CallHarness) -> Any:
    """Return the API at another host."""
    return replace(harness.api, base_url="https://shop.example.org/v1")


def test_a_key_is_shaped_like_a_uuid_and_the_same_again(harness: CallHarness, event: UUID) -> None:
    """Keys are derived: a lost row gets the same key again."""
    assert harness.run(event, letter) == "done"
    (key,) = harness.transport.keys()
    assert (str(UUID(key)), UUID(key).version, UUID(key).variant) == (key, 4, "specified in RFC 4122")
    with harness.store.write() as connection:
        connection.execute(delete(CALL))
        connection.execute(text("UPDATE event SET state = 'waiting'"))
    assert harness.run(event, letter) == "done"
    assert harness.transport.keys() == [key, key]


def test_keys_differ_by_all_that_names_a_call(harness: CallHarness, event: UUID) -> None:
    """Source, event, generation, step and successor each change the key."""
    again = posts("letter", "order")
    harness.run(event, again)
    for source, name in (("stripe", "evt_2"), ("github", "evt_1")):
        assert harness.run(deliver(harness.store, name, source=source).event, again) == "done"
    rerun(harness.store, event, "ada", generation=0)
    harness.transport.script = [reply(422)]
    assert harness.run(event, again) == "dead"
    retry(harness.store, event, "ada")
    assert harness.run(event, again) == "done"
    # Two for each event, two for the generation, one that was rejected.
    assert len(harness.transport.keys()) == len(set(harness.transport.keys())) == 9


def test_a_rotated_secret_keeps_keys_and_parks_nothing(harness: CallHarness, event: UUID) -> None:
    """A resend uses the stored key, also after FIRSTSEEN_SECRET_KEY was rotated."""
    harness.transport.script = [SILENCE]
    harness.run(event, letter)
    harness.secrets = (b"the next secret key", SECRET)
    assert harness.run(event, letter) == "done"
    assert len(set(harness.transport.keys())) == 1


def test_a_secret_that_is_gone_parks_what_is_open(harness: CallHarness, event: UUID) -> None:
    """Without the old secret the credential cannot be compared, so an open send parks."""
    harness.transport.script = [SILENCE]
    harness.run(event, letter)
    harness.secrets = (b"the next secret key",)
    assert harness.run(event, letter) == "parked"


def test_two_calls_of_one_name_are_refused(harness: CallHarness, event: UUID) -> None:
    """A step names one call of an attempt; without `step` the second call of a kind is number 2."""

    def handle(_event: Any, calls: Any) -> None:
        calls.shop.post("/letters", json=1)
        calls.shop.post("/letters", json=2)
        calls.shop.post("/letters", json=3, step="shop POST /letters")

    assert harness.run(event, handle) == "waiting"
    assert [call.step for call in harness.calls(event)] == ["shop POST /letters", "shop POST /letters 2"]


def test_a_value_is_computed_once_for_a_generation(harness: CallHarness, event: UUID) -> None:
    """Every attempt of a generation gets the first attempt's value; a rerun computes it again."""
    numbers = iter(range(9))
    seen: list[Any] = []

    def handle(_event: Any, calls: Any) -> None:
        seen.append(calls.value("number", lambda: {"n": next(numbers)}))
        letter(_event, calls)

    harness.transport.script = [SILENCE]
    assert [harness.run(event, handle) for _ in range(2)] == ["waiting", "done"]
    rerun(harness.store, event, "ada", generation=0)
    harness.run(event, handle)
    assert seen == [{"n": 0}, {"n": 0}, {"n": 1}]


def test_a_value_that_two_compute_at_once_is_one(harness: CallHarness, event: UUID) -> None:
    """Concurrent threads of one attempt all get the value that was stored first."""
    held = harness.take(event)

    def compute(n: int) -> Any:
        return Calls(harness.context(), held).value("number", lambda: n)

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(compute, range(1, 5)))) == 1
    assert total(harness.store, VALUE) == 1


def test_a_value_of_a_lost_claim_is_not_kept(harness: CallHarness, event: UUID) -> None:
    """A worker that lost its claim stores no value and gets ClaimLost."""
    held = harness.take(event)
    calls = Calls(harness.context(), held)
    with pytest.raises(ClaimLost):
        calls.value("number", lambda: later(harness.store, seconds=61) or 1)
    assert total(harness.store, VALUE) == 0


def test_an_erased_request_is_not_sent(harness: CallHarness, event: UUID) -> None:
    """Erasing deletes bodies, responses and values but keeps the key; a retry then parks."""
    harness.transport.script = [reply(429)]
    harness.run(event, letter)
    with harness.store.write() as connection:
        erase_contents(connection, [event])
    call = harness.call(event)
    assert (call.body, call.answer, call.headers, call.key is None) == (None, None, "{}", False)
    assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 1


def test_an_erased_answer_parks(harness: CallHarness, event: UUID) -> None:
    """A retry that needs an erased response parks, and resends nothing."""
    harness.transport.script = [reply(), crash]
    harness.die(event, posts("letter", "order"))
    with harness.store.write() as connection:
        erase_contents(connection, [event])
    assert harness.run(event, posts("letter", "order")) == "parked"
    assert len(harness.transport.sent) == 2


def test_nothing_else_is_in_the_place_of_a_call(harness: CallHarness, event: UUID) -> None:
    """Values and GETs between calls do not count as positions."""
    harness.transport.script = [reply(200), reply()]

    def handle(_event: Any, calls: Any) -> None:
        calls.shop.get("/letters")
        calls.value("x", lambda: 1)
        letter(_event, calls)

    assert harness.run(event, handle) == "done"
    with harness.store.read() as connection:
        assert connection.execute(select(CALL.c.position)).scalars().all() == [0]
    assert harness.transport.sent[0].method == "GET"
    assert len(harness.transport.keys()) == 1
    assert state(harness.store, event) == "done"
