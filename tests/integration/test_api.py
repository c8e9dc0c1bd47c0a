"""The management API: authentication, reports, actions and refusals."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from receiver.ledger.counters import Rejected, record_rejections
from receiver.ledger.reports import story
from receiver.ledger.states import Move
from receiver.ledger.store import Store
from tests.integration.steps import change, deliver, deliver_all, end, state
from tests.services.api import BOARD, DEV, Api, problem

NOBODY = UUID("0199c0de-0000-7000-8000-000000000000")
ACTING = [
    f"/v1/events/{NOBODY}/retry",
    f"/v1/events/{NOBODY}/rerun",
    f"/v1/events/{NOBODY}/discard",
    f"/v1/events/{NOBODY}/conflicts/{'0' * 64}/promote",
    "/v1/replays",
    f"/v1/calls/{NOBODY}/resolve",
]
READING = [
    "/v1/events",
    f"/v1/events/{NOBODY}",
    f"/v1/events/{NOBODY}/conflicts",
    f"/v1/replays/{NOBODY}",
    "/v1/calls",
    f"/v1/calls/{NOBODY}",
    "/v1/sources",
    "/v1/stats",
    "/v1/rejections",
]


def parked(store: Store, event_id: str = "evt_1") -> UUID:
    """Record an event and park it."""
    event = deliver(store, event_id).event
    end(store, event, Move.PARK, reason="Somebody must look.")
    return event


@pytest.mark.parametrize("path", READING + ACTING)
@pytest.mark.parametrize(
    ("header", "kind"),
    [
        (None, "api-key-missing"),
        ("Bearer", "api-key-missing"),
        ("Basic b3BzOm9wcw==", "api-key-missing"),
        ("Bearer nobodys-key-of-nothing", "api-key-unknown"),
        ("Bearer ops", "api-key-unknown"),
        ("Bearer kéy-\xff", "api-key-unknown"),
    ],
)
def test_every_endpoint_needs_a_key(api: Api, path: str, header: str | None, kind: str) -> None:
    """Every endpoint answers 401 and says how to send a key."""
    headers = {} if header is None else {"Authorization": header}
    method = "POST" if path in ACTING else "GET"
    refused = api.send(method, path, key=None, headers=headers)
    assert problem(refused) == (401, kind)
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")


def test_an_unknown_key_is_refused_before_anything_is_stored(api: Api, store: Store) -> None:
    """A refused request stores no idempotency key and no action, so the key can still be used."""
    event = parked(store)
    headers = {"Authorization": "Bearer nobodys-key-of-nothing", "Idempotency-Key": "k1"}
    refused = api.send("POST", f"/v1/events/{event}/retry", key=None, headers=headers, json={})
    assert problem(refused) == (401, "api-key-unknown")
    assert story(store, event).as_json()["actions"] == []
    assert "Idempotent-Replayed" not in api.post(f"/v1/events/{event}/retry", {}, once="k1").headers


@pytest.mark.parametrize("path", ACTING)
def test_a_read_only_key_changes_nothing(api: Api, path: str) -> None:
    """Every acting endpoint answers 403, whatever the rest of the request is."""
    assert problem(api.post(path, {}, key=BOARD)) == (403, "api-key-read-only")


def test_a_read_only_key_reads(api: Api) -> None:
    """A GET with a read-only key is answered."""
    assert api.get("/v1/events", key=BOARD).json == {"data": [], "next": None}


@pytest.mark.parametrize("path", ["/v1/", "/v1/events", "/v1/openapi.json", "/v1/nothing/here"])
def test_without_any_key_the_api_is_off(store: Store, path: str) -> None:
    """Every path answers 404 and says how to enable the API."""
    refused = Api(store, keys=()).get(path)
    assert problem(refused) == (404, "api-off")
    assert "FIRSTSEEN_API_KEYS" in refused.json["detail"]


def test_an_event_is_listed_and_shown(api: Api, store: Store) -> None:
    """The list has the event's row, and its own page the whole timeline."""
    event = parked(store)
    deliver(store)
    deliver(store, body=b'{"other": 1}')
    (listed,) = api.get("/v1/events").json["data"]
    answer = api.get(f"/v1/events/{event}").json
    assert (listed["id"], listed["state"], listed["duplicates"], listed["conflicts"]) == (
        str(event), "parked", 2, 1,
    )  # fmt: skip
    assert listed.items() <= answer["event"].items()
    assert answer["duplicates"]["count"] == 2
    assert [attempt["outcome"] for attempt in answer["attempts"]] == ["park"]
    assert answer["calls"] == []
    assert answer["next"] == "Nothing until a person retries, reruns or discards it. Somebody must look."


