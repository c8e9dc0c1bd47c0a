"""Reading a verified delivery: ids, types, times, batches and compressed bodies."""

import gzip
import json
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.providers import Provider, load_providers
from config.sources import SOURCES, Source, load_sources
from receiver.endpoints import MOST_ITEMS, Extractor, build_endpoints, unpacked
from receiver.ledger.intake import Delivery
from receiver.payload import FORM
from receiver.signatures import InvalidSignature, Request

SOURCES_BY_NAME = load_sources(SOURCES, load_providers(), {})


def provider(**keys: Any) -> Provider:
    """Make a provider with these keys in its entry."""
    scheme = {
        "type": "hmac",
        "hash": "sha256",
        "content": "{body}",
        "signature": {"in": "header:X-Sig", "encoding": "hex"},
    }
    entry = {"name": "acme", "title": "Acme", "scheme": scheme, "window": "1d", "window_reason": "tests"}
    return Provider.model_validate({**entry, "event_id": "json:id", "event_type": "json:type", **keys})


def extractor(**keys: Any) -> Extractor:
    """Compile such a provider's extractor."""
    return Extractor(Source(name="a", provider=provider(**keys), secrets=("k",)))


def post(body: Any, url: str = "https://x.example/", **headers: str) -> Request:
    """Make a POST; a body that is not bytes is sent as JSON, `_` in header names stands for `-`."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Request(
        "POST", url, tuple((name.replace("_", "-"), value) for name, value in headers.items()), raw
    )


def hash_of(body: bytes) -> str:
    """Return the id that a body's hash gives."""
    return f"sha256:{sha256(body).hexdigest()}"


def only(items: list[Delivery]) -> Delivery:
    """Return the only item."""
    (item,) = items
    return item


@pytest.mark.parametrize(
    ("source", "body", "headers", "expected"),
    [
        ("stripe", {"id": "evt_1", "type": "invoice.paid"}, {}, ("evt_1", "invoice.paid")),
        ("standard", {"type": "a.b"}, {"webhook_id": "msg_1"}, ("msg_1", "a.b")),
        ("standard", {"type": "a.b"}, {"svix_id": "msg_1"}, ("msg_1", "a.b")),
        (
            "github",
            {"action": "opened"},
            {"X_GitHub_Delivery": "d1", "X_GitHub_Event": "pull_request"},
            ("d1", "pull_request.opened"),
        ),
        ("github", {"ref": "x"}, {"x_github_delivery": "d1", "x_github_event": "push"}, ("d1", "push")),
        (
            "github",
            b"payload=%7B%22action%22%3A%22closed%22%7D",
            {"Content_Type": FORM, "X_GitHub_Delivery": "d1", "X_GitHub_Event": "issues"},
            ("d1", "issues.closed"),
        ),
        (
            "shopify",
            {"id": 1},
            {"X_Shopify_Webhook_Id": "w1", "X_Shopify_Topic": "orders/create"},
            ("w1", "orders/create"),
        ),
        (
            "slack",
            {"event_id": "Ev1", "type": "event_callback", "event": {"type": "message"}},
            {},
            ("Ev1", "message"),
        ),
        ("slack", {"event_id": "Ev1", "type": "app_rate_limited"}, {}, ("Ev1", "app_rate_limited")),
        (
            "slack",
            b"payload=%7B%22type%22%3A%22block_actions%22%2C%22trigger_id%22%3A%22t1%22%7D",
            {"Content_Type": FORM},
            ("t1", "block_actions"),
        ),
        ("slack", b"command=%2Fgo&text=&trigger_id=t1", {"Content_Type": FORM}, ("t1", "/go")),
    ],
)
def test_the_presets_find_id_and_type(
    source: str, body: Any, headers: dict[str, str], expected: tuple[str, str]
) -> None:
    """Forms included, with header names in any case."""
    item = only(Extractor(SOURCES_BY_NAME[source]).items(post(body, **headers)))
    assert (item.event_id, item.type, item.problem) == (*expected, None)


def test_the_body_of_a_single_event_is_exact() -> None:
    """Byte for byte, with its content type."""
    body = b'{ "id" : "a" }\r\n'
    item = only(extractor().items(post(body, Content_Type="application/json")))
    assert (item.body, item.content_type) == (body, "application/json")


