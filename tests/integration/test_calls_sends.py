"""The guards of a send and of a resend: claim, lease, key expiry, credential, give_up_after."""

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
from receiver.ledger.queue import renew, settle
from receiver.ledger.store import Store
from tests.integration.call_harness import (
    DAY,
    QUIET,
    SILENCE,
    UNSENT,
    CallHarness,
    Handle,
    crash,
    letter,
    posts,
    reply,
)
from tests.integration.steps import LEASE, change, deliver, later, row, state
from tests.services.claiming import claim
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
    """Make a call that is idempotent by its method."""
    calls.shop.put("/letters/1", json={})


def test_past_the_life_of_its_key_nothing_is_resent(harness: CallHarness, event: UUID) -> None:
    """A resend goes out shortly before the key's expiry less the margin; after it the event parks."""
    harness.transport.script = [SILENCE, SILENCE]
    harness.run(event, letter)
    end = harness.api.key_life - harness.api.key_margin
    later(harness.store, seconds=end.total_seconds() - 5)
    assert harness.run(event, letter) == "waiting"
    later(harness.store, seconds=10)
    assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 2
    call = harness.call(event)
    assert (call.state, call.reason.startswith("It went out 2 times,")) == ("parked", True)
    harness.change_call(call.id, state="pending", sends=1)
    assert harness.run_after_retry(event, letter) == "parked"
    assert harness.call(event).reason.startswith("It went out once,")


def test_the_life_of_a_key_is_set_by_the_first_send(harness: CallHarness, event: UUID) -> None:
    """Later sends change neither the beginning nor the end of the key's life."""
    harness.transport.script = [SILENCE, SILENCE]
    harness.run(event, letter)
    before = harness.call(event)
    later(harness.store, hours=5)
    harness.run(event, letter)
    after = harness.call(event)
    assert after.sends == 2
    assert (after.first_sent_at, after.expires_at) == (before.first_sent_at, before.expires_at)


def test_a_retry_by_a_person_sends_nothing_past_the_life(harness: CallHarness, event: UUID) -> None:
    """Each retry parks again."""
    harness.transport.script = [SILENCE]
    harness.run(event, letter)
    later(harness.store, days=2)
    assert harness.run(event, letter) == "parked"
    for _ in range(2):
        retry(harness.store, event, "ada")
        assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 1


@pytest.mark.parametrize("handle", [letter, replaced])
def test_under_another_credential_nothing_is_resent(store: Store, event: UUID, handle: Handle) -> None:
    """A rotation while a send is open parks; with the old credential restored, a retry is sent."""
    harness = CallHarness(store, "salesly")
    harness.transport.script = [SILENCE]
    harness.run(event, handle)
    harness.rotate("second-credential")
    later(store, minutes=1)
    assert harness.run(event, handle) == "parked"
    assert "credential" in harness.call(event).reason
    harness.rotate("first-credential")
    retry(store, event, "ada")
    assert harness.run(event, handle) == "done"
    assert len(harness.transport.sent) == 2


@pytest.mark.parametrize("answer", [reply(429), UNSENT])
def test_another_credential_is_no_obstacle_while_nothing_is_open(
    harness: CallHarness, event: UUID, answer: Any
) -> None:
    """A call that certainly did not happen is sent under the new credential, also days later."""
    harness.transport.script = [answer]
    harness.run(event, letter)
    harness.rotate("second-credential")
    later(harness.store, days=2)
    assert harness.run(event, letter) == "done"


@pytest.mark.parametrize("dialect", ["none", "stripe"])
def test_an_unprotected_call_is_sent_once(store: Store, event: UUID, dialect: str) -> None:
    """If the response is lost the call parks, and no retry resends it."""
    harness = CallHarness(store, dialect)
    path = {"none": "post", "stripe": "put"}[dialect]

    def handle(_event: Any, calls: Any) -> None:
        getattr(calls.shop, path)("/letters", json={}, unprotected=True)

    harness.transport.script = [SILENCE]
    assert harness.run(event, handle) == "waiting"
    assert harness.run(event, handle) == "parked"
    retry(store, event, "ada")
    assert harness.run(event, handle) == "parked"
    assert (len(harness.transport.sent), harness.call(event).key) == (1, None)


def test_an_unprotected_call_that_was_not_executed_is_sent_again(store: Store, event: UUID) -> None:
    """A failed connection and a 429 prove that nothing was executed."""
    harness = CallHarness(store, "none")
    harness.transport.script = [UNSENT, reply(429)]
    assert [harness.run(event, unprotected) for _ in range(3)] == ["waiting", "waiting", "done"]


