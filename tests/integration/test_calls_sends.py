"""What lets a request go out, and out again: claim, lease, the key's life, the credential, patience."""

import socket
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from receiver.ledger.control import Resolution, resolve, retry
from receiver.ledger.errors import NotAllowed
from receiver.ledger.queue import claim, renew, settle
from receiver.ledger.store import Store
from tests.integration.office import DAY, QUIET, SILENCE, UNSENT, Handle, Office, crash, letter, posts, reply
from tests.integration.steps import LEASE, change, deliver, later, row, state
from tests.services.clock import Clock
from worker.calls import perform
from worker.calls.client import Calls
from worker.calls.errors import CallLater, CallLocked, CallRefused, CallRejected, ClaimLost
from worker.calls.outbound import CallArguments, build, complete
from worker.calls.perform import LOCKED_PAUSE_MAX, LOCKED_SHARE
from worker.calls.transport import HttpTransport, NoReply, Outgoing, Reply


def unprotected(_event: Any, calls: Any) -> None:
    """Make a call that nothing protects."""
    calls.shop.post("/letters", json={}, unprotected=True)


def replaced(_event: Any, calls: Any) -> None:
    """Make a call that is idempotent by itself."""
    calls.shop.put("/letters/1", json={})


def test_past_the_life_of_its_key_nothing_is_resent(office: Office, event: UUID) -> None:
    """Less the margin: one second before it a resend goes out, one after it call and event park."""
    office.transport.script = [SILENCE, SILENCE]
    office.run(event, letter)
    end = office.api.key_life - office.api.key_margin
    later(office.store, seconds=end.total_seconds() - 5)
    assert office.run(event, letter) == "waiting"
    later(office.store, seconds=10)
    assert office.run(event, letter) == "parked"
    assert len(office.transport.sent) == 2
    call = office.call(event)
    assert (call.state, call.reason.startswith("It went out 2 times,")) == ("parked", True)
    office.change_call(call.id, state="pending", sends=1)
    assert office.run_after_retry(event, letter) == "parked"
    assert office.call(event).reason.startswith("It went out once,")


def test_the_life_of_a_key_is_set_by_the_first_send(office: Office, event: UUID) -> None:
    """Later sends move neither its beginning nor its end."""
    office.transport.script = [SILENCE, SILENCE]
    office.run(event, letter)
    before = office.call(event)
    later(office.store, hours=5)
    office.run(event, letter)
    after = office.call(event)
    assert after.sends == 2
    assert (after.first_sent_at, after.expires_at) == (before.first_sent_at, before.expires_at)


def test_a_retry_by_a_person_sends_nothing_past_the_life(office: Office, event: UUID) -> None:
    """The event goes on and parks again, however often."""
    office.transport.script = [SILENCE]
    office.run(event, letter)
    later(office.store, days=2)
    assert office.run(event, letter) == "parked"
    for _ in range(2):
        retry(office.store, event, "ada")
        assert office.run(event, letter) == "parked"
    assert len(office.transport.sent) == 1


@pytest.mark.parametrize("handle", [letter, replaced])
def test_under_another_credential_nothing_is_resent(store: Store, event: UUID, handle: Handle) -> None:
    """A rotation while a send is open parks; with the old credential back, a retry goes out."""
    office = Office(store, "salesly")
    office.transport.script = [SILENCE]
    office.run(event, handle)
    office.rotate("second-credential")
    later(store, minutes=1)
    assert office.run(event, handle) == "parked"
    assert "credential" in office.call(event).reason
    office.rotate("first-credential")
    retry(store, event, "ada")
    assert office.run(event, handle) == "done"
    assert len(office.transport.sent) == 2


@pytest.mark.parametrize("answer", [reply(429), UNSENT])
def test_another_credential_is_no_obstacle_while_nothing_is_open(
    office: Office, event: UUID, answer: Any
) -> None:
    """What certainly did not happen goes out again under the new one, days later too."""
    office.transport.script = [answer]
    office.run(event, letter)
    office.rotate("second-credential")
    later(office.store, days=2)
    assert office.run(event, letter) == "done"


@pytest.mark.parametrize("dialect", ["none", "stripe"])
def test_an_unprotected_call_is_sent_once(store: Store, event: UUID, dialect: str) -> None:
    """Its answer is lost: it parks, and no retry sends it again."""
    office = Office(store, dialect)
    path = {"none": "post", "stripe": "put"}[dialect]

    def handle(_event: Any, calls: Any) -> None:
        getattr(calls.shop, path)("/letters", json={}, unprotected=True)

    office.transport.script = [SILENCE]
    assert office.run(event, handle) == "waiting"
    assert office.run(event, handle) == "parked"
    retry(store, event, "ada")
    assert office.run(event, handle) == "parked"
    assert (len(office.transport.sent), office.call(event).key) == (1, None)


