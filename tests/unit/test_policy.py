"""Key policies: reading a key, scope, fingerprint, and which responses are stored."""

from dataclasses import replace
from typing import Any

import pytest
from flask import Flask, Request
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder

from config.dialects import Dialect, load_dialects
from receiver.idempotency.policy import (
    KeyPolicy,
    Refusal,
    StoredResponses,
    fingerprint,
    policy_of,
    read_key,
    scope,
)

FIRSTSEEN = policy_of("firstseen", load_dialects()["firstseen"])
STANNP = policy_of("stannp", load_dialects()["stannp"], "/stannp")
CELPER = policy_of("celper", load_dialects()["celper"], "/celper")
KEYS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=255)
HEADERS = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=1100)


def request(path: str = "/things", body: bytes = b"", **named: Any) -> Request:
    """Return a request as Flask sees it; `_` in header names stands for `-`."""
    method = named.pop("method", "POST")
    headers = [(name.replace("_", "-"), value) for name, value in named.items()]
    return Flask.request_class(EnvironBuilder(path, method=method, data=body, headers=headers).get_environ())


def refused(policy: KeyPolicy, value: str) -> str:
    """Return the message that refuses a key."""
    with pytest.raises(Refusal) as caught:
        read_key(policy, request(**{policy.header: value}))
    assert (caught.value.status, caught.value.code) == (400, "idempotency_key_invalid")
    return caught.value.detail


@given(value=HEADERS)
@example(value='"')
@example(value='"a\\')
def test_any_header_is_a_key_or_refused(value: str) -> None:
    """A key within the limits or a Refusal, and nothing else."""
    for policy in (FIRSTSEEN, STANNP):
        try:
            key = read_key(policy, request(**{policy.header: value}))
        except Refusal:
            assert refused(policy, value).startswith(f"{policy.header} must be ")
            continue
        assert key is not None
        assert policy.min_length <= len(key) <= policy.max_length
        assert key.isascii()


@given(key=KEYS)
def test_a_quoted_key_is_the_key(key: str) -> None:
    """Only our own API unquotes: the IETF draft's quoted string and the bare text are one key there."""
    quoted = '"{}"'.format(key.replace("\\", "\\\\").replace('"', '\\"'))
    assert read_key(FIRSTSEEN, request(Idempotency_Key=quoted)) == key
    if len(quoted) <= 255:
        assert read_key(CELPER, request(Idempotency_Key=quoted)) == quoted


def test_no_header_is_no_key() -> None:
    assert read_key(FIRSTSEEN, request()) is None


@pytest.mark.parametrize(
    ("policy", "value", "words"),
    [
        (FIRSTSEEN, "", "must be 1 to 255 printable ASCII characters; this one is empty."),
        (FIRSTSEEN, '""', "must be 1 to 255 printable ASCII characters; this one is empty."),
        (FIRSTSEEN, "k" * 256, "must be 1 to 255 printable ASCII characters; this one has 256."),
        (STANNP, "k" * 9, "must be 10 to 1024 printable ASCII characters; this one has 9."),
        (STANNP, "k" * 1025, "must be 10 to 1024 printable ASCII characters; this one has 1025."),
        (FIRSTSEEN, "caf\xe9", "must be 1 to 255 printable ASCII characters."),
        (FIRSTSEEN, "a\tb", "must be 1 to 255 printable ASCII characters."),
        (FIRSTSEEN, '"a"b', "must be 1 to 255 printable ASCII characters."),
        (FIRSTSEEN, '"a\\b"', "must be 1 to 255 printable ASCII characters."),
        (FIRSTSEEN, '"a', "must be 1 to 255 printable ASCII characters."),
    ],
)
def test_a_wrong_key_is_refused_with_the_limit(policy: KeyPolicy, value: str, words: str) -> None:
    """The message names the header, its limits and what was found."""
    assert refused(policy, value) == f"{policy.header} {words}"


