"""The dashboard without a browser: sign-in, headers, actions, and no secret in any page."""

import re
import threading
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from werkzeug.security import generate_password_hash

from config.apis import APIS, load_apis
from config.credentials import User
from config.dialects import load_dialects
from config.providers import load_providers
from config.sources import SOURCES, load_sources, parse_json_path
from receiver.dashboard.auth import CROWD, FORM_MAX, TRIES_OF_BOTH, local
from receiver.dashboard.presentation import PAYLOAD_SHOWN
from receiver.ledger.filter import EventFilter
from receiver.ledger.queue import record_heartbeat
from receiver.ledger.reports import list_events, story
from receiver.ledger.store import Store
from receiver.ledger.tables import CALL
from tests.integration.steps import ONLY_SQLITE, change, deliver_all, row, state, statements
from tests.services.board import ADA, PASSWORD, SECRET_KEY, Board
from tests.services.stage import EMAIL, Stage, body_of, deliver, set_up

pytestmark = pytest.mark.parametrize(**ONLY_SQLITE)
PAGES = ["/", "/figures", "/series", "/events", "/queue", "/queue?state=dead", "/sources", "/apis"]
SECRETS = {"STRIPE_WEBHOOK_SECRETS": "whsec_canary1", "SLACK_SIGNING_SECRETS": "canary2canary2"}
CREDENTIALS = {"STANNP_API_KEY": "canary3:canary3", "SALESLY_API_KEY": "canary4"}


@pytest.fixture
def board(store: Store) -> Board:
    """Return the dashboard of one user, not signed in, with the shipped sources and APIs."""
    return make(store)


def make(store: Store, **options: Any) -> Board:
    """Return a dashboard whose secrets and credentials are canaries."""
    sources = load_sources(SOURCES, load_providers(), SECRETS)
    return Board(store, sources=sources, apis=load_apis(APIS, load_dialects(), CREDENTIALS), **options)


def pages_of(stage: Stage) -> list[str]:
    """Return the address of every page."""
    events = [f"/events/{event}" for event in (stage.done, stage.dead, stage.parked, stage.without_id)]
    more = [f"/calls/{stage.call}", f"/calls/{stage.parked_call}", "/replays/new?what=retry&state=dead"]
    return [*PAGES, *events, f"{events[0]}?bodies=1", f"{events[0]}/story", *more, "/events?state=done"]


def test_without_users_it_is_off(store: Store) -> None:
    """The first page says how to enable it; the other pages are 404."""
    off = make(store, users=())
    assert off.get("/").status_code == 404
    assert "FIRSTSEEN_USERS" in off.get("/").json["detail"]
    for path in (*PAGES[1:], "/sign-in", "/assets/board.css"):
        assert off.get(path).status_code == 404, path


def test_every_page_needs_a_sign_in(board: Board, stage: Stage) -> None:
    """Pages redirect to the sign-in, which returns to the requested page."""
    for path in pages_of(stage):
        answer = board.get(path)
        assert answer.status_code == 302, path
        assert answer.headers["Location"].startswith("/sign-in?next=/"), path
    assert board.get("/figures", headers={"HX-Request": "true"}).status_code == 401
    assert board.get(f"/events/{stage.done}/raw").status_code == 302


def test_a_right_password_signs_in(board: Board) -> None:
    """The sign-in leads to the requested page, but never to another site."""
    given = {"name": "ada", "password": PASSWORD}
    assert board.post("/sign-in", **given, next="/queue").headers["Location"] == "/queue"
    assert board.get("/").status_code == 200
    board.post("/sign-out")
    assert board.get("/").status_code == 302
    assert board.post("/sign-in", **given, next="https://evil.example/").headers["Location"] == "/"


PLACES = ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "", None]
ODD_PLACES = ["//[", "/\t/evil.example", "/a\r\nSet-Cookie: a=b", "\x0b//evil.example"]


@pytest.mark.parametrize("place", [*PLACES, *ODD_PLACES])
def test_no_link_leads_away(board: Board, place: str | None) -> None:
    """A return address that is not a local path becomes the first page."""
    with board.app.test_request_context("/"):
        assert local(place) == "/"
        assert local("/events?state=dead") == "/events?state=dead"