@pytest.mark.parametrize("limit", [1, 7, 200])
def test_pages_are_complete_and_disjoint(api: Api, store: Store, limit: int) -> None:
    """Following `next` returns every event once, newest first, while others arrive."""
    expected = sorted(map(str, deliver_all(store, 23)), reverse=True)
    found, cursor = [], None
    while True:
        page = api.get("/v1/events", limit=limit, **({"cursor": cursor} if cursor else {})).json
        assert len(page["data"]) <= limit
        found += [event["id"] for event in page["data"]]
        deliver(store, f"late_{len(found)}")
        cursor = page["next"]
        if cursor is None:
            break
    assert found == expected


def test_every_filter_narrows_the_list(api: Api, store: Store) -> None:
    """Each filter works alone, and all of them together."""
    event = parked(store, "evt_a")
    deliver(store, "evt_b", type="invoice.voided")
    deliver(store, "evt_c", source="github")
    now = datetime.now(UTC)
    before, after = ((now + timedelta(hours=h)).isoformat().replace("+00:00", "Z") for h in (-1, 1))

    def ids(**query: str) -> set[str]:
        return {item["event_id"] for item in api.get("/v1/events", **query).json["data"]}

    assert ids(source="github") == {"evt_c"}
    assert ids(type="invoice.voided") == {"evt_b"}
    assert ids(state="parked") == {"evt_a"}
    assert ids(event_id="evt_b") == {"evt_b"}
    assert ids(since=before, until=after) == {"evt_a", "evt_b", "evt_c"}
    assert ids(since=after) == ids(until=before) == set()
    every = {"source": "stripe", "state": "parked", "type": "invoice.paid", "since": before, "until": after}
    assert ids(**every, event_id="evt_a") == {"evt_a"}
    assert str(event) == api.get("/v1/events", **every).json["data"][0]["id"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("limit=0", "limit is wrong"),
        ("limit=201", "limit is wrong"),
        ("limit=1.0", "limit is wrong: write a whole number"),
        ("limit=%D9%A1", "limit is wrong: write a whole number"),
        ("limit=1&limit=2", "limit 2 times"),
        ("state=asleep", "state is wrong"),
        ("since=yesterday", "since is wrong: write a time with its offset"),
        ("since=2026-11-21T10:00:00", "since is wrong: write a time with its offset"),
        ("until=2026-13-41T10:00:00Z", "until is wrong"),
        ("until=1700000000", "until is wrong"),
        ("cursor=", "cursor is wrong"),
        ("cursor=nonsense", "cursor is wrong"),
        ("stat=done", "stat is unknown; known are source, state, type"),
    ],
)
def test_a_wrong_query_is_refused_with_a_sentence(api: Api, query: str, sentence: str) -> None:
    """The sentence names the parameter and what is allowed; nothing is ignored."""
    refused = api.get(f"/v1/events?{query}")
    assert problem(refused) == (422, "invalid-request")
    assert sentence in refused.json["detail"]


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "é" * 300, "%", "'; --"])
@pytest.mark.parametrize("name", ["source", "type", "event_id"])
def test_a_filter_may_be_any_text(api: Api, name: str, text: str) -> None:
    """Texts that no column can hold match nothing and cause no error."""
    assert api.get("/v1/events", **{name: text}).json == {"data": [], "next": None}


@pytest.mark.parametrize("text", ["\x00", "é" * 300])
def test_a_source_without_rejections_may_be_any_text(api: Api, text: str) -> None:
    """Texts that no column can hold match nothing and cause no error."""
    assert api.get("/v1/rejections", source=text).json == {"data": [], "latest": [], "next": None}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:60-23:59"])
def test_times_far_away_are_no_error(api: Api, store: Store, time: str) -> None:
    """Every valid time is accepted as a bound."""
    deliver(store)
    found = (
        len(api.get("/v1/events", since=time).json["data"]),
        len(api.get("/v1/events", until=time).json["data"]),
    )
    assert found == ((1, 0) if time.startswith("0") else (0, 1))