@pytest.mark.parametrize(
    ("keys", "request_", "expected"),
    [
        ({"event_id": "json:a.1.b"}, post({"a": [0, {"b": "x"}]}), "x"),
        ({"event_id": "json:update_id"}, post({"update_id": 10000}), "10000"),
        ({"event_id": "query:e"}, post({}, "https://x/?e=%C3%A4&f="), "\u00e4"),
        ({"event_id": "form:e"}, post(b"e=1&f=2", Content_Type=FORM), "1"),
        ({"event_id": "header:A|json:b"}, post({"b": "x"}), "x"),
        ({"event_id": "header:A|json:b"}, post({"b": "x"}, A=""), "x"),
        ({"event_id": ["json:ref", "json:code"]}, post({"ref": "T7", "code": "AUTH"}), "T7+AUTH"),
        ({"event_id": (), "dedup": "body_hash"}, post(b"{}"), hash_of(b"{}")),
    ],
)
def test_ids_are_read_where_the_entry_says(keys: dict[str, Any], request_: Request, expected: str) -> None:
    """In headers, JSON, arrays, query and form; the first of alternatives; all parts of a composite."""
    item = only(extractor(**keys).items(request_))
    assert (item.event_id, item.problem) == (expected, None)


@pytest.mark.parametrize(
    ("keys", "request_"),
    [
        ({}, post({})),
        ({}, post({"id": ""})),
        ({}, post({"id": None})),
        ({}, post({"id": True})),
        ({}, post({"id": 1.5})),
        ({}, post({"id": ["x"]})),
        ({}, post(["id"])),
        ({"event_id": "json:a.9"}, post({"a": ["x"]})),
        ({"event_id": ["json:a", "json:b"]}, post({"a": "x"})),
        ({"event_id": "query:e"}, post({}, "https://x/?e=1&e=2")),
        ({"event_id": "header:A"}, Request("POST", "", (("A", "1"), ("a", "2")), b"{}")),
    ],
)
def test_an_item_without_an_id_has_a_problem(keys: dict[str, Any], request_: Request) -> None:
    """A missing, empty, repeated or unusable id: the item is named by its body's hash."""
    item = only(extractor(**keys).items(request_))
    assert item.event_id == hash_of(request_.body)
    assert item.problem is not None
    assert item.problem.startswith("It has no event id at ")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"", "the body is empty"),
        (b"\xff", "the body is not UTF-8"),
        (b"{'id': 'x'}", "the body is not JSON"),
        (b'{"id":' * 100_000, "nested too deeply"),
        (b'{"id":' + b"9" * 5_000 + b"}", "too long"),
    ],
)
def test_an_unreadable_body_has_a_problem(body: bytes, sentence: str) -> None:
    """It is kept under its hash, even where a header holds an id."""
    for keys in ({}, {"event_id": "header:X-Id", "event_type": "header:X-Type"}):
        item = only(extractor(**keys).items(post(body, X_Id="id-1", X_Type="a")))
        assert (item.event_id, item.body) == (hash_of(body), body)
        assert item.problem is not None
        assert sentence in item.problem


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x" * 256])
def test_an_id_that_cannot_be_stored_is_hashed(text: str) -> None:
    """U+0000, lone surrogates and long texts are hashed, never cut."""
    item = only(extractor().items(post({"id": text, "type": text})))
    expected = hash_of(text.encode("utf-8", "surrogatepass"))
    assert (item.event_id, item.type, item.problem) == (expected, expected, None)


def test_the_longest_id_is_kept_as_it_is() -> None:
    """255 characters fit, however many bytes they have."""
    item = only(extractor().items(post({"id": "\U0001f600" * 255})))
    assert item.event_id == "\U0001f600" * 255


def test_a_missing_type_is_unknown() -> None:
    assert only(extractor().items(post({"id": "a"}))).type == "unknown"


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", 1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        ("ms", "1700000000500", datetime(2023, 11, 14, 22, 13, 20, 500_000, tzinfo=UTC)),
        (
            "iso8601",
            "2023-11-14T23:13:20.123456789+01:00",
            datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=UTC),
        ),
        ("s", 10**15 - 1, None),
        ("s", "soon", None),
        ("iso8601", 1_700_000_000, None),
        ("iso8601", None, None),
    ],
)
def test_times_are_utc_or_none(unit: str, value: Any, expected: datetime | None) -> None:
    """A text that is no time is no error."""
    found = extractor(created_at={"in": "json:at", "unit": unit}).items(post({"id": "a", "at": value}))
    assert only(found).created_at == expected