@pytest.mark.parametrize(
    ("method", "path", "covered"),
    [
        ("POST", "/celper/v1/candidates", True),
        ("POST", "/celper/v1/candidates/c1/invite", True),
        ("POST", "/celper/v1/candidates//invite", False),
        ("POST", "/celper/v1/candidates/c1", False),
        ("POST", "/celper/v1/candidates/c1/invite/", False),
        ("POST", "/celper/v1/candidates/c1/hire", False),
        ("POST", "/v1/candidates", False),
        ("PATCH", "/celper/v1/candidates", False),
        ("GET", "/celper/v1/candidates", False),
    ],
)
def test_which_requests_a_policy_covers(method: str, path: str, *, covered: bool) -> None:
    """`{id}` is one non-empty segment; paths are below the prefix."""
    assert CELPER.covered(method, path) == covered


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_no_policy_covers_reading(method: str) -> None:
    for name, dialect in load_dialects().items():
        if dialect.server:
            assert not policy_of(name, dialect).covered(method, "/v1/candidates"), name


@pytest.mark.parametrize(
    ("stored", "kept", "not_kept"),
    [
        (StoredResponses.ALL, {200, 302, 400, 404, 409, 500, 503}, set()),
        (StoredResponses.SUCCESS, {200, 201, 204}, {199, 300, 302, 400, 404, 500}),
        (StoredResponses.FINAL, {200, 302, 400, 403, 409, 422, 429}, {404, 500, 502, 503}),
    ],
)
def test_which_responses_are_stored(stored: StoredResponses, kept: set[int], not_kept: set[int]) -> None:
    """All, only successes, or all that a retry could not change."""
    policy = replace(FIRSTSEEN, stored=stored)
    assert {status for status in kept | not_kept if policy.stores(status)} == kept


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("method", {"method": "PUT"}),
        ("path", {"path": "/others"}),
        ("target", {"path": "/things?a=1"}),
        ("body", {"body": b"x"}),
        ("header:Content-Type", {"Content_Type": "text/plain"}),
    ],
)
def test_each_part_of_a_fingerprint_counts(part: str, change: dict[str, Any]) -> None:
    """A change alters the fingerprints that include its part, and no others."""
    parts = ("method", "path", "target", "body", "header:Content-Type")
    before, after = request(), request(**change)
    changed = {
        name
        for name in parts
        if _print(replace(FIRSTSEEN, fingerprint=(name,)), before)
        != _print(replace(FIRSTSEEN, fingerprint=(name,)), after)
    }
    assert changed == ({"path", "target"} if part == "path" else {part})


def _print(policy: KeyPolicy, sent: Request) -> str:
    return fingerprint(policy, sent, sent.get_data())


def test_a_scope_tells_its_parts_apart() -> None:
    """A key is unique within the parts of its scope."""
    policy = replace(FIRSTSEEN, scope=("credential", "path"))
    known = {"credential": lambda sent: sent.headers.get("X-API-Key", "")}
    found = {
        scope(policy, request(path, X_API_Key=key, method=method), known)
        for path in ("/a", "/b")
        for key in ("k", "ключ".encode().decode("latin-1"))
        for method in ("POST", "PUT")
    }
    assert len(found) == 4


def test_a_dialect_without_a_server_half_has_no_policy() -> None:
    half = Dialect(title="Half", header="Idempotency-Key", covers=("POST *",))
    with pytest.raises(ValueError, match="'half' has no server half"):
        policy_of("half", half)


@given(st.text(max_size=50), st.binary(max_size=50))
def test_any_path_and_query_have_a_fingerprint(path: str, query: bytes) -> None:
    """And a scope."""
    environ = EnvironBuilder("/x", method="POST").get_environ()
    environ["PATH_INFO"] = "/" + path.encode("utf-8", "surrogatepass").decode("latin-1")
    environ["QUERY_STRING"] = query.decode("latin-1")
    sent = Flask.request_class(environ)
    assert len(fingerprint(FIRSTSEEN, sent, b"")) == 64
    assert len(scope(replace(FIRSTSEEN, scope=("method", "path")), sent, {})) == 64