def test_an_unprotected_call_that_was_not_executed_is_sent_again(store: Store, event: UUID) -> None:
    """No byte left, or a 429 came: that is certain."""
    office = Office(store, "none")
    office.transport.script = [UNSENT, reply(429)]
    assert [office.run(event, unprotected) for _ in range(3)] == ["waiting", "waiting", "done"]


def test_an_unprotected_503_is_unknown(store: Store, event: UUID) -> None:
    """Without a key a 503 says nothing: it is not sent again."""
    office = Office(store, "none")
    office.transport.script = [reply(503)]
    assert [office.run(event, unprotected) for _ in range(2)] == ["waiting", "parked"]


def test_what_nothing_protects_is_refused(store: Store, event: UUID) -> None:
    """Without `unprotected=True` it is not even planned."""
    office = Office(store, "none")
    with pytest.raises(CallRefused, match="unprotected=True"):
        posts("letter")(None, Calls(office.context(), office.take(event)))
    assert (office.calls(event), office.transport.sent) == ([], [])


def test_quiet_time_keeps_copies_apart(store: Store, event: UUID) -> None:
    """Where nobody says what two copies do, a resend waits for deadline and quiet, at no attempt's cost."""
    office = Office(store, "salesly")
    office.transport.script = [crash]
    office.die(event, letter)
    change(store, event, state="waiting", lease_until=None, attempts=0)
    held = office.take(event)
    with pytest.raises(CallLater) as caught:
        letter(None, Calls(office.context(), held))
    wait = office.api.deadline + QUIET
    assert wait - timedelta(seconds=10) < caught.value.delay <= wait
    assert len(office.transport.sent) == 1
    assert settle(store, [(held, office.perform(held, letter))])
    found = row(store, event)
    assert (found.state, found.attempts) == ("waiting", 0)
    assert office.run(event, letter) == "done"
    first, second = office.sends(office.call(event).id)
    assert second.at >= first.sending_until + QUIET


def test_a_caught_wait_for_quiet_does_not_spin(store: Store, event: UUID) -> None:
    """A handler that swallows it is not run again at once."""
    office = Office(store, "salesly")
    office.transport.script = [crash]
    office.die(event, letter)
    change(store, event, state="waiting", lease_until=None)
    assert office.run(event, posts("letter", json={"to": "ada"}, caught=True)) == "parked"
    other = deliver(store, "evt_2").event
    office.transport.script = [crash]
    office.die(other, posts("letter"))
    change(store, other, state="waiting", lease_until=None)
    assert office.run(other, posts("letter", caught=True)) == "waiting"
    assert claim(store, other, lease=LEASE, worker="w") is None


def test_a_locking_api_needs_no_quiet(office: Office, event: UUID) -> None:
    """Where a copy under way is answered, the resend goes at once."""
    office.transport.script = [crash]
    office.die(event, letter)
    change(office.store, event, state="waiting", lease_until=None)
    assert office.run(event, letter) == "done"


def test_a_locked_call_is_waited_for_in_its_attempt(office: Office, event: UUID) -> None:
    """It is sent again in the same attempt until it is free."""
    office.transport.script = [crash]
    office.die(event, letter)
    office.transport.script = [reply(409), reply(409), reply(201)]
    assert office.run(event, letter) == "done"
    assert len(office.transport.sent) == 4
    assert row(office.store, event).attempts == 2