BATCH: dict[str, Any] = {"batch": "json:events", "event_id": "item:id", "event_type": "item:type"}


def test_a_batch_is_split() -> None:
    """Each item is an event with its own id, type and body; the batch's own fields stay readable."""
    keys = {**BATCH, "created_at": {"in": "json:at", "unit": "s"}}
    body = {"at": 1_700_000_000, "events": [{"id": "a", "type": "t"}, {"id": "b", "n": "\ud800"}]}
    first, second = extractor(**keys).items(post(body, Content_Type="application/x-json"))
    assert (first.event_id, first.type, first.body) == ("a", "t", b'{"id":"a","type":"t"}')
    assert (second.event_id, second.type, second.body) == ("b", "unknown", b'{"id":"b","n":"\\ud800"}')
    assert first.created_at == second.created_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert first.content_type == "application/json"


def test_an_item_without_an_id_does_not_stop_the_rest() -> None:
    """It is named by its hash, with a problem; the others are events as usual."""
    first, second, third = extractor(**BATCH).items(post({"events": [{"id": "a"}, {}, "x"]}))
    assert (first.event_id, first.problem) == ("a", None)
    assert (second.event_id, third.event_id) == (hash_of(b"{}"), hash_of(b'"x"'))
    assert second.problem == third.problem == "It has no event id at item:id."


def test_an_empty_batch_has_no_events() -> None:
    """Heartbeats send empty lists."""
    assert extractor(**BATCH).items(post({"events": []})) == []


@pytest.mark.parametrize(
    "body", [{}, {"events": {}}, {"events": None}, [], {"events": [0] * (MOST_ITEMS + 1)}]
)
def test_a_body_without_its_list_is_one_item(body: Any) -> None:
    """Also one with too long a list; the item has a problem."""
    request = post(body)
    item = only(extractor(**BATCH).items(request))
    assert (item.event_id, item.body) == (hash_of(request.body), request.body)
    assert item.problem is not None
    assert item.problem.startswith("It is not the list of events")


def test_a_batch_with_an_infinite_number_is_one_item() -> None:
    """Writing the number again would give invalid JSON."""
    request = post(b'{"events":[{"id":"a","n":1e999}]}')
    assert only(extractor(**BATCH).items(request)).body == request.body


def test_the_largest_batch_is_split() -> None:
    events = [{"id": str(number)} for number in range(MOST_ITEMS)]
    found = extractor(**BATCH).items(post({"events": events}))
    assert [item.event_id for item in found] == [str(number) for number in range(MOST_ITEMS)]


@pytest.mark.parametrize(
    ("place", "body", "content_type"),
    [
        ("json:", [{"id": "a"}, {"id": "b"}], "application/json"),
        ("json:e.*.c.*.m", {"e": [{"c": [{"m": [{"id": "a"}]}, {"m": [{"id": "b"}]}]}]}, "application/json"),
        ("form:events", b'events=[{"id":"a"},{"id":"b"}]', FORM),
    ],
)
def test_a_batch_is_found_where_the_entry_says(place: str, body: Any, content_type: str) -> None:
    """The whole payload, lists within lists, or JSON in a form's field."""
    found = extractor(**{**BATCH, "batch": place}).items(post(body, Content_Type=content_type))
    assert [item.event_id for item in found] == ["a", "b"]


def test_without_deduplication_each_delivery_gets_a_new_id() -> None:
    found = extractor(event_id=(), dedup="none")
    first, second = (only(found.items(post({}))) for _ in range(2))
    assert first.event_id != second.event_id
    assert first.problem is None


def test_an_optional_part_may_be_missing() -> None:
    """A composite id leaves out a missing part that is marked with `?`."""
    found = extractor(event_id=["json:id", "json:status?"])
    assert only(found.items(post({"id": "m1", "status": "read"}))).event_id == "m1+read"
    assert only(found.items(post({"id": "m1"}))).event_id == "m1"
    assert only(found.items(post({"status": "read"}))).problem is not None


def test_an_event_without_an_id_is_named_as_the_entry_says() -> None:
    """By its hash, so that a retry is recognized, or by a new id each time; neither is parked."""
    hashed = only(extractor(without_id="body_hash").items(post({"a": 1})))
    assert (hashed.event_id, hashed.problem) == (hash_of(b'{"a": 1}'), None)
    named = [only(extractor(without_id="none").items(post({"a": 1}))) for _ in range(2)]
    assert named[0].event_id != named[1].event_id
    assert named[0].problem is None


