"""`worker.testing`: a user's test of a handler follows the worker's own rules."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.apis import RESERVED
from worker import (
    CallChanged,
    CallLater,
    CallLocked,
    CallMismatch,
    CallParked,
    CallRefused,
    CallRejected,
    Calls,
    CallUnknown,
    Event,
)
from worker.testing import Unscripted, answer, calls, ends, event

PAID = event("stripe", "invoice.paid", data={"name": "Jenny"})
CONTACT, LETTER = "salesly POST /contacts", "stannp POST /letters/create"


def welcome(event: Event, calls: Calls) -> None:
    """Make a contact, then send a letter."""
    contact = calls.salesly.post("/contacts", json={"name": event.data["name"]}).json()
    calls.stannp.post("/letters/create", data={"recipient[id]": contact["id"]}, step="letter")


def test_an_event_has_defaults() -> None:
    """Only source and type are required; `data` is parsed as from a provider."""
    assert (PAID.source, PAID.type, PAID.data) == ("stripe", "invoice.paid", {"name": "Jenny"})
    assert (PAID.event_id, PAID.attempt, PAID.generation) == ("evt_test", 1, 0)
    assert PAID.created_at == PAID.received_at
    assert event("stripe", "a").data == {}


def test_an_event_can_be_a_form() -> None:
    """A body that is not JSON comes with its content type; other fields are set by name."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    given = event("shop", "order", raw=b"id=7&tag=a", headers=form, event_id="7", attempt=3)
    assert (given.data, given.event_id, given.attempt) == ({"id": "7", "tag": "a"}, "7", 3)


def test_requests_are_listed_in_order() -> None:
    """With step, method, address, headers and body; a GET has no step."""
    outside = calls({CONTACT: {"id": "c_1"}, "salesly GET /contacts": []})
    outside.salesly.get("/contacts", params={"page": 2})
    response = outside.salesly.post("/contacts", json={"name": "Ms"}, step="new", headers={"X-Why": "test"})
    assert (response.status_code, response.json()) == (200, {"id": "c_1"})
    read, made = outside.made
    assert (read.step, read.method, read.path, read.url.params["page"]) == (None, "GET", "/contacts", "2")
    assert (made.step, made.api, made.method, made.path) == ("new", "salesly", "POST", "/contacts")
    assert (made.json, made.headers["x-why"]) == ({"name": "Ms"}, "test")
    assert len(made.headers["Idempotency-Key"]) == 36


def test_an_unscripted_call_raises() -> None:
    """The message names the call and the test's answers."""
    with pytest.raises(Unscripted) as caught:
        welcome(PAID, calls({LETTER: 200}))
    assert str(caught.value) == (
        "The test has no answer for 'salesly POST /contacts'; calls(...) has 'stannp POST /letters/create'."
    )
    outside = calls({CONTACT: ({"id": 1},)})
    outside.salesly.post("/contacts", step="a")
    with pytest.raises(Unscripted, match="no answer left for 'salesly POST /contacts'"):
        outside.salesly.post("/contacts", step="b")


def test_an_unscripted_call_cannot_be_swallowed() -> None:
    """A handler that catches everything does not hide it."""

    def careless(_event: Event, calls: Calls) -> None:
        with suppress(Exception):
            calls.salesly.post("/contacts", json={})

    with pytest.raises(Unscripted, match="none at all"):
        ends(careless, PAID, calls())


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("salesly /contacts", 200, "'salesly /contacts' names no call"),
        ("sales POST /contacts", 200, "write an API \\(celper, chronapilot, salesly, stannp, telness\\)"),
        (f"{CONTACT}?page=1", 200, "a path without its query"),
        (CONTACT, True, "The answer to 'salesly POST /contacts' is True"),
        (CONTACT, (200, "yes"), "is 'yes': write a status, JSON as a dict or list"),
    ],
)
def test_a_wrong_script_is_refused(name: str, given: Any, sentence: str) -> None:
    """When it is written, not when the call is made."""
    with pytest.raises(ValueError, match=sentence):
        calls({name: given})


@pytest.mark.parametrize(
    ("api", "given", "error"),
    [
        ("salesly", 400, CallRejected),
        ("salesly", 429, CallLater),
        ("salesly", 500, CallUnknown),
        ("salesly", httpx.ReadTimeout(""), CallUnknown),
        ("salesly", httpx.ConnectError(""), CallLater),
        ("salesly", answer(422, json={"error": {"type": "idempotency_conflict"}}), CallMismatch),
        ("telness", answer(409, json={"error": "idempotency_key_locked"}), CallLocked),
        ("telness", answer(409, json={"error": "idempotency_key_mismatch"}), CallMismatch),
        ("stannp", answer(409, json={"success": False}), CallRejected),
        ("salesly", CallParked("told to"), CallParked),
    ],
)
def test_answers_are_read_by_dialect(api: str, given: Any, error: type[Exception]) -> None:
    """Statuses, lost responses and the dialect's errors raise the same exceptions as in a worker."""
    with pytest.raises(error) as caught:
        getattr(calls({f"{api} POST /things": given}), api).post("/things", json={})
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda calls: calls.salesly.post("//elsewhere.example"), "begins another address"),
        (lambda calls: calls.salesly.post("/a/../../b"), "climbs"),
        (lambda calls: calls.salesly.post("/a", headers={"X-API-Key": "mine"}), "not a handler's to set"),
        (lambda calls: calls.salesly.post("/a", json={}, content="b"), "one body"),
        (lambda calls: calls.stannp.put("/letters/1"), "unprotected=True"),
        (lambda calls: calls.value("v", lambda: calls.salesly.post("/a").text), "make it by itself"),
        (lambda calls: calls.salesly.post("/a", once=7), "once= takes 1 to 200 characters"),
        (lambda calls: [calls.salesly.post("/a", step="x") for _ in "12"], "Two calls .* step 'x'"),
    ],
)
def test_wrong_requests_are_refused_as_in_a_worker(call: Callable[[Any], object], sentence: str) -> None:
    """A request that is not sent needs no answer."""
    outside = calls({"salesly POST /a": 200})
    with pytest.raises(CallRefused, match=sentence):
        call(outside)
    assert len(outside.made) <= 1