def test_an_unprotected_503_is_unknown(store: Store, event: UUID) -> None:
    """Without a key a 503 may have been executed, so the call is not resent."""
    harness = CallHarness(store, "none")
    harness.transport.script = [reply(503)]
    assert [harness.run(event, unprotected) for _ in range(2)] == ["waiting", "parked"]


def test_an_unprotected_call_needs_consent(store: Store, event: UUID) -> None:
    """Without `unprotected=True` the call is refused before it is planned."""
    harness = CallHarness(store, "none")
    with pytest.raises(CallRefused, match="unprotected=True"):
        posts("letter")(None, Calls(harness.context(), harness.take(event)))
    assert (harness.calls(event), harness.transport.sent) == ([], [])


def test_quiet_time_keeps_copies_apart(store: Store, event: UUID) -> None:
    """Where concurrent copies are undefined, a resend waits out deadline and settle delay, uncounted."""
    harness = CallHarness(store, "salesly")
    harness.transport.script = [crash]
    harness.die(event, letter)
    change(store, event, state="waiting", lease_until=None, attempts=0)
    held = harness.take(event)
    with pytest.raises(CallLater) as caught:
        letter(None, Calls(harness.context(), held))
    wait = harness.api.deadline + QUIET
    assert wait - timedelta(seconds=10) < caught.value.delay <= wait
    assert len(harness.transport.sent) == 1
    assert settle(store, [(held, harness.perform(held, letter))])
    found = row(store, event)
    assert (found.state, found.attempts) == ("waiting", 0)
    assert harness.run(event, letter) == "done"
    first, second = harness.sends(harness.call(event).id)
    assert second.at >= first.sending_until + QUIET


def test_a_caught_wait_for_quiet_does_not_spin(store: Store, event: UUID) -> None:
    """A handler that swallows the wait does not make its event due at once."""
    harness = CallHarness(store, "salesly")
    harness.transport.script = [crash]
    harness.die(event, letter)
    change(store, event, state="waiting", lease_until=None)
    assert harness.run(event, posts("letter", json={"to": "ada"}, caught=True)) == "parked"
    other = deliver(store, "evt_2").event
    harness.transport.script = [crash]
    harness.die(other, posts("letter"))
    change(store, other, state="waiting", lease_until=None)
    assert harness.run(other, posts("letter", caught=True)) == "waiting"
    assert claim(store, other, lease=LEASE, worker="w") is None


def test_a_locking_api_needs_no_quiet(harness: CallHarness, event: UUID) -> None:
    """Where the API reports a locked key, the resend goes out at once."""
    harness.transport.script = [crash]
    harness.die(event, letter)
    change(harness.store, event, state="waiting", lease_until=None)
    assert harness.run(event, letter) == "done"


def test_a_locked_call_is_waited_for_in_its_attempt(harness: CallHarness, event: UUID) -> None:
    """The same attempt resends a locked call until it succeeds."""
    harness.transport.script = [crash]
    harness.die(event, letter)
    harness.transport.script = [reply(409), reply(409), reply(201)]
    assert harness.run(event, letter) == "done"
    assert len(harness.transport.sent) == 4
    assert row(harness.store, event).attempts == 2