def test_a_call_that_stays_locked_becomes_later(
    office: Office, event: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wait in the attempt ends long before its lease; then it costs no attempt."""
    clock = Clock()
    monkeypatch.setattr(perform, "time", clock)
    office.transport.script = [reply(409)] * 99
    with pytest.raises(CallLocked):
        letter(None, Calls(office.context(), office.take(event)))
    share = office.lease.total_seconds() / LOCKED_SHARE
    assert share - LOCKED_PAUSE_MAX < clock.slept <= share
    assert 2 <= len(office.transport.sent) < 99
    change(office.store, event, state="waiting", lease_until=None, attempts=0)
    assert office.run(event, letter) == "waiting"
    assert row(office.store, event).attempts == 0


@pytest.mark.parametrize(("status", "attempts"), [(429, 0), (503, 0), (500, 1)])
def test_retry_after_says_when(office: Office, status: int, attempts: int) -> None:
    """Seconds or a date, at no attempt's cost where it was not executed or a key protects it."""
    with office.store.read() as connection:
        now = connection.execute(select(office.store.now())).scalar_one()
    date = format_datetime(now + timedelta(hours=2), usegmt=True)
    for after, wait in (("3600", 1), (date, 2), ("999999999", 24)):
        one = deliver(office.store, f"evt_{wait}").event
        office.transport.script = [reply(status, retry_after=after)]
        assert office.run(one, letter) == "waiting"
        found = row(office.store, one)
        assert abs(found.due_at - now - timedelta(hours=wait)) < timedelta(minutes=2), after
        assert found.attempts == attempts


def test_retry_after_0_backs_off(office: Office, event: UUID) -> None:
    """An API that asks for the next send at once does not get it at once for three days."""
    office.transport.script = [reply(429, retry_after="0")]
    assert office.run(event, letter) == "waiting"
    call = office.call(event)
    assert call.due_at > office.sends(call.id)[0].ended_at


def test_without_a_credential_it_waits_longer_and_longer(office: Office, event: UUID) -> None:
    """Each wait is an attempt's row: one that lasts for hours is not asked after every second."""
    office.api = replace(office.api, problem="[shop] has no credential")
    assert office.run(event, letter) == "waiting"
    later(office.store, hours=1)
    assert office.run(event, letter) == "waiting"
    now = office.call(event).trying_since + timedelta(hours=1)
    assert row(office.store, event).due_at - now > timedelta(minutes=5)
    assert office.transport.sent == []


def test_a_503_is_later_only_while_its_key_lives(office: Office, event: UUID) -> None:
    """The answer comes when the key's life is over: nobody knows, and it parks."""

    def slow(_request: Outgoing) -> Reply:
        office.store.shift += DAY
        return reply(503)

    office.transport.script = [slow]
    assert office.run(event, letter) == "waiting"
    assert row(office.store, event).attempts == 1
    assert office.call(event).outcome == "unknown"
    assert office.run(event, letter) == "parked"


def test_patience_ends(office: Office, event: UUID) -> None:
    """Past give_up_after what is later parks, and a person's retry gives it as much again."""
    office.transport.script = [reply(429, retry_after="86400")] * 4
    assert [office.run(event, letter) for _ in range(2)] == ["waiting"] * 2
    later(office.store, days=3)
    assert office.run(event, letter) == "parked"
    assert office.run_after_retry(event, letter) == "waiting"
    assert len(office.transport.sent) == 3


def test_a_stored_rejection_ends_the_call(office: Office, event: UUID) -> None:
    """A 4xx with the replay's marker is the end of all its sends: rejected, and the event is dead."""
    office.transport.script = [SILENCE, reply(402, idempotent_replayed="true")]
    assert [office.run(event, letter) for _ in range(2)] == ["waiting", "dead"]
    assert (office.call(event).state, office.open_sends(office.call(event).id)) == ("rejected", 0)


def test_a_stored_failure_parks(office: Office, event: UUID) -> None:
    """A 5xx with the marker would come back for as long as the key lives: a person must look."""
    office.transport.script = [SILENCE, reply(500, idempotent_replayed="true")]
    assert [office.run(event, letter) for _ in range(2)] == ["waiting", "parked"]


def test_a_rejection_without_marker_parks_while_a_send_is_open(office: Office, event: UUID) -> None:
    """Is it about the earlier send, or its result? Nobody knows."""
    office.transport.script = [SILENCE, reply(422)]
    assert [office.run(event, letter) for _ in range(2)] == ["waiting", "parked"]
    retry(office.store, event, "ada")
    later(office.store, days=2)
    assert office.run(event, letter) == "parked"
    assert len(office.transport.sent) == 2


def test_a_claim_lost_before_the_plan_plans_nothing(office: Office, event: UUID) -> None:
    """A worker that slept past its lease writes no row and sends nothing."""
    held = office.take(event)
    later(office.store, seconds=61)
    with pytest.raises(ClaimLost):
        letter(None, Calls(office.context(), held))
    assert (office.calls(event), office.transport.sent) == ([], [])


@pytest.mark.parametrize("taken", [True, False])
def test_a_claim_lost_before_the_mark_sends_nothing(office: Office, event: UUID, *, taken: bool) -> None:
    """The lease ends while the connection is made, whether somebody else has the event yet or not."""
    held = office.take(event)

    def lose() -> None:
        later(office.store, seconds=61)
        if taken:
            assert claim(office.store, event, lease=LEASE, worker="other") is not None

    office.transport.before_begin = lose
    with pytest.raises(ClaimLost):
        letter(None, Calls(office.context(), held))
    assert (office.transport.sent, office.sends(office.call(event).id)) == ([], [])


def test_a_claim_lost_is_not_done(office: Office, event: UUID) -> None:
    """A handler that catches it, past max_runtime, has not finished its event."""
    office.max_runtime = timedelta(seconds=-1)
    assert office.run(event, posts("letter", caught=True)) == "waiting"
    assert office.calls(event) == []


def test_a_call_that_ended_before_the_mark_is_not_sent(office: Office, event: UUID) -> None:
    """A late answer comes between plan and mark: the handler gets that one."""
    office.transport.script = [crash]
    frozen = office.die(event, letter)

    def answered() -> None:
        if office.call(event).state == "pending":
            office.late(frozen, office.sends(office.call(event).id)[0], reply(201, b"late"))

    office.transport.before_begin = answered
    assert office.run(event, letter) == "waiting"
    assert office.run(event, letter) == "done"
    assert len(office.transport.sent) == 1


def test_a_send_outlasts_no_lease(office: Office, event: UUID) -> None:
    """A mark near the lease's end extends it beyond the send, and `renew` does not shorten it."""
    held = office.take(event)
    later(office.store, seconds=50)
    seen: list[Any] = []

    def renewed(_request: Outgoing) -> Reply:
        marked = row(office.store, event).lease_until
        assert renew(office.store, [held], lease=timedelta(seconds=1)) == set()
        seen.extend([marked, row(office.store, event).lease_until])
        return reply()

    office.transport.script = [renewed]
    letter(None, Calls(office.context(), held))
    marked, after = seen
    (send,) = office.sends(office.call(event).id)
    assert marked == after > send.sending_until
    assert renew(office.store, [held], lease=DAY) == set()
    assert row(office.store, event).lease_until > after


def test_resending_as_new_waits_for_quiet(office: Office, event: UUID) -> None:
    """Until deadline and quiet are over the last send may still be under way there."""
    office.transport.script = [SILENCE]
    office.run(event, letter)
    office.rotate("second-credential")
    assert office.run(event, letter) == "parked"
    with pytest.raises(NotAllowed, match="may still be under way"):
        resolve(office.store, office.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    later(office.store, minutes=1)
    resolve(office.store, office.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    assert office.run(event, letter) == "done"
    assert len(set(office.transport.keys())) == 2


def test_a_get_is_neither_kept_nor_keyed(office: Office, event: UUID) -> None:
    """It goes out every time, and what it fails with uses attempts up."""

    def handle(_event: Any, calls: Any) -> None:
        calls.shop.get("/letters", params={"page": 2})

    office.transport.script = [reply(200), reply(503), reply(503), reply(503)]
    assert office.run(event, handle) == "done"
    other = deliver(office.store, "evt_2").event
    assert [office.run(other, handle) for _ in range(3)] == ["waiting", "waiting", "dead"]
    assert (office.calls(event), office.transport.keys()) == ([], [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_get_waits_as_long_as_it_is_asked_to(office: Office, event: UUID, status: int) -> None:
    """Retry-After counts for what is only read, too."""
    office.transport.script = [reply(status, retry_after="3600")]
    assert office.run(event, lambda _, calls: calls.shop.get("/letters")) == "waiting"
    found = row(office.store, event)
    assert found.due_at - found.received_at > timedelta(minutes=59)


def test_a_handler_may_catch_a_rejection(office: Office, event: UUID) -> None:
    """The answer is attached, live and stored, and the event is done."""
    seen: list[Any] = []

    def handle(_event: Any, calls: Any) -> None:
        try:
            calls.shop.post("/letters", json={})
        except CallRejected as error:
            seen.append((error.response.status_code, error.response.content))
        calls.shop.post("/orders", json={})

    office.transport.script = [reply(422, b"no"), SILENCE]
    assert [office.run(event, handle) for _ in range(2)] == ["waiting", "done"]
    assert seen == [(422, b"no")] * 2
    assert len(office.transport.sent) == 3
    assert state(office.store, event) == "done"


def test_a_header_of_any_kept_character_can_be_sent(office: Office) -> None:
    """What is allowed in a header is written as Latin-1, and not refused once its call is planned."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    target = replace(office.api, base_url=f"http://127.0.0.1:{port}")
    request = build(target, "POST", "/a", CallArguments(headers={"X-Note": "caf\xe9"}), "")
    transport = HttpTransport.for_api(target)
    got = transport.send(complete(target, request, None), lambda: None)
    transport.close()
    assert isinstance(got, NoReply)
    assert not got.written