def test_an_unknown_api_raises() -> None:
    """As in a worker."""
    with pytest.raises(AttributeError, match=r"calls\.shop: apis\.toml has no \[shop\]"):
        calls().shop.post("/a")


def test_the_apis_file_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an argument or by FIRSTSEEN_APIS; its credentials need not be set."""
    file = tmp_path / "apis.toml"
    auth = '{ type = "basic", value_env = "SHOP" }'
    file.write_text(f'[shop]\nbase_url = "https://shop.example/v1"\ndialect = "paypal"\nauth = {auth}\n')
    outside = calls({"shop POST /refunds": 201}, apis=file)
    outside.shop.post("/refunds", json={})
    assert str(outside.made[0].url) == "https://shop.example/v1/refunds"
    assert "PayPal-Request-Id" in outside.made[0].headers
    monkeypatch.setenv("FIRSTSEEN_APIS", str(file))
    assert calls({"shop POST /refunds": 201}).shop.post("/refunds", json={}).status_code == 201


def test_finished_calls_come_from_the_journal() -> None:
    """A second run gets the same response without sending."""
    outside = calls({CONTACT: ({"id": "c_1"},), LETTER: ({"success": True},)})
    first = outside.salesly.post("/contacts", json={"name": "Jenny"})
    again = outside.again()
    assert again.salesly.post("/contacts", json={"name": "Jenny"}).json() == first.json() == {"id": "c_1"}
    assert [made.step for made in outside.made] == [CONTACT]


def test_values_are_computed_once() -> None:
    """`calls.value` returns the first run's value in the second."""
    outside = calls()
    assert outside.value("drawn", lambda: 7) == outside.again().value("drawn", lambda: 8) == 7


def test_a_changed_handler_is_caught() -> None:
    """Another step in the same place, or other bytes of an unfinished call, raises CallChanged unsent."""
    outside = calls({CONTACT: 200})
    outside.salesly.post("/contacts", json={"name": "Jenny"}, step="a")
    with pytest.raises(CallChanged, match="was 'a' and is 'b' now"):
        outside.again().salesly.post("/contacts", json={"name": "Jenny"}, step="b")
    unsure = calls({CONTACT: (500, 200)})
    with pytest.raises(CallUnknown):
        unsure.salesly.post("/contacts", json={"name": "Jenny"})
    with pytest.raises(CallChanged, match="asks for other bytes"):
        unsure.again().salesly.post("/contacts", json={"name": "John"})
    assert len(outside.made) == len(unsure.made) == 1


def test_ends_retries_like_a_worker() -> None:
    """A call for later is sent again under its key, and then the event is done."""
    outside = calls({CONTACT: {"id": "c_1"}, LETTER: (503, httpx.ReadTimeout(""), {"success": True})})
    assert [ends(welcome, PAID, outside) for _ in range(3)] == ["waiting", "waiting", "done"]
    assert [made.step for made in outside.made] == [CONTACT, "letter", "letter", "letter"]
    assert len({made.headers["X-Idempotency-Key"] for made in outside.made[1:]}) == 1


def test_a_corrected_credential_makes_a_successor() -> None:
    """A 401 waits; the next attempt's call has a key of its own."""
    outside = calls({CONTACT: (401, {"id": "c_1"}), LETTER: {"success": True}})
    assert [ends(welcome, PAID, outside) for _ in range(2)] == ["waiting", "done"]
    first, second, _ = outside.made
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]


@pytest.mark.parametrize(
    ("given", "state"), [(400, "dead"), (answer(422, json={"t": "idempotency_conflict"}), "parked")]
)
def test_no_attempt_follows_a_final_state(given: Any, state: str) -> None:
    """A rejected call ends its event and a mismatch parks it; another `ends` fails the test."""
    outside = calls({CONTACT: given})
    assert ends(welcome, PAID, outside) == state
    with pytest.raises(AssertionError, match=f"The event is {state}, so no attempt follows"):
        ends(welcome, PAID, outside)


def test_a_swallowed_error_is_not_done() -> None:
    """`except Exception: pass` around a call for later does not finish the event."""

    def careless(_event: Event, calls: Calls) -> None:
        with suppress(Exception):
            calls.salesly.post("/contacts", json={})

    outside = calls({CONTACT: (429, 201)})
    assert [ends(careless, PAID, outside) for _ in range(2)] == ["waiting", "done"]


def test_a_handlers_own_error_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """Its traceback is in the log that pytest shows."""
    assert ends(lambda event, _: event.data["nobody"], PAID, calls()) == "waiting"
    assert "KeyError: 'nobody'" in caplog.text


def test_the_clients_own_names_are_reserved() -> None:
    """An API of such a name could never be called."""
    own = {name for name in [*dir(calls()), *vars(calls())] if not name.startswith("_")}
    assert own == set(RESERVED)
