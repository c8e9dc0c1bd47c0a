"""The catalogue of dialects: its entries, and the mistakes that loading refuses."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from config.dialects import DIALECTS, Dialect, load_dialects
from config.toml import ConfigError

GOOD = """
[shop]
title = "Shop"
header = "Idempotency-Key"
quoted = true
min_length = 1
max_length = 255
life = "24h"
covers = ["POST /v1/orders", "DELETE *"]
repeatable = ["PUT /v1/orders/{id}"]
in_flight = { status = 423, code = "busy" }
mismatch = { status = 409, code = "used" }
stored = "all"
replay = { status = 208, outcome = "ok" }
should_retry = "Shop-Should-Retry"

[shop.server]
scope = ["credential"]
fingerprint = ["method", "target", "header:Content-Type", "body"]
"""


def load(folder: Path, text: str) -> Mapping[str, Dialect]:
    """Load a catalogue with this text."""
    path = folder / "dialects.toml"
    path.write_text(text)
    return load_dialects(path)


def test_the_sandbox_dialects_and_our_own_have_a_server_half() -> None:
    """The other four have only the client's half."""
    dialects = load_dialects()
    assert {name for name in dialects if not dialects[name].server} == {"ietf", "stripe", "paypal", "none"}
    for name in ("firstseen", "celper", "chronapilot", "salesly", "stannp", "telness"):
        assert dialects[name].server, name
        assert dialects[name].life == timedelta(hours=24), name


def test_our_own_policy_is_the_strictest() -> None:
    """Method, path with query, content type and body must be equal; only final answers are stored."""
    ours = load_dialects()["firstseen"]
    assert ours.server
    assert set(ours.server.fingerprint) == {"method", "target", "header:Content-Type", "body"}
    assert ours.server.scope == ("credential", "method", "path")
    assert (ours.stored, ours.quoted) == ("final", True)


def test_a_valid_catalogue_loads(tmp_path: Path) -> None:
    """The other tests break this text."""
    load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ('"Idempotency-Key"', '"Idempotency_Key"', "[shop] header"),
        ('"Idempotency-Key"', '""', "[shop] header"),
        ("min_length = 1", "min_length = 0", "[shop] min_length"),
        ("min_length = 1", "min_length = 256", "min_length 256 is above max_length 255"),
        (
            "min_length = 1",
            "min_length = 37",
            "keys of 36 characters must be allowed, and these are 37 to 255",
        ),
        (
            "max_length = 255",
            "max_length = 35",
            "keys of 36 characters must be allowed, and these are 1 to 35",
        ),
        ('header = "Idempotency-Key"', 'header = "K"\nfield = "key"', "[shop] header and field"),
        ('header = "Idempotency-Key"', "", "[shop] covers and header (or field) go together"),
        ('covers = ["POST /v1/orders", "DELETE *"]', "", "covers and header (or field) go together"),
        ('header = "Idempotency-Key"', 'field = "key"', "quoted is for a header, and there is none"),
        ('mismatch = { status = 409, code = "used" }', "", "server needs header, mismatch and stored"),
        ('stored = "all"', "", "server needs header, mismatch and stored"),
        ("PUT /v1/orders/{id}", "GET *", "'GET *' is not one of POST, PUT, PATCH, DELETE"),
        (', outcome = "ok"', "", "[shop] replay: status and outcome go together"),
        ("status = 208, ", "", "[shop] replay: status and outcome go together"),
        ("status = 423", "status = 200", "[shop] in_flight"),
        ('"Shop-Should-Retry"', '"Shop: Retry"', "[shop] should_retry"),
        ("max_length = 255", "max_length = 5000", "[shop] max_length"),
        ('life = "24h"', 'life = "1 day"', "[shop] life: '1 day' is not a duration"),
        ('life = "24h"', 'life = "0s"', "[shop] life: '0s' is out of range; it must be more than 0s"),
        ("POST /v1/orders", "GET /v1/orders", "'GET /v1/orders' is not one of POST, PUT, PATCH, DELETE"),
        ("POST /v1/orders", "POST v1/orders", "'POST v1/orders' is not one of"),
        ("POST /v1/orders", "POST /v1/orders?a=1", "'POST /v1/orders?a=1' is not one of"),
        ("POST /v1/orders", "POST /v1/orders/", "'POST /v1/orders/' is not one of"),
        ('"target"', '"url"', "'url' is not one of method, path, target, body or header:<name>"),
        ('"header:Content-Type"', '"header:"', "'header:' is not one of"),
        ("status = 409", "status = 200", "[shop] mismatch"),
        ('stored = "all"', 'stored = "some"', "[shop] stored"),
        ('title = "Shop"', 'titel = "Shop"', "[shop] 'titel' is not a known key; did you mean 'title'?"),
        ("[shop]", "[shop", "it is not valid TOML"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(tmp_path: Path, was: str, becomes: str, words: str) -> None:
    """One sentence has the file, the entry and the mistake."""
    assert was in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(was, becomes))
    assert words in str(caught.value), str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        load_dialects(tmp_path / "none.toml")


def test_the_catalogue_is_package_data() -> None:
    """An installed copy finds it."""
    assert DIALECTS.is_file()
    assert DIALECTS.parent.name == "config"


def test_defaults_promise_nothing(tmp_path: Path) -> None:
    """A key lives for an hour; what a concurrent copy gets is unstated."""
    bare = load(tmp_path, '[shop]\ntitle = "Shop"\nheader = "Idempotency-Key"\ncovers = ["POST *"]\n')["shop"]
    assert (bare.life, bare.in_flight, bare.locked) == (timedelta(hours=1), "unstated", None)
    assert (bare.mismatch, bare.misused, bare.stored) == (None, None, None)
    assert (bare.replay.header, bare.replay.also, bare.replay.status) == (None, None, None)
    assert bare.should_retry is None


@pytest.mark.parametrize(
    ("method", "path", "keyed"),
    [
        ("POST", "/v1/candidates", True),
        ("POST", "/gateway/celper/v1/candidates", True),
        ("POST", "/v1/candidates/c1/invite", True),
        ("POST", "/celper/v1/candidates/c1/invite", True),
        ("POST", "/xv1/candidates", False),
        ("POST", "/v1/candidates/", False),
        ("POST", "/v1/candidates//invite", False),
        ("POST", "/v1/candidates/c1", False),
        ("POST", "/candidates", False),
        ("PUT", "/v1/candidates", False),
        ("post", "/v1/candidates", False),
        ("POST", "", False),
    ],
)
def test_a_path_is_matched_from_its_end(method: str, path: str, *, keyed: bool) -> None:
    """By whole segments, below any base URL."""
    assert load_dialects()["celper"].is_keyed(method, path) == keyed


def test_some_requests_may_be_repeated_without_a_key() -> None:
    """Where the API's document calls them idempotent."""
    celper = load_dialects()["celper"]
    assert celper.is_repeatable("DELETE", "/v1/candidates/c1")
    assert celper.is_repeatable("PATCH", "/v1/candidates/c1")
    assert not celper.is_repeatable("POST", "/v1/candidates/c1/hire")
    assert not load_dialects()["stannp"].is_repeatable("DELETE", "/api/v1/letters/1")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_the_dialect_none_protects_nothing(method: str) -> None:
    """It has no place for a key and repeats nothing."""
    nothing = load_dialects()["none"]
    assert not nothing.carries_keys
    assert not nothing.is_keyed(method, "/v1/orders")
    assert not nothing.is_repeatable(method, "/v1/orders")