def test_conflicting_bodies_are_shown_as_they_are(api: Api, store: Store) -> None:
    """UTF-8 bodies are shown as text, others in base64, newest first."""
    event = deliver(store).event
    deliver(store, body='{"é": 1}'.encode(), content_type="application/json")
    deliver(store, body=b"\xff\x00")
    data = api.get(f"/v1/events/{event}/conflicts").json["data"]
    assert [(item["encoding"], item["body"], item["size"]) for item in data] == [
        ("base64", "/wA=", 2), ("utf-8", '{"é": 1}', 9),
    ]  # fmt: skip
    assert data[1]["content_type"] == "application/json"


def test_rejections_and_stats_are_reported(api: Api, store: Store) -> None:
    """Rejections and events are counted by source."""
    deliver(store)
    record_rejections(store, [Rejected("stripe", "no_match", "203.0.113.9"), Rejected("github", "too_old")])
    answer = api.get("/v1/rejections", source="stripe").json
    assert [(item["reason"], item["count"]) for item in answer["data"]] == [("no_match", 1)]
    assert [(item["reason"], item["address"]) for item in answer["latest"]] == [("no_match", "203.0.113.9")]
    figures = {item["source"]: item for item in api.get("/v1/stats").json["data"]}
    assert figures["stripe"]["states"]["received"] == 1
    assert figures["github"]["rejections"] == {"too_old": 1}


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("GET", f"/v1/events/{NOBODY}", 404, "unknown-event"),
        ("GET", "/v1/events/evt_1", 404, "unknown-event"),
        ("GET", f"/v1/events/{NOBODY}/conflicts", 404, "unknown-event"),
        ("POST", f"/v1/events/{NOBODY}/retry", 404, "unknown-event"),
        ("POST", f"/v1/events/{NOBODY}/conflicts/abc/promote", 404, "unknown-body"),
        ("POST", f"/v1/events/{NOBODY}/conflicts/{'0' * 64}/promote", 404, "unknown-event"),
        ("GET", f"/v1/replays/{NOBODY}", 404, "unknown-replay"),
        ("GET", "/v1/replays/7", 404, "unknown-replay"),
        ("GET", f"/v1/calls/{NOBODY}", 404, "unknown-call"),
        ("GET", "/v1/calls/letter", 404, "unknown-call"),
        ("DELETE", f"/v1/events/{NOBODY}", 405, "method-not-allowed"),
        ("POST", "/v1/events", 405, "method-not-allowed"),
        ("OPTIONS", "/v1/events", 405, "method-not-allowed"),
    ],
)
def test_an_unknown_resource_is_a_problem(api: Api, method: str, path: str, status: int, kind: str) -> None:
    """Each problem has a stable type and a sentence about the next step."""
    refused = api.send(method, path)
    assert problem(refused) == (status, kind)
    assert refused.json["detail"].rstrip(".") != refused.json["title"]
    assert ("Allow" in refused.headers) == (status == 405)


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"generation": 0}', "text/plain", (415, "unsupported-media-type")),
        (b'{"generation": 0}', None, (415, "unsupported-media-type")),
        (b'{"generation": 0', "application/json", (400, "malformed-body")),
        (b"\xff", "application/json", (400, "malformed-body")),
        (b"[" * 60_000, "application/json", (400, "malformed-body")),
        (b"[]", "application/json", (422, "invalid-request")),
        (b"{}", "application/json", (422, "invalid-request")),
        (b"", None, (422, "invalid-request")),
        (b'{"generation": "0"}', "application/json", (422, "invalid-request")),
        (b'{"generation": true}', "application/json", (422, "invalid-request")),
        (b'{"generation": -1}', "application/json", (422, "invalid-request")),
        (b'{"generation": 2147483648}', "application/json", (422, "invalid-request")),
        (b'{"generation": 0, "force": true}', "application/json", (422, "invalid-request")),
        (b" " * 65_537, "application/json", (413, "body_too_large")),
    ],
)
def test_a_wrong_body_is_refused(
    api: Api, store: Store, body: bytes, content_type: str | None, expected: tuple[int, str]
) -> None:
    """Each kind of wrong body has its own status and type, and the event does not change."""
    event = parked(store)
    refused = api.send("POST", f"/v1/events/{event}/rerun", data=body, content_type=content_type)
    assert problem(refused) == expected
    assert state(store, event) == "parked"


def test_a_retry_runs_the_event_again_and_nudges(api: Api, store: Store) -> None:
    """The response shows the event in the same generation, and the audit names the key."""
    event = parked(store)
    answer = api.post(f"/v1/events/{event}/retry", key=DEV)
    assert (answer.status_code, answer.json["state"], answer.json["generation"]) == (200, "waiting", 0)
    assert api.nudged == 1
    (action,) = story(store, event).as_json()["actions"]
    assert (action["what"], action["who"], action["was"]) == ("retry", "api:dev", "parked")