def test_a_call_that_stays_locked_becomes_later(
    harness: CallHarness, event: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attempt stops waiting well before its lease ends, and is not counted."""
    clock = Clock()
    monkeypatch.setattr(perform, "time", clock)
    harness.transport.script = [reply(409)] * 99
    with pytest.raises(CallLocked):
        letter(None, Calls(harness.context(), harness.take(event)))
    share = harness.lease.total_seconds() / LOCKED_SHARE
    assert share - LOCKED_PAUSE_MAX < clock.slept <= share
    assert 2 <= len(harness.transport.sent) < 99
    change(harness.store, event, state="waiting", lease_until=None, attempts=0)
    assert harness.run(event, letter) == "waiting"
    assert row(harness.store, event).attempts == 0


@pytest.mark.parametrize(("status", "attempts"), [(429, 0), (503, 0), (500, 1)])
def test_retry_after_says_when(harness: CallHarness, status: int, attempts: int) -> None:
    """Retry-After is read in seconds and as a date; a call that was not executed costs no attempt."""
    with harness.store.read() as connection:
        now = connection.execute(select(harness.store.now())).scalar_one()
    date = format_datetime(now + timedelta(hours=2), usegmt=True)
    for after, wait in (("3600", 1), (date, 2), ("999999999", 24)):
        one = deliver(harness.store, f"evt_{wait}").event
        harness.transport.script = [reply(status, retry_after=after)]
        assert harness.run(one, letter) == "waiting"
        found = row(harness.store, one)
        assert abs(found.due_at - now - timedelta(hours=wait)) < timedelta(minutes=2), after
        assert found.attempts == attempts


def test_retry_after_0_backs_off(harness: CallHarness, event: UUID) -> None:
    """Retry-After: 0 still has a back-off."""
    harness.transport.script = [reply(429, retry_after="0")]
    assert harness.run(event, letter) == "waiting"
    call = harness.call(event)
    assert call.due_at > harness.sends(call.id)[0].ended_at


def test_without_a_credential_it_waits_longer_and_longer(harness: CallHarness, event: UUID) -> None:
    """The waits for a missing credential grow, because each costs an attempt's row."""
    harness.api = replace(harness.api, problem="[shop] has no credential")
    assert harness.run(event, letter) == "waiting"
    later(harness.store, hours=1)
    assert harness.run(event, letter) == "waiting"
    now = harness.call(event).trying_since + timedelta(hours=1)
    assert row(harness.store, event).due_at - now > timedelta(minutes=5)
    assert harness.transport.sent == []


def test_a_503_after_the_keys_expiry_is_unknown(harness: CallHarness, event: UUID) -> None:
    """A 503 received after the key's expiry is unknown, and the event parks."""

    def slow(_request: Outgoing) -> Reply:
        harness.store.shift += DAY
        return reply(503)

    harness.transport.script = [slow]
    assert harness.run(event, letter) == "waiting"
    assert row(harness.store, event).attempts == 1
    assert harness.call(event).outcome == "unknown"
    assert harness.run(event, letter) == "parked"


def test_patience_ends(harness: CallHarness, event: UUID) -> None:
    """After give_up_after a postponed call parks; a retry by a person starts the time anew."""
    harness.transport.script = [reply(429, retry_after="86400")] * 4
    assert [harness.run(event, letter) for _ in range(2)] == ["waiting"] * 2
    later(harness.store, days=3)
    assert harness.run(event, letter) == "parked"
    assert harness.run_after_retry(event, letter) == "waiting"
    assert len(harness.transport.sent) == 3


def test_a_stored_rejection_ends_the_call(harness: CallHarness, event: UUID) -> None:
    """A replayed 4xx is the result of every send: the call is rejected, and the event dies."""
    harness.transport.script = [SILENCE, reply(402, idempotent_replayed="true")]
    assert [harness.run(event, letter) for _ in range(2)] == ["waiting", "dead"]
    assert (harness.call(event).state, harness.open_sends(harness.call(event).id)) == ("rejected", 0)


def test_a_stored_failure_parks(harness: CallHarness, event: UUID) -> None:
    """A replayed 5xx would be replayed for the key's whole life, so the event parks."""
    harness.transport.script = [SILENCE, reply(500, idempotent_replayed="true")]
    assert [harness.run(event, letter) for _ in range(2)] == ["waiting", "parked"]


def test_a_rejection_without_marker_parks_while_a_send_is_open(harness: CallHarness, event: UUID) -> None:
    """An unmarked 4xx may concern only the resend, so the event parks."""
    harness.transport.script = [SILENCE, reply(422)]
    assert [harness.run(event, letter) for _ in range(2)] == ["waiting", "parked"]
    retry(harness.store, event, "ada")
    later(harness.store, days=2)
    assert harness.run(event, letter) == "parked"
    assert len(harness.transport.sent) == 2


def test_a_claim_lost_before_the_plan_plans_nothing(harness: CallHarness, event: UUID) -> None:
    """A worker whose lease expired writes no row and sends nothing."""
    held = harness.take(event)
    later(harness.store, seconds=61)
    with pytest.raises(ClaimLost):
        letter(None, Calls(harness.context(), held))
    assert (harness.calls(event), harness.transport.sent) == ([], [])


@pytest.mark.parametrize("taken", [True, False])
def test_a_claim_lost_before_the_mark_sends_nothing(
    harness: CallHarness, event: UUID, *, taken: bool
) -> None:
    """Nothing is sent if the lease expires during the connect, with or without a new holder."""
    held = harness.take(event)

    def lose() -> None:
        later(harness.store, seconds=61)
        if taken:
            assert claim(harness.store, event, lease=LEASE, worker="other") is not None

    harness.transport.before_begin = lose
    with pytest.raises(ClaimLost):
        letter(None, Calls(harness.context(), held))
    assert (harness.transport.sent, harness.calls(event)) == ([], [])


def test_a_claim_lost_is_not_done(harness: CallHarness, event: UUID) -> None:
    """A handler past max_runtime that swallows ClaimLost does not finish its event."""
    harness.max_runtime = timedelta(seconds=-1)
    assert harness.run(event, posts("letter", caught=True)) == "waiting"
    assert harness.calls(event) == []


def test_a_call_that_ended_before_the_mark_is_not_sent(harness: CallHarness, event: UUID) -> None:
    """A late response recorded between plan and send is used instead of a resend."""
    harness.transport.script = [crash]
    frozen = harness.die(event, letter)

    def answered() -> None:
        if harness.call(event).state == "pending":
            harness.late(frozen, harness.sends(harness.call(event).id)[0], reply(201, b"late"))

    harness.transport.before_begin = answered
    assert harness.run(event, letter) == "waiting"
    assert harness.run(event, letter) == "done"
    assert len(harness.transport.sent) == 1


def test_a_send_outlasts_no_lease(harness: CallHarness, event: UUID) -> None:
    """Beginning a send extends the lease beyond its deadline, and `renew` does not shorten it."""
    held = harness.take(event)
    later(harness.store, seconds=50)
    seen: list[Any] = []

    def renewed(_request: Outgoing) -> Reply:
        marked = row(harness.store, event).lease_until
        assert renew(harness.store, [held], lease=timedelta(seconds=1)) == set()
        seen.extend([marked, row(harness.store, event).lease_until])
        return reply()

    harness.transport.script = [renewed]
    letter(None, Calls(harness.context(), held))
    marked, after = seen
    (send,) = harness.sends(harness.call(event).id)
    assert marked == after > send.sending_until
    assert renew(harness.store, [held], lease=DAY) == set()
    assert row(harness.store, event).lease_until > after


def test_resending_as_new_waits_for_quiet(harness: CallHarness, event: UUID) -> None:
    """Until deadline and settle delay are over, the last send may still be executed."""
    harness.transport.script = [SILENCE]
    harness.run(event, letter)
    harness.rotate("second-credential")
    assert harness.run(event, letter) == "parked"
    with pytest.raises(NotAllowed, match="may still be under way"):
        resolve(harness.store, harness.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    later(harness.store, minutes=1)
    resolve(harness.store, harness.call(event).id, Resolution.RESEND_AS_NEW, "ada")
    assert harness.run(event, letter) == "done"
    assert len(set(harness.transport.keys())) == 2


def test_a_get_is_neither_kept_nor_keyed(harness: CallHarness, event: UUID) -> None:
    """A GET is sent each time, and its failures count as attempts."""

    def handle(_event: Any, calls: Any) -> None:
        calls.shop.get("/letters", params={"page": 2})

    harness.transport.script = [reply(200), reply(503), reply(503), reply(503)]
    assert harness.run(event, handle) == "done"
    other = deliver(harness.store, "evt_2").event
    assert [harness.run(other, handle) for _ in range(3)] == ["waiting", "waiting", "dead"]
    assert (harness.calls(event), harness.transport.keys()) == ([], [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_get_waits_as_long_as_it_is_asked_to(harness: CallHarness, event: UUID, status: int) -> None:
    """Retry-After is respected for GETs, too."""
    harness.transport.script = [reply(status, retry_after="3600")]
    assert harness.run(event, lambda _, calls: calls.shop.get("/letters")) == "waiting"
    found = row(harness.store, event)
    assert found.due_at - found.received_at > timedelta(minutes=59)


def test_a_handler_may_catch_a_rejection(harness: CallHarness, event: UUID) -> None:
    """CallRejected has the live or stored response, and the event can be done."""
    seen: list[Any] = []

    def handle(_event: Any, calls: Any) -> None:
        try:
            calls.shop.post("/letters", json={})
        except CallRejected as error:
            seen.append((error.response.status_code, error.response.content))
        calls.shop.post("/orders", json={})

    harness.transport.script = [reply(422, b"no"), SILENCE]
    assert [harness.run(event, handle) for _ in range(2)] == ["waiting", "done"]
    assert seen == [(422, b"no")] * 2
    assert len(harness.transport.sent) == 3
    assert state(harness.store, event) == "done"


def test_a_header_of_any_kept_character_can_be_sent(harness: CallHarness) -> None:
    """Every character allowed in a header is sent as Latin-1."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    target = replace(harness.api, base_url=f"http://127.0.0.1:{port}")
    request = build(target, "POST", "/a", CallArguments(headers={"X-Note": "caf\xe9"}), "")
    transport = HttpTransport.for_api(target)
    got = transport.send(complete(target, request, None), lambda: None)
    transport.close()
    assert isinstance(got, NoReply)
    assert not got.written