@pytest.mark.parametrize(
    ("name", "password"), [("ada", "wrong"), ("ada", ""), ("nobody", PASSWORD), ("", "")]
)
def test_a_wrong_password_does_not_sign_in(board: Board, name: str, password: str) -> None:
    """A wrong name and a wrong password get the same response."""
    refused = board.sign_in(name, password)
    assert refused.status_code == 401
    assert "Name or password is wrong." in refused.text
    assert board.get("/").status_code == 302


def test_guessing_is_slowed_down(board: Board) -> None:
    """After five wrong passwords the right one gets 429, except from another address."""
    assert [board.sign_in(password="guess").status_code for _ in range(TRIES_OF_BOTH)] == [
        401
    ] * TRIES_OF_BOTH
    refused = board.sign_in()
    assert (refused.status_code, board.get("/").status_code) == (429, 302)
    assert 0 < int(refused.headers["Retry-After"]) <= 300
    assert board.sign_in(**{"X-Forwarded-For": "198.51.100.7"}).status_code == 302


def test_only_a_form_is_a_try(board: Board) -> None:
    """Requests without a form do not count as tries."""
    assert {board.client.head("/sign-in").status_code for _ in range(TRIES_OF_BOTH + 1)} == {200}


def test_many_concurrent_sign_ins_are_limited(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """While four passwords are checked, a fifth sign-in gets 503 at once."""
    leave, token = threading.Event(), board.token()
    monkeypatch.setattr("receiver.dashboard.auth.check_password_hash", lambda *_: leave.wait(60))
    given = {"csrf": token, "name": "ada", "password": PASSWORD}
    cookie = board.client.get_cookie("firstseen")
    assert cookie
    headers = {"Cookie": f"firstseen={cookie.value}"}
    client = board.app.test_client(use_cookies=False)
    with ThreadPoolExecutor(CROWD + 1) as pool:
        knocks = [pool.submit(client.post, "/sign-in", data=given, headers=headers) for _ in range(CROWD + 1)]
        try:
            (sent_away,), others = wait(knocks, 30, return_when=FIRST_COMPLETED)
        finally:
            leave.set()
        assert sent_away.result().status_code == 503
        assert {item.result(30).status_code for item in others} == {302}
    assert board.sign_in().status_code == 302


def test_a_form_is_small(board: Board) -> None:
    """A form over the limit is refused before it is parsed."""
    head = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
    for size, status in ((FORM_MAX - 200, 403), (FORM_MAX, 413)):
        body = head + b"a" * size + b"\r\n--x--\r\n"
        sent = board.client.post("/sign-in", data=body, content_type="multipart/form-data; boundary=x")
        assert sent.status_code == status


def test_an_address_cannot_try_many_names(board: Board) -> None:
    """One address has twenty tries in five minutes, whatever the names."""
    answers = [board.sign_in(f"name{number}", "guess").status_code for number in range(22)]
    assert answers == [401] * 20 + [429] * 2


def test_right_passwords_are_never_slowed_down(board: Board) -> None:
    """Right passwords do not count as tries."""
    assert {board.sign_in().status_code for _ in range(25)} == {302}


def test_the_cookie_is_for_this_site_alone(board: Board) -> None:
    """The cookie is HttpOnly and SameSite, and Secure over https."""
    plain = board.sign_in().headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(plain.split("; "))
    assert "Secure" not in plain
    board.post("/sign-out")
    behind = board.sign_in(**{"X-Forwarded-Proto": "https"})
    assert "Secure" in behind.headers["Set-Cookie"].split("; ")
    assert "Strict-Transport-Security" in behind.headers


def test_a_forged_cookie_does_not_sign_in(board: Board) -> None:
    """A cookie with a wrong signature does not sign in."""
    board.entered()
    cookie = board.client.get_cookie("firstseen")
    assert cookie
    board.client.set_cookie(
        "firstseen", cookie.value[:-2] + ("AA" if not cookie.value.endswith("AA") else "BB")
    )
    assert board.get("/").status_code == 302


def test_keys_rotate(store: Store) -> None:
    """A session signed with an older key is valid as long as the key is configured."""
    cookie = make(store).entered().client.get_cookie("firstseen")
    assert cookie
    for keys, status in ((("n" * 32, SECRET_KEY), 200), (("n" * 32,), 302)):
        rotated = make(store, keys=keys)
        rotated.client.set_cookie("firstseen", cookie.value)
        assert rotated.get("/").status_code == status


CHANGED = User("ada", generate_password_hash("new one", "scrypt:1024:8:1"))


@pytest.mark.parametrize("users", [(CHANGED,), (User("bob", ADA.password_hash),)])
def test_a_removed_person_is_out_at_once(store: Store, users: tuple[User, ...]) -> None:
    """A session ends when its user is removed or the password changes."""
    cookie = make(store).entered().client.get_cookie("firstseen")
    assert cookie
    changed = make(store, users=users)
    changed.client.set_cookie("firstseen", cookie.value)
    assert changed.get("/").status_code == 302


def actions(stage: Stage) -> list[tuple[str, dict[str, str]]]:
    """Return every action with its fields."""
    return [
        (f"/events/{stage.dead}/retry", {"generation": "0"}),
        (f"/events/{stage.dead}/rerun", {"generation": "0"}),
        (f"/events/{stage.without_id}/discard", {"generation": "0"}),
        (f"/calls/{stage.parked_call}/resolve", {"how": "give-up"}),
        (f"/events/{stage.done}/conflicts/{'0' * 64}/promote", {}),
        ("/replays", {"what": "retry"}),
        ("/sign-out", {}),
    ]


@pytest.mark.parametrize("token", ["", "guess"])
def test_every_action_needs_the_token(board: Board, store: Store, stage: Stage, token: str) -> None:
    """Without the session's own CSRF token nothing is done, signed in or not."""
    for entered in (False, True):
        if entered:
            board.entered()
        for path, fields in [*actions(stage), ("/sign-in", {"name": "ada", "password": PASSWORD})]:
            answer = board.post(path, token=token, **fields)
            assert answer.status_code == 403, path
            assert "nothing was done" in answer.text
    assert board.get("/").status_code == 200, "it was signed out"
    assert [state(store, event) for event in (stage.dead, stage.parked, stage.without_id)] == [
        "dead",
        "parked",
        "parked",
    ]
    assert board.nudged == 0


def test_every_action_needs_a_person(board: Board, store: Store, stage: Stage) -> None:
    """A visitor's valid CSRF token is not enough."""
    for path, fields in actions(stage):
        assert board.post(path, **fields).status_code == 401, path
    assert state(store, stage.dead) == "dead"


def test_another_sessions_token_does_not_count(store: Store, stage: Stage) -> None:
    """The CSRF token of another session is refused."""
    mine, theirs = make(store).entered(), make(store).entered()
    assert mine.post(f"/events/{stage.dead}/retry", token=theirs.token(), generation="0").status_code == 403


def test_every_page_is_strict(board: Board, stage: Stage) -> None:
    """No page has inline script or style, foreign resources, or caching; framing is forbidden."""
    for path in ["/sign-in", *pages_of(stage)]:
        answer = board.get(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        if answer.status_code == 200 and answer.mimetype == "text/html":
            assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son[a-z]+=", answer.text), path
            assert not re.search(r"""(?:src|href|action)=["'](?:https?:)?//""", answer.text), path
        board.entered()


def test_no_secret_is_on_any_page(board: Board, stage: Stage) -> None:
    """No page has a source's secret, an API's credential, a password hash or the signing key."""
    board.entered()
    for path in pages_of(stage):
        answer = board.get(path)
        assert answer.status_code == 200, path
        for canary in ("canary", ADA.password_hash[-30:], SECRET_KEY):
            assert canary not in answer.text, path
    assert "STANNP_API_KEY" in board.get("/apis").text, "the pages do not show the configuration at all"


def redacting(store: Store) -> Board:
    """Return a dashboard whose Stripe source redacts the e-mail address."""
    source = load_sources(SOURCES, load_providers(), SECRETS)["stripe"]
    return Board(store, sources={"stripe": replace(source, redact=(parse_json_path("$.data.object.email"),))})


def test_redacted_values_are_on_no_page(store: Store, stage: Stage) -> None:
    """Calls are redacted as well; only the raw download is exact."""
    board = redacting(store).entered()
    for path in pages_of(stage):
        assert EMAIL not in board.get(path).text, path
    assert "[redacted]" in board.get(f"/events/{stage.done}").text
    assert "Ada Lovelace" in board.get(f"/events/{stage.done}").text
    assert "[redacted]" in board.get(f"/calls/{stage.call}").text
    assert EMAIL in make(store).entered().get(f"/events/{stage.done}").text, "it is never shown"


@pytest.mark.parametrize("value", ["2026", "received", "stripe", "Zo\u00eb"])
def test_a_hidden_value_breaks_no_page(store: Store, value: str) -> None:
    """Redaction keeps pages intact if the value is also a year, a state or the source's name."""
    problem = f"Nobody is called {value}."
    event = deliver(store, "evt_named", body=body_of("evt_named", email=value), problem=problem)
    board = redacting(store).entered()
    for path in (f"/events/{event}", "/events", "/queue", "/"):
        answer = board.get(path)
        assert (answer.status_code, problem in answer.text) == (200, False), path
    assert "<code>" + str(event) in board.get(f"/events/{event}").text


def test_an_escape_in_what_a_call_sent_hides_nothing(store: Store, stage: Stage) -> None:
    """Redaction finds a value that a request's JSON writes with an escape."""
    escaped = EMAIL.replace("a", r"\u0061").encode()
    with store.write() as connection:
        body = b'{"to": "' + escaped + b'"}'
        connection.execute(update(CALL).where(CALL.c.id == stage.call).values(body=body))
    assert EMAIL in make(store).entered().get(f"/calls/{stage.call}").text, "it is never shown"
    assert EMAIL not in redacting(store).entered().get(f"/calls/{stage.call}").text


DEEP = b"[" * 400 + b"1," * 90_000 + b"1" + b"]" * 400
"""Indented, it is four hundred times as long."""


@pytest.mark.parametrize(
    "body", [rb'{"a": "\ud800"}', b"[" * 900 + b"1" + b"]" * 900, b"[" * 9000 + b"]" * 9000, DEEP]
)
def test_no_payload_is_too_odd_to_be_shown(store: Store, body: bytes) -> None:
    """Lone surrogates and deep nesting give a page of bounded size."""
    event = deliver(store, "evt_odd", body=body)
    deliver(store, "evt_odd", body=body + b" ")
    for board in (make(store), redacting(store)):
        answer = board.entered().get(f"/events/{event}?bodies=1")
        assert answer.status_code == 200
        assert len(answer.data) < 3 * PAYLOAD_SHOWN


def test_the_raw_download_is_exact(store: Store, stage: Stage) -> None:
    """It has the exact bytes, as an attachment."""
    answer = redacting(store).entered().get(f"/events/{stage.done}/raw")
    assert answer.data == body_of("evt_1Qx7done")
    assert answer.content_type == "application/octet-stream"
    assert "attachment" in answer.headers["Content-Disposition"]


def test_an_action_bears_the_persons_name(board: Board, store: Store, stage: Stage) -> None:
    """The name is in the audit and on the page, and the event is nudged."""
    board.entered()
    answer = board.post(f"/events/{stage.dead}/retry", generation="0", back=f"/events/{stage.dead}")
    assert answer.headers["Location"] == f"/events/{stage.dead}"
    assert state(store, stage.dead) == "waiting"
    assert [action["who"] for action in story(store, stage.dead).as_json()["actions"]] == ["ada"]
    assert board.nudged == 1
    page = board.get(f"/events/{stage.dead}").text
    assert "ada retried it" in page
    assert "it runs as soon as a worker is free" in page


def test_a_second_rerun_from_the_same_page_is_refused(board: Board, store: Store, stage: Stage) -> None:
    """The page's generation guards the rerun, and the refusal gives the reason."""
    board.entered()
    board.post(f"/events/{stage.done}/rerun", generation="0")
    board.post(f"/events/{stage.done}/rerun", generation="0")
    assert row(store, stage.done).generation == 1
    assert "it was rerun meanwhile" in board.get("/").text


def test_a_call_is_resolved_with_an_answer(board: Board, store: Store, stage: Stage) -> None:
    """The event is due and nudged, and the call has the given response."""
    board.entered()
    board.post(f"/calls/{stage.parked_call}/resolve", how="happened", status="201", body='{"id": 9}')
    assert state(store, stage.parked) == "waiting"
    page = board.get(f"/calls/{stage.parked_call}").text
    assert "succeeded" in page
    assert "ada: happened" in page
    assert board.nudged == 1


@pytest.mark.parametrize(("how", "status"), [("happened", "500"), ("happened", "x"), ("forget", "200")])
def test_a_resolution_must_make_sense(
    board: Board, store: Store, stage: Stage, how: str, status: str
) -> None:
    """Unknown resolutions and responses other than 2xx are refused."""
    assert (
        board.entered().post(f"/calls/{stage.parked_call}/resolve", how=how, status=status).status_code == 422
    )
    assert state(store, stage.parked) == "parked"


def test_an_answer_that_no_handler_could_read_is_refused(board: Board, store: Store, stage: Stage) -> None:
    """A response that is not JSON is refused."""
    answer = board.entered().post(f"/calls/{stage.parked_call}/resolve", how="happened", body='{"id": 9')
    assert (answer.status_code, "is not JSON" in answer.text) == (422, True)
    assert state(store, stage.parked) == "parked"


def test_in_the_queue_the_answer_takes_the_events_place(board: Board, store: Store, stage: Stage) -> None:
    """The response to an htmx action is a fragment with the result or the refusal."""
    board.entered()
    headers = {"HX-Request": "true", "X-CSRF-Token": board.token()}
    path, fields = f"/events/{stage.without_id}/discard", {"generation": "0"}
    done = board.client.post(path, data=fields, headers=headers)
    again = board.client.post(path, data=fields, headers=headers)
    assert (done.status_code, 'data-settled="yes"' in done.text) == (200, True)
    assert 'data-settled="no"' in again.text
    assert row(store, stage.without_id).reason == "Discarded by ada."


def test_many_are_counted_then_acted_on(board: Board, store: Store) -> None:
    """The count changes nothing; the bulk operation has the person's name and a progress page."""
    deliver_all(store, 7)
    board.entered()
    asked = board.get("/replays/new?what=discard&source=stripe")
    assert "Discard 7 events?" in asked.text
    assert {event.state for event in list_events(store, EventFilter()).data} == {"received"}
    place = board.post("/replays", what="discard", source="stripe").headers["Location"]
    page = board.get(place).text
    assert "Bulk discard of 7 events" in page
    assert "<dd>ada</dd>" in page
    assert "0 done, 0 skipped since they had moved on, 7 to go" in page


def test_a_filter_means_what_it_says(board: Board, stage: Stage) -> None:
    """Every field narrows the list, times are UTC, and an event's own id leads to its page."""
    board.entered()
    assert "evt_1Qx8ship" in board.get("/events?state=dead").text
    assert "evt_1Qx8ship" not in board.get("/events?state=done").text
    assert "Nothing matches" in board.get("/events?source=github").text
    assert "Nothing matches" in board.get("/events?since=2999-01-01T10:00").text
    assert "evt_1Qx8ship" in board.get("/events?until=2999-01-01T10:00").text
    assert board.get(f"/events?event_id={stage.dead}").headers["Location"] == f"/events/{stage.dead}"
    for wrong in ("state=asleep", "since=yesterday", "cursor=nonsense"):
        assert board.get(f"/events?{wrong}").status_code == 422, wrong


def test_pages_of_many_events_are_complete(board: Board, store: Store) -> None:
    """Following `Older` shows every event once."""
    deliver_all(store, 120)
    board.entered()
    place, found = "/events?source=stripe", list[str]()
    while place:
        page = board.get(place).text
        found += re.findall(r'class="id">(evt_\d+)<', page)
        older = re.search(r'rel="next" href="([^"]+)"', page)
        place = older[1].replace("&amp;", "&") if older else ""
    assert sorted(found) == sorted(f"evt_{number}" for number in range(120))


def test_a_page_that_polls_gets_nothing_while_nothing_changes(board: Board, store: Store) -> None:
    """An unchanged page gets 204, which keeps what is open or selected in the browser."""
    (event,) = deliver_all(store, 1)
    board.entered()
    found = re.search(r'hx-get="([^"]+)"', board.get(f"/events/{event}").text)
    assert found
    assert board.get(found[1]).status_code == 204
    board.post(f"/events/{event}/discard", generation="0")
    changed = board.get(found[1])
    assert (changed.status_code, "hx-get" in changed.text) == (200, False), "a final state is polled on"


@pytest.mark.parametrize("path", ["/events/{0}", "/calls/{0}", "/replays/{0}", "/events/{0}/raw"])
def test_an_unknown_id_is_404(board: Board, path: str) -> None:
    """An unknown id gives a page with a sentence."""
    answer = board.entered().get(path.format("01a213c9-d9d6-7fc5-a4a2-7db46818623b"))
    assert answer.status_code == 404
    assert "in the ledger" in answer.text


def test_markup_in_an_event_is_text(board: Board, store: Store) -> None:
    """HTML in ids, types, headers and bodies is escaped."""
    nasty = "<script>alert(1)</script>"
    event = deliver(
        store, f"evt{nasty}", type=nasty, body=b'{"a": "<img src=x>", "id": 1}', headers={"X-A": nasty}
    )
    board.entered()
    for path in (f"/events/{event}", "/events", f"/events?type={nasty}", f"/sign-in?next={nasty}"):
        page = board.get(path, follow_redirects=True).text
        assert nasty not in page, path
        assert "<img src=x" not in page, path


def test_an_erased_payload_says_so(board: Board, store: Store, stage: Stage) -> None:
    """The page says that the payload was erased, and offers no action that needs it."""
    change(store, stage.dead, body=None, headers=None)
    board.entered()
    page = board.get(f"/events/{stage.dead}").text
    assert "It was erased" in page
    assert "/retry" not in page
    assert board.get(f"/events/{stage.dead}/raw").status_code == 410


def test_the_overview_says_in_one_sentence_how_it_is(board: Board, store: Store) -> None:
    """The sentence covers a missing worker, a healthy system, and events that need a person."""
    board.entered()
    assert "No worker is running" in board.get("/").text
    record_heartbeat(store, "one:1")
    fresh = make(store).entered()
    assert "All is well" in fresh.get("/").text
    set_up(store)
    record_heartbeat(store, "one:1")
    assert "3 events cannot go on alone" in make(store).entered().get("/").text


def test_the_overview_stands_without_a_ledger(tmp_path: Path, store: Store) -> None:
    """Without a ledger the page names the problem and shows no figures."""
    assert store
    broken = Store(f"sqlite:///{tmp_path}/empty.db")
    try:
        page = make(broken).entered().get("/")
    finally:
        broken.close()
    assert page.status_code == 200
    assert "The ledger does not answer" in page.text
    assert "No figures" in page.text


def test_figures_are_asked_for_once_in_a_while(
    board: Board, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty requests within the cache's lifetime do not query events again."""
    monkeypatch.setattr("receiver.dashboard.overview.LIFE_LEAST", 3600.0)
    board.entered()
    with statements(store) as first:
        assert board.get("/figures").status_code == 200
    assert any("FROM event" in item for item in first)
    with statements(store) as asked:
        for _ in range(20):
            assert board.get("/figures").status_code == 200
    assert not any("FROM event" in item for item in asked), asked


def test_rejections_are_shown_with_their_reason(board: Board, stage: Stage) -> None:
    """The sources page has rejection reasons and verification rules in words."""
    assert stage
    page = board.entered().get("/sources").text
    assert "bad signature" in page
    assert "Signed with HMAC-SHA256 over {timestamp}.{body}." in page


def test_files_are_kept_while_their_bytes_stay(board: Board) -> None:
    """Asset addresses contain a hash and are cached; no other file is served."""
    page = board.get("/sign-in").text
    found = re.search(r'href="(/assets/board.css\?v=\w+)"', page)
    assert found
    assert "max-age=31536000" in board.get(found[1]).headers["Cache-Control"]
    for name in ("../board.py", "..%2fboard.py", "nothing.js"):
        assert board.get(f"/assets/{name}").status_code == 404, name