def test_an_items_id_may_be_its_position() -> None:
    """The delivery's id and the position in it."""
    found = extractor(batch="json:events", event_id=["header:X-Id", "item:#"])
    items = found.items(post({"events": [{}, {}]}, X_Id="d1"))
    assert [item.event_id for item in items] == ["d1+0", "d1+1"]
    assert all(item.problem for item in found.items(post({"events": [{}, {}]})))


def test_a_batch_may_be_recognized_by_its_content_type() -> None:
    """CloudEvents are sent one at a time, in two shapes, or as a batch."""
    found = Extractor(Source("a", load_providers()["cloudevents-webhook"], ("k",)))
    event = {"id": "1", "source": "/s", "type": "t"}
    kind = "application/cloudevents-batch+json"
    batch = found.items(post([event, {**event, "id": "2"}], Content_Type=kind))
    assert [(item.event_id, item.type) for item in batch] == [("/s+1", "t"), ("/s+2", "t")]
    assert only(found.items(post(event, Content_Type="application/cloudevents+json"))).event_id == "/s+1"
    binary = post([1], Content_Type="application/json", ce_id="3", ce_source="/s", ce_type="u")
    assert (only(found.items(binary)).event_id, only(found.items(binary)).type) == ("/s+3", "u")


def test_an_event_may_have_no_body() -> None:
    """Google Calendar sends only headers."""
    found = Extractor(Source("a", load_providers()["google-calendar"], ("k",)))
    headers = {"X_Goog_Channel_ID": "c", "X_Goog_Message_Number": "7", "X_Goog_Resource_State": "exists"}
    item = only(found.items(post(b"", **headers)))
    assert (item.event_id, item.type, item.problem) == ("c+7", "exists", None)
    assert only(found.items(post(b"{", **headers))).problem is not None


def test_an_escaped_dot_is_part_of_a_key() -> None:
    assert (
        only(extractor(event_id=r"json:a.@odata\.etag").items(post({"a": {"@odata.etag": "e"}}))).event_id
        == "e"
    )


CHANGE = {"eventId": 1, "subscriptionId": 2, "objectId": 3, "occurredAt": 4, "subscriptionType": "c.x"}
CONTACT = {"resourceId": "r", "eventDateUtc": "d", "eventType": "CREATE", "eventCategory": "CONTACT"}
BATCHES: list[tuple[str, Any, list[tuple[str, str]]]] = [
    ("hubspot", [CHANGE], [("1+2+3+4", "c.x")]),
    ("sendgrid", [{"sg_event_id": "a", "event": "open"}, {"sg_event_id": "b", "event": "click"}],
     [("a", "open"), ("b", "click")]),
    ("line", {"events": [{"webhookEventId": "a", "type": "message"}]}, [("a", "message")]),
    ("line", {"destination": "x", "events": []}, []),
    ("xero", {"events": [CONTACT]}, [("r+d+CREATE", "CONTACT.CREATE")]),
    ("xero", {"events": [], "entropy": "x"}, []),
    ("gocardless", {"events": [{"id": "E1", "resource_type": "payments", "action": "paid"}]},
     [("E1", "payments.paid")]),
    ("whatsapp", {"entry": [{"changes": [
        {"field": "messages", "value": {"messages": [{"id": "wamid.1"}]}},
        {"field": "messages", "value": {"statuses": [{"id": "wamid.2", "status": "read"}]}},
    ]}]}, [("wamid.1", "messages"), ("wamid.2+read", "messages")]),
    ("meta", {"object": "page", "entry": [{"messaging": [{"message": {"mid": "m1"}}]}]}, [("m1", "page")]),
    ("pusher", {"time_ms": 7, "events": [{"name": "n", "channel": "c"}, {"name": "n", "channel": "d"}]},
     [("7+n+c", "n"), ("7+n+d", "n")]),
    ("braze-currents", {"events": [{"id": "e", "event_type": "t"}]}, [("e", "t")]),
    ("azure-event-grid", [{"id": "e", "eventType": "t"}], [("e", "t")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "expected"), BATCHES)
def test_batches_of_the_catalogue(name: str, body: Any, expected: list[tuple[str, str]]) -> None:
    """Each item has its own id and type; an empty list has no events."""
    found = Extractor(Source("a", load_providers()[name], ("k",))).items(post(body))
    assert [(item.event_id, item.type) for item in found] == expected
    assert not any(item.problem for item in found)


EXTRACTORS = [
    *(Extractor(Source("a", provider, ("k",))) for provider in load_providers().values() if provider.scheme),
    *(Extractor(source) for source in SOURCES_BY_NAME.values()),
    extractor(**BATCH, created_at={"in": "item:at", "unit": "iso8601"}),
    extractor(**{**BATCH, "batch": "form:events"}),
    extractor(**{**BATCH, "batch": "json:*.*"}),
    extractor(
        event_id=["query:id", "form:id", "header:X-Id", "json:0.id"],
        created_at={"in": "json:at", "unit": "ms"},
    ),
]
JSON_BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("\ud800\0"),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["id", "type", "events", "event", "event_id", "at", "created"]), inner
        )
    ),
).map(lambda value: json.dumps(value).encode())
HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["Content-Type", "X-Id", "webhook-id", "X-GitHub-Event", "X-GitHub-Delivery"]),
        st.sampled_from([FORM, "application/json"]) | st.text(),
    ),
    max_size=5,
).map(tuple)


