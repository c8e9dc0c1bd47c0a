"""Outbound requests: address, bytes, place of the key, fingerprint; and idempotency keys."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from config.apis import Api, Auth
from config.dialects import Dialect, load_dialects
from config.nesting import MAX_DEPTH
from config.toml import ConfigError
from worker.calls.errors import CallRefused
from worker.calls.outbound import (
    BODY_MAX,
    CallArguments,
    OutboundRequest,
    build,
    complete,
    credential_marks,
    make_key,
    respond,
)

DIALECTS = load_dialects()
KEY = "4f0c2c1e-8a4d-4d53-9d54-2c2a6a3b7f10"
AUTH = Auth(type="header", value_env="SHOP_KEY", name="X-API-Key")


def api(
    dialect: Dialect | None = None, base_url: str = "https://shop.example:8443/api/v1", **more: Any
) -> Api:
    """Return an API below a path prefix."""
    day = timedelta(hours=24)
    known = dialect or DIALECTS["stripe"]
    return Api("shop", base_url, "it", known, AUTH, "the-secret", day, timedelta(minutes=10), **more)


def made(
    path: str = "/letters", method: str = "POST", boundary: str = "edge", **given: Any
) -> OutboundRequest:
    """Build a request to that API."""
    return build(api(), method, path, CallArguments(**given), boundary)


def field_dialect() -> Dialect:
    """Return a dialect whose key is a field of the body."""
    return Dialect(title="In the body", field="request_id", covers=("POST *",))


CLIMBS = [".", "..", "%2e", "%2E%2e", ".%2e", "%252e%252e", "%25252e.", "..;x=1", "%2e%2e%2f..", "..%5c"]


@pytest.mark.parametrize("climb", CLIMBS)
@pytest.mark.parametrize("shape", ["/{}", "/{}/admin", "/a/{}/b", "/a/{}?b=1"])
def test_no_path_climbs(climb: str, shape: str) -> None:
    """`.` and `..` in any encoding are refused anywhere in the path."""
    with pytest.raises(CallRefused):
        made(shape.format(climb))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "letters",
        "//evil.example/x",
        "/%2fevil.example",
        "https://evil.example/",
        "@evil.example/",
        ":443@evil.example/",
        ".evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "/%5cevil.example",
        "/a#b",
        "/a\r\nHost: evil.example",
        "/a\nb",
        "/a\tb",
        "/a\x00b",
        "/a\u2028b",
        "/\ud800",
        "?a=b",
    ],
)
def test_no_path_leads_elsewhere(path: str) -> None:
    """Other hosts, userinfo, backslashes, fragments and control characters are refused."""
    with pytest.raises(CallRefused):
        made(path)


texts = st.text(st.characters(exclude_categories=()), max_size=12)
pieces = st.sampled_from(
    [*CLIMBS, "/", "//", "\\", "@", ":", "?", "#", "%2f", "%5c", "\r\n", "evil.example", "a"]
)
paths = st.lists(pieces | texts, max_size=6).map("".join)


@given(path=paths, slash=st.booleans(), params=st.none() | st.dictionaries(texts, texts, max_size=2))
@example(path="/a", slash=False, params={"x": "//evil.example/../"})
@example(path="a?x=1", slash=True, params={"y": "\r\nHost: evil.example"})
def test_every_request_stays_below_the_base_url(
    path: str, params: dict[str, str] | None, *, slash: bool
) -> None:
    """It is refused, or its URL is one line of ASCII below scheme, host, port and prefix."""
    try:
        request = made("/" + path if slash else path, params=params)
    except CallRefused:
        return
    parts = urlsplit(request.url)
    assert (parts.scheme, parts.netloc, parts.fragment) == ("https", "shop.example:8443", "")
    assert request.url.startswith("https://shop.example:8443/api/v1/")
    assert ".." not in parts.path.split("/")
    assert request.url.isascii()
    assert request.url.isprintable()
    assert " " not in request.url
    assert dict(complete(api(), request, KEY).headers)["Host"] == "shop.example:8443"


@given(name=texts, value=texts)
@example(name="X-Note", value="a\r\nHost: evil.example")
@example(name="Host", value="evil.example")
@example(name="X-Note", value="caf\xe9")
def test_a_handlers_header_is_one_line_and_replaces_none_of_ours(name: str, value: str) -> None:
    """It is refused, or added beside host, credential, key and length."""
    try:
        request = made(headers={name: value}, content=b"body")
    except CallRefused:
        return
    sent = complete(api(), request, KEY).headers
    ours = [(n, v) for n, v in sent if n in ("Host", "X-API-Key", "Idempotency-Key", "Content-Length")]
    expected = [("Host", "shop.example:8443"), ("X-API-Key", "the-secret"), ("Idempotency-Key", KEY)]
    assert ours == [*expected, ("Content-Length", "4")]
    assert (name, value) in sent
    assert not {"\r", "\n", "\x00"} & set("".join(n + v for n, v in sent))


OURS = """Host content-length Transfer-Encoding Connection Expect
Authorization Proxy-Authorization Cookie X-API-Key idempotency-KEY"""


@pytest.mark.parametrize("value", [" a", "a ", "a\t", " ", "a\n", "\x00"])
def test_invalid_header_values_are_refused_before_sending(value: str) -> None:
    """Later the call would count as sent, with an unknown outcome."""
    with pytest.raises(CallRefused, match="name or value that HTTP does not allow"):
        made(headers={"X-Note": value})
    assert made(headers={"X-Note": "a \tb"}).headers["X-Note"] == "a \tb"


@pytest.mark.parametrize("name", [*OURS.split(), "", "a b", "a:b", "a\nb", "\xe9"])
def test_reserved_and_invalid_header_names_are_refused(name: str) -> None:
    """Credential, key, host and length belong to the client."""
    with pytest.raises(CallRefused):
        made(headers={name: "x"})


@pytest.mark.parametrize(
    ("given", "body", "kind"),
    [
        ({}, b"", None),
        (
            {"json": {"b": 1, "a": [1.5, None, True, "\xe9\u2028"]}},
            '{"b":1,"a":[1.5,null,true,"\xe9\u2028"]}',
            "application/json",
        ),
        ({"json": 0}, b"0", "application/json"),
        ({"json": {}}, b"{}", "application/json"),
        (
            {"data": {"a[b]": "c d&", "e": "\xe9"}},
            b"a%5Bb%5D=c+d%26&e=%C3%A9",
            "application/x-www-form-urlencoded",
        ),
        ({"data": {"a": ["1", "2"]}}, b"a=1&a=2", "application/x-www-form-urlencoded"),
        ({"content": "\xe9"}, "\xe9", None),
        ({"content": b"\x00\xff"}, b"\x00\xff", None),
        ({"content": b""}, b"", None),
    ],
)
def test_bodies_are_exactly_these_bytes(given: dict[str, Any], body: bytes | str, kind: str | None) -> None:
    """JSON in the given order, forms as browsers write them, content unchanged."""
    request = made(**given)
    assert request.body == (body.encode() if isinstance(body, str) else body)
    assert request.headers.get("Content-Type") == kind


def test_a_multipart_body_is_the_same_every_time() -> None:
    """Its boundary is given, so a resend has the same bytes."""
    files = {"letter": ("a.pdf", b"%PDF\r\n\x00", "application/pdf")}
    first, second = (made(files=files, data={"to": "ada"}, boundary="edge") for _ in range(2))
    assert first == second
    assert first.fingerprint == second.fingerprint
    assert first.headers["Content-Type"] == "multipart/form-data; boundary=edge"
    expected = (
        b'--edge\r\nContent-Disposition: form-data; name="to"\r\n\r\nada\r\n'
        b'--edge\r\nContent-Disposition: form-data; name="letter"; filename="a.pdf"\r\n'
        b"Content-Type: application/pdf\r\n\r\n%PDF\r\n\x00\r\n--edge--\r\n"
    )
    assert first.body == expected


@pytest.mark.parametrize(
    "given",
    [
        {"json": 1, "data": {"a": "b"}},
        {"json": 1, "content": b""},
        {"content": b"x", "files": {"a": b"b"}},
        {"json": float("nan")},
        {"json": {1, 2}},
        {"json": "\ud800"},
        {"content": 5},
        {"content": [1, 2]},
        {"content": "\ud800"},
        {"content": object()},
        {"files": {"a": object()}},
        {"data": {"a": object()}},
        {"data": {"a": ["b", object()]}},
        {"data": {"a": b"b"}},
        {"data": {"a": {"b": 1}}},
        {"params": {"a": object()}},
        {"content": b"x" * (BODY_MAX + 1)},
        {"json": "x" * BODY_MAX},
    ],
)
def test_wrong_bodies_are_refused(given: dict[str, Any]) -> None:
    """Two bodies, values that cannot be encoded, and bodies over the limit."""
    with pytest.raises(CallRefused):
        made(**given)


def test_types_that_forms_and_queries_take() -> None:
    """Text, numbers, booleans, None and lists of them; bytes beside files."""
    plain = {"a": "b", "c": [1, 2.5], "d": True, "e": None}
    sent = made(data=plain, params=plain)
    assert sent.body == b"a=b&c=1&c=2.5&d=true&e="
    assert sent.url.endswith("?a=b&c=1&c=2.5&d=true&e=")
    assert b"\xff" in made(data={"a": b"\xff"}, files={"f": b"x"}).body


def test_the_longest_body_is_sent() -> None:
    """The limit itself is allowed."""
    assert len(made(content=b"x" * BODY_MAX).body) == BODY_MAX


@pytest.mark.parametrize(("name", "value"), [("stripe", KEY), ("ietf", f'"{KEY}"')])
def test_the_key_in_a_header(name: str, value: str) -> None:
    """Bare, or quoted where the dialect says so."""
    sent = dict(complete(api(DIALECTS[name]), made(), KEY).headers)
    assert sent["Idempotency-Key"] == value
    assert "Idempotency-Key" not in dict(complete(api(DIALECTS[name]), made(), None).headers)


def test_the_key_in_the_body() -> None:
    """It is the first field of a JSON object or a form; the rest keeps its bytes."""
    target = api(field_dialect())
    for body, read in (
        ({"json": {"a": 1}}, json.loads),
        ({"json": {}}, json.loads),
        ({"data": {"a": "1"}}, lambda form: {k: v[0] for k, v in parse_qs(form.decode()).items()}),
    ):
        sent = complete(target, build(target, "POST", "/a", CallArguments(**body), ""), KEY)
        assert next(iter(read(sent.body).items())) == ("request_id", KEY)
        assert dict(sent.headers)["Content-Length"] == str(len(sent.body))


@pytest.mark.parametrize("given", [{}, {"json": [1]}, {"content": b"{}"}, {"files": {"a": b"b"}}])
def test_a_body_without_a_place_for_the_key_is_refused(given: dict[str, Any]) -> None:
    """A key that is not sent protects nothing."""
    target = api(field_dialect())
    with pytest.raises(CallRefused):
        complete(target, build(target, "POST", "/a", CallArguments(**given), "edge"), KEY)


def test_a_request_without_a_credential_is_refused() -> None:
    with pytest.raises(ConfigError, match="no credential"):
        complete(replace(api(), problem="[shop] has no credential"), made(), KEY)


def test_a_stored_request_holds_no_credential() -> None:
    """And its repr shows no header and no body."""
    request = made(json={"canary": 1}, headers={"X-Canary": "1"})
    assert "the-secret" not in str(request.headers) + str(request.body)
    assert "canary" not in repr(request).lower()
    assert "the-secret" not in repr(complete(api(), request, KEY))


@pytest.mark.parametrize("header", ["User-Agent", "traceparent", "TraceState"])
def test_a_fingerprint_ignores_user_agent_and_trace(header: str) -> None:
    """They are not part of the operation."""
    assert made(headers={header: "1"}).fingerprint == made(headers={header: "2"}).fingerprint


def test_a_fingerprint_ignores_order_and_case_of_headers() -> None:
    first = made(headers={"X-A": "1", "X-B": "2"}).fingerprint
    assert made(headers={"x-b": "2", "x-a": "1"}).fingerprint == first


def test_a_fingerprint_tells_requests_apart() -> None:
    """By method, path, query, header, body, content type and host."""
    others = [
        made(json={}),
        made(method="PUT", json={}),
        made("/other", json={}),
        made(params={"a": "b"}, json={}),
        made(headers={"X-A": "1"}, json={}),
        made(headers={"X-A": "2"}, json={}),
        made(json={"a": 1}),
        made(content=b"{}"),
        build(
            api(base_url="https://shop.example/api/v1"), "POST", "/letters", CallArguments(json={}), "edge"
        ),
    ]
    assert len({request.fingerprint for request in others}) == len(others)


def test_a_handlers_header_replaces_that_of_the_api() -> None:
    """In any case, so that only one is sent."""
    target = api(headers={"X-Version": "1"})
    request = build(target, "POST", "/a", CallArguments(headers={"x-version": "2"}), "")
    assert [(n, v) for n, v in complete(target, request, None).headers if n.lower() == "x-version"] == [
        ("x-version", "2")
    ]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_a_quoted_segment_stays_one_segment(text: str) -> None:
    """A path with a quoted part keeps its segments or is refused."""
    try:
        request = made("/letters/" + quote(text, safe=""))
    except CallRefused:
        return
    assert urlsplit(request.url).path.count("/") == 4


def test_a_response_is_an_httpx_response() -> None:
    """With status, headers, body and request."""
    answer = respond(
        made(), 404, (("Content-Type", "application/json"), ("X-A", "1"), ("X-A", "2")), b'{"a":1}'
    )
    assert (answer.status_code, answer.json(), answer.headers.get_list("x-a")) == (404, {"a": 1}, ["1", "2"])
    assert answer.request.url.path == "/api/v1/letters"


def test_the_nesting_bound_holds_for_bodies() -> None:
    value: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    assert made(json=value).body == b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    with pytest.raises(CallRefused, match=f"more than {MAX_DEPTH} levels"):
        made(json=[value])


SECRET = b"secret"
PARTS = ("stripe", "evt_1", 0, "letter", 0)
part_names = st.text(st.characters(exclude_categories=()), max_size=6)
key_parts = st.tuples(part_names, part_names, st.integers(0, 99), part_names, st.integers(0, 9))


def test_the_key_of_given_parts_never_changes() -> None:
    """A restored ledger must derive it again."""
    assert make_key(SECRET, PARTS) == "7227f4a6-c0c6-46c8-9a00-7b75a5b6ea44"


@given(parts=key_parts)
def test_a_key_is_shaped_like_a_random_uuid(parts: tuple[str, str, int, str, int]) -> None:
    """36 characters, version 4, for any names."""
    key = make_key(SECRET, parts)
    assert (len(key), str(UUID(key)), UUID(key).version) == (36, key, 4)


@given(first=key_parts, second=key_parts)
def test_other_parts_are_another_key(first: tuple[str | int, ...], second: tuple[str | int, ...]) -> None:
    """Two calls share a key only if all their parts are equal."""
    assert (make_key(SECRET, first) == make_key(SECRET, second)) == (first == second)


@pytest.mark.parametrize(
    "other",
    [
        ("stripeevt_1", "", 0, "letter", 0),
        ("stripe", "evt_", 10, "letter", 0),
        ("stripe", "evt_1", 1, "letter", 0),
        ("stripe", "evt_1", 0, "letter", 1),
        ("stripe", "evt_1", 0, "letter0", 0),
    ],
)
def test_neighbouring_parts_do_not_run_together(other: tuple[str | int, ...]) -> None:
    """The boundary between two parts counts."""
    assert make_key(SECRET, PARTS) != make_key(SECRET, other)


def test_another_secret_is_another_key() -> None:
    assert make_key(SECRET, PARTS) != make_key(b"another", PARTS)


def test_a_credential_has_a_mark_under_each_secret() -> None:
    """The current one first; API and credential decide it, and it does not contain the credential."""
    marks = credential_marks([SECRET, b"old"], "shop", "token")
    assert [len(bytes.fromhex(mark)) for mark in marks] == [32, 32]
    assert credential_marks([b"old"], "shop", "token") == marks[1:]
    assert credential_marks([SECRET], "other", "token")[0] != marks[0]
    assert credential_marks([SECRET], "shop", "token2")[0] != marks[0]


def test_a_credential_mark_differs_from_a_key() -> None:
    """Also for the same parts."""
    assert make_key(SECRET, ("shop", "token"))[:8] != credential_marks([SECRET], "shop", "token")[0][:8]