def test_a_rerun_needs_the_generation_that_the_caller_saw(api: Api, store: Store) -> None:
    """A second rerun from the same view is refused."""
    event = parked(store)
    first = api.post(f"/v1/events/{event}/rerun", {"generation": 0})
    change(store, event, state="parked")
    second = api.post(f"/v1/events/{event}/rerun", {"generation": 0}, key=DEV)
    assert (first.status_code, first.json["generation"]) == (200, 1)
    assert problem(second) == (409, "not-allowed")
    assert "generation 1, not 0" in second.json["detail"]
    assert api.nudged == 1


@pytest.mark.parametrize("what", ["retry", "discard"])
def test_the_generation_may_guard_the_others_too(api: Api, store: Store, what: str) -> None:
    """A generation in the request is compared for retry and discard too."""
    event = parked(store)
    assert problem(api.post(f"/v1/events/{event}/{what}", {"generation": 3})) == (409, "not-allowed")
    assert api.post(f"/v1/events/{event}/{what}", {"generation": 0}).status_code == 200


def test_a_discard_ends_the_event_without_a_nudge(api: Api, store: Store) -> None:
    """The event is dead, its reason names the key, and no worker is nudged."""
    event = parked(store)
    answer = api.post(f"/v1/events/{event}/discard", {})
    assert (answer.json["state"], answer.json["discarded"]) == ("dead", True)
    assert answer.json["reason"] == "Discarded by api:ops."
    assert api.nudged == 0


def test_an_action_that_the_state_forbids_is_refused(api: Api, store: Store) -> None:
    """The refusal to retry a done event says what to do instead."""
    event = deliver(store).event
    end(store, event)
    refused = api.post(f"/v1/events/{event}/retry", {})
    assert problem(refused) == (409, "not-allowed")
    assert "rerun it" in refused.json["detail"]
    assert api.nudged == 0


def test_a_conflicting_body_is_promoted_once(api: Api, store: Store) -> None:
    """The first request makes a due event; the second returns the same one. Each nudges."""
    event = deliver(store).event
    deliver(store, body=b'{"other": 1}')
    digest = hashlib.sha256(b'{"other": 1}').hexdigest()
    first = api.post(f"/v1/events/{event}/conflicts/{digest}/promote")
    again = api.post(f"/v1/events/{event}/conflicts/{digest}/promote")
    assert (first.status_code, first.json["created"]) == (201, True)
    assert (again.status_code, again.json["created"]) == (200, False)
    assert first.json["id"] == again.json["id"]
    assert first.json["event_id"] == f"evt_1#{digest[:12]}"
    assert api.nudged == 2
    assert api.get(first.headers["Location"]).json["event"]["state"] == "received"
    assert problem(api.post(f"/v1/events/{event}/conflicts/{'0' * 64}/promote")) == (409, "not-allowed")


@pytest.fixture
def dead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Give a ledger without a schema: every query to it fails."""
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('dead')}/none.db")
    yield store
    store.close()


@pytest.mark.parametrize("path", READING + ACTING)
def test_a_dead_ledger_is_503(dead: Store, path: str) -> None:
    """Every endpoint that needs the ledger answers 503 with Retry-After."""
    bodies = {"replays": {"what": "retry", "filter": {}}, "resolve": {"how": "give-up"}}
    body = bodies.get(path.rpartition("/")[2], {"generation": 0})
    api = Api(dead)
    answers = [api.get(path)] if path in READING else [api.post(path, body), api.post(path, body, once="k")]
    for answer in answers:
        if path == "/v1/sources":
            assert answer.status_code == 200
            continue
        assert problem(answer) == (503, "unavailable")
        assert answer.headers["Retry-After"].isdigit()


def test_the_document_and_its_page_need_no_key_and_no_other_host(api: Api) -> None:
    """Both are public; the page loads nothing and names every endpoint."""
    described = api.get("/v1/openapi.json", key=None)
    page = api.get("/v1/docs", key=None)
    assert described.json["openapi"] == "3.1.0"
    assert described.json["security"] == [{"key": []}]
    assert page.content_type == "text/html; charset=utf-8"
    for asset in ("<script", "src=", "http://", "https://", "url("):
        assert asset not in page.text
    for path in described.json["paths"]:
        assert path in page.text