@settings(max_examples=300)
@given(st.builds(Request, st.sampled_from(["POST", "GET"]), st.text(), HEADERS, JSON_BODIES | st.binary()))
def test_no_bytes_raise(request_: Request) -> None:
    """Any request becomes items whose id and type both databases can store."""
    for found in EXTRACTORS:
        for item in found.items(request_):
            for text in (item.event_id, item.type):
                assert 0 < len(text.encode().decode()) <= 255
                assert "\0" not in text


def test_a_sources_options_say_where_id_and_type_are(tmp_path: Path) -> None:
    file = tmp_path / "sources.toml"
    file.write_text(
        """
        [a]
        provider = "hmac"
        secrets_env = "A"
        options.hash = "sha256"
        options.content = "{body}"
        options.signature = { in = "header:X-Sig", encoding = "hex" }
        options.event_id = "json:meta.id"
        options.event_type = ["json:kind", "json:verb"]
        """,
        encoding="utf-8",
    )
    source = load_sources(file, load_providers(), {})["a"]
    item = only(Extractor(source).items(post({"meta": {"id": 7}, "kind": "order", "verb": "paid"})))
    assert (item.event_id, item.type) == ("7", "order.paid")


CHAT = b'{"id":"a","type":"message.created"}'


def encoded(body: bytes, encoding: str = "gzip") -> Request:
    """Make a POST with a content encoding."""
    return Request("POST", "https://x.example/", (("Content-Encoding", encoding),), body)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (encoded(gzip.compress(CHAT)), CHAT),
        (encoded(gzip.compress(CHAT), " GZIP "), CHAT),
        (encoded(gzip.compress(b"")), b""),
        (encoded(gzip.compress(b"x" * 100)), b"x" * 100),
    ],
)
def test_a_gzipped_body_is_unpacked(request_: Request, expected: bytes) -> None:
    """Up to the limit, with the encoding's name in any case."""
    assert unpacked(request_, 100).body == expected


@pytest.mark.parametrize(
    "request_",
    [
        encoded(gzip.compress(b"x" * 101)),
        encoded(gzip.compress(b"0" * 10_000_000)),
        encoded(gzip.compress(CHAT)[:-4]),
        encoded(gzip.compress(CHAT) + b"more"),
        encoded(CHAT),
        encoded(b""),
        encoded(gzip.compress(CHAT), "identity"),
        Request("POST", "https://x.example/", (), gzip.compress(CHAT)),
    ],
)
def test_a_body_that_cannot_be_unpacked_stays_as_it_is(request_: Request) -> None:
    """Too large, truncated, with trailing bytes, or not compressed."""
    assert unpacked(request_, 100) is request_


def test_the_compressed_bytes_are_verified() -> None:
    """Nylas signs the compressed bytes; the event keeps the unpacked body."""
    endpoint = build_endpoints({"a": Source("a", load_providers()["nylas"], ("key",))})["a"]
    signed = endpoint.scheme.sign("key", encoded(gzip.compress(CHAT)), 0, "")
    endpoint.verify(signed, 0)
    (delivery,) = endpoint.extract(signed, None)
    assert (delivery.event_id, delivery.type, delivery.body) == ("a", "message.created", CHAT)
    with pytest.raises(InvalidSignature):
        endpoint.verify(unpacked(signed, 100), 0)
