"""Single behaviours of verification: parsing, strictness, time, keys."""

import hashlib
import hmac
import json
from typing import Any

import pytest

from config.providers import SchemeTable
from receiver.signatures import InvalidSignature, Request, compile_scheme
from tests.services.presets import signed_headers

NOW = 1_700_000_000.0
BODY = b'{"id":"evt_1","type":"a"}'
PLAIN = {
    "type": "hmac",
    "hash": "sha256",
    "content": "{body}",
    "signature": {"in": "header:X-Sig", "encoding": "hex"},
}
TIMED = {
    **PLAIN,
    "content": "{timestamp}.{body}",
    "timestamp": {"in": "sig:t", "unit": "s", "tolerance": 300},
    "signature": {"in": "header:X-Sig", "encoding": "hex", "list_sep": ",", "pair_sep": "=", "field": "v1"},
}


def made(table: dict[str, Any], **options: str) -> Any:
    """Compile a table."""
    return compile_scheme(SchemeTable.model_validate(table), options)


def delivery(headers: dict[str, str], body: bytes = BODY, url: str = "https://x.example/hook") -> Request:
    """Make a POST."""
    return Request("POST", url, tuple(headers.items()), body)


def reason(
    scheme: Any, request: Request, *secrets: str, now: float = NOW, tolerance: int | None = None
) -> str | None:
    """Say why a request is refused, None when it is not."""
    try:
        scheme.verify(secrets or ("key",), request, now, tolerance)
    except InvalidSignature as error:
        return error.reason
    return None


def signed(scheme: Any, secret: str = "key", **kwargs: Any) -> dict[str, str]:
    """Sign the body's headers now."""
    return signed_headers(scheme, secret, BODY, NOW, "evt_1", **kwargs)


def with_signature(table: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Change a table's signature."""
    return {**table, "signature": {**table["signature"], **keys}}


def test_hex_counts_in_any_case() -> None:
    """A provider that writes upper-case hex is understood."""
    scheme = made(PLAIN)
    headers = signed(scheme)
    assert reason(scheme, delivery({"x-sIG": headers["X-Sig"].upper()})) is None


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: f" {s}", lambda s: f"{s[:2]} {s[2:]}", lambda s: f"0x{s}"]
)
def test_hex_is_strict(change: Any) -> None:
    """Half a byte, blanks and prefixes are no hex: one signature has one spelling but for case."""
    scheme = made(PLAIN)
    assert reason(scheme, delivery({"X-Sig": change(signed(scheme)["X-Sig"])})) == "malformed_signature"


@pytest.mark.parametrize(
    "change", [lambda s: s.rstrip("="), lambda s: f"{s}\n", lambda s: s.replace("=", "=="), lambda s: f"!{s}"]
)
def test_base64_is_canonical(change: Any) -> None:
    """Base64 without padding, with stray characters or with spare bits is refused."""
    scheme = made(with_signature(PLAIN, encoding="base64"))
    assert reason(scheme, delivery({"X-Sig": change(signed(scheme)["X-Sig"])})) == "malformed_signature"


def test_base64_with_spare_bits_is_refused() -> None:
    """The last character's unused bits are zero, or the same signature could be written in several ways."""
    scheme = made(with_signature(PLAIN, encoding="base64"))
    text = signed(scheme)["X-Sig"]
    assert text.endswith("=")
    following = chr(ord(text[-2]) + 1)
    assert reason(scheme, delivery({"X-Sig": text[:-2] + following + "="})) == "malformed_signature"


@pytest.mark.parametrize("padding", ["", "="])
def test_base64url_counts_with_and_without_padding(padding: str) -> None:
    """Both habits of writing URL-safe base64 are in use."""
    scheme = made(with_signature(PLAIN, encoding="base64url"))
    assert reason(scheme, delivery({"X-Sig": signed(scheme)["X-Sig"] + padding})) is None


@pytest.mark.parametrize("change", [lambda s: s[:-1] + chr(ord(s[-1]) + 1), lambda s: s + "=="])
def test_base64url_is_canonical(change: Any) -> None:
    """Spare bits and too much padding are refused in the URL-safe alphabet too."""
    scheme = made(with_signature(PLAIN, encoding="base64url"))
    assert reason(scheme, delivery({"X-Sig": change(signed(scheme)["X-Sig"])})) == "malformed_signature"


def test_a_prefix_is_mandatory() -> None:
    """Without its `sha256=` a signature is not written as this provider writes it."""
    scheme = made(with_signature(PLAIN, prefix="sha256="))
    text = signed(scheme)["X-Sig"]
    assert reason(scheme, delivery({"X-Sig": text})) is None
    assert reason(scheme, delivery({"X-Sig": text.removeprefix("sha256=")})) == "malformed_signature"


def test_any_of_several_signatures_may_match() -> None:
    """During a rotation a provider signs with both secrets; wrong, unknown and broken entries are skipped."""
    scheme = made(TIMED)
    good = signed(scheme)["X-Sig"]
    noisy = f"=,,v1,v1=zz,v0=00,v1={'11' * 32},{good},v1={'00' * 32},v9==x="
    assert reason(scheme, delivery({"X-Sig": noisy})) is None


def test_a_pair_is_split_at_its_first_separator() -> None:
    """Base64 padding in a value is no second separator."""
    scheme = made(with_signature(TIMED, encoding="base64"))
    assert signed(scheme)["X-Sig"].endswith("=")
    assert reason(scheme, delivery(signed(scheme))) is None


def test_only_unknown_versions_is_malformed() -> None:
    """A header with no entry of the known version proves nothing."""
    scheme = made(TIMED)
    text = signed(scheme)["X-Sig"].replace("v1=", "v0=")
    assert reason(scheme, delivery({"X-Sig": text})) == "malformed_signature"


def test_a_huge_list_is_bounded_work() -> None:
    """What stands behind a hundred entries is not read."""
    scheme = made(TIMED)
    good = signed(scheme)["X-Sig"]
    junk = ",".join(["v1=00"] * 200_000)
    assert reason(scheme, delivery({"X-Sig": f"{good},{junk}"})) is None
    assert reason(scheme, delivery({"X-Sig": f"t={NOW:.0f},{junk},{good}"})) == "bad_signature"


def test_a_repeated_signature_header_is_refused() -> None:
    """Two headers of one name could be read differently by a proxy and by us."""
    scheme = made(PLAIN)
    pair = ("X-Sig", signed(scheme)["X-Sig"])
    assert reason(scheme, Request("POST", "https://x/", (pair, pair), BODY)) == "repeated_value"


@pytest.mark.parametrize(
    ("age", "expected"),
    [(0, None), (300, None), (301, "stale_timestamp"), (-300, None), (-301, "future_timestamp")],
)
def test_the_tolerance_ends_where_it_says(age: int, expected: str | None) -> None:
    """Exactly the tolerance old is accepted, as Stripe's library does; a second more is not, either way."""
    scheme = made(TIMED)
    assert reason(scheme, delivery(signed(scheme)), now=NOW + age) == expected


def test_whole_seconds_are_compared_with_whole_seconds() -> None:
    """A delivery that is exactly the tolerance old is accepted through the whole of that second."""
    scheme = made(TIMED)
    assert reason(scheme, delivery(signed(scheme)), now=NOW + 300.9) is None


def test_a_sources_tolerance_replaces_the_schemes() -> None:
    """A tolerance given at verification counts instead of the table's, wider or narrower."""
    scheme = made(TIMED)
    request = delivery(signed(scheme))
    assert reason(scheme, request, now=NOW + 400, tolerance=500) is None
    assert reason(scheme, request, now=NOW + 20, tolerance=10) == "stale_timestamp"


def test_a_refreshed_timestamp_breaks_the_signature() -> None:
    """The timestamp is in the signed bytes: moving it is forging."""
    scheme = made(TIMED)
    moved = signed(scheme)["X-Sig"].replace(f"t={NOW:.0f}", f"t={NOW + 500:.0f}")
    assert reason(scheme, delivery({"X-Sig": moved}), now=NOW + 500) == "bad_signature"


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("s", "1700000000", None),
        ("s", "1700000000000", "future_timestamp"),
        ("s", "-5", "malformed_timestamp"),
        ("s", "1_700_000_000", "malformed_timestamp"),
        ("s", "\u0661\u0667", "malformed_timestamp"),
        ("s", "9" * 5000, "malformed_timestamp"),
        ("ms", "1700000000123", None),
        ("ms", "1700000000", "stale_timestamp"),
        ("iso8601", "2023-11-14T22:13:20Z", None),
        ("iso8601", "2023-11-14T22:13:20.123456789Z", None),
        ("iso8601", "2023-11-14T22:13:20.5", None),
        ("iso8601", "2023-11-14T23:13:20+0100", None),
        ("iso8601", "2023-11-14", "malformed_timestamp"),
        ("iso8601", "2023-13-14T22:13:20Z", "malformed_timestamp"),
        ("iso8601", "0001-01-01T00:00:00+23:59", "malformed_timestamp"),
    ],
)
def test_timestamps_are_read_by_their_unit(unit: str, text: str, expected: str | None) -> None:
    """Seconds, milliseconds and ISO 8601 in the shapes in use; everything else is no time."""
    timestamp = {"in": "header:X-Time", "unit": unit, "tolerance": 300}
    fixed = {**PLAIN, "content": "{header:X-Time}.{body}"}
    headers = {"X-Time": text}
    request = made(fixed).sign("key", delivery(headers), NOW, "")
    scheme = made({**PLAIN, "content": "{timestamp}.{body}", "timestamp": timestamp})
    assert reason(scheme, request) == expected


@pytest.mark.parametrize(
    ("secrets", "expected"), [(("old", "key"), None), (("old",), "bad_signature"), (("",), "no_secret")]
)
def test_any_secret_may_match(secrets: tuple[str, ...], expected: str | None) -> None:
    """Rotation keeps several secrets; none of them right is a rejection, and an empty one is no key."""
    scheme = made(PLAIN)
    assert reason(scheme, delivery(signed(scheme)), *secrets) == expected


def test_no_secret_at_all_is_a_rejection() -> None:
    """Without secrets nothing verifies, not even a delivery signed with an empty key."""
    with pytest.raises(InvalidSignature, match="no secret"):
        made(PLAIN).verify((), delivery({"X-Sig": "00" * 32}), NOW, None)


@pytest.mark.parametrize(
    "table",
    [
        PLAIN,
        {**PLAIN, "type": "hash", "content": "{secret}{body}"},
        {"type": "token", "signature": {"in": "header:X-Sig"}},
        {"type": "basic", "signature": {"in": "header:X-Sig"}},
    ],
)
@pytest.mark.parametrize("secret", ["", "\ud800"])
def test_an_empty_or_broken_secret_is_no_key(table: dict[str, Any], secret: str) -> None:
    """What anybody could sign with, and what is no text, never verifies anything."""
    digest = hashlib.sha256(BODY).hexdigest()
    empty = hmac.digest(b"", BODY, "sha256").hex()
    for text in (digest, empty, "Basic Og=="):
        assert reason(made(table), delivery({"X-Sig": text}), secret) in {"no_secret", "malformed_signature"}


def test_keys_are_read_by_their_encoding() -> None:
    """A base64 key, with or without prefix and padding or with URL-safe letters, is one key."""
    scheme = made({**PLAIN, "key": {"encoding": "base64", "strip_prefix": "whsec_"}})
    request = delivery(signed(scheme, secret="whsec_+/+/+/+/+w=="))
    assert reason(scheme, request, "-_-_-_-_-w") is None
    assert reason(scheme, request, "not base64 at all!") == "no_secret"


def test_the_url_and_method_are_signed_as_configured() -> None:
    """Templates over the URL's parts tell requests apart by exactly those parts."""
    scheme = made({**PLAIN, "content": "{method}{url}{body}"})
    headers = signed(scheme, url="https://x.example/hook?a=1")
    assert reason(scheme, delivery(headers, url="https://x.example/hook?a=1")) is None
    assert reason(scheme, delivery(headers, url="https://x.example/hook?a=2")) == "bad_signature"


@pytest.mark.parametrize(
    ("content", "url", "expected"),
    [
        ("{url_no_query}", "https://x.example/a?b=1#c", "https://x.example/a"),
        ("{path_query}", "https://x.example/a?b=1#c", "/a?b=1"),
        ("{path_query}", "https://x.example", "/"),
        ("{path_query}", "nonsense", "/"),
        ("{config:app}{path_query}", "https://x.example/a", "app_1/a"),
    ],
)
def test_parts_of_the_url(content: str, url: str, expected: str) -> None:
    """Each placeholder of the URL is the part that its name says."""
    headers = signed(made({**PLAIN, "content": content}, app="app_1"), url=url)
    fixed = {**PLAIN, "content": "{json:expected}"}
    body = f'{{"expected":"{expected}"}}'.encode()
    assert reason(made(fixed), delivery(headers, body)) is None


def test_a_required_header_is_checked() -> None:
    """A delivery that announces another version of the signature is refused."""
    scheme = made({**PLAIN, "require": {"header:X-Version": "1"}})
    headers = signed(scheme)
    assert headers["X-Version"] == "1"
    assert reason(scheme, delivery({**headers, "X-Version": "2"})) == "unmet_requirement"


def test_a_token_proves_the_sender_alone() -> None:
    """A token is compared as bytes: attackers may send any characters."""
    scheme = made({"type": "token", "signature": {"in": "header:Authorization", "prefix": "Bearer "}})
    assert reason(scheme, delivery({"Authorization": "Bearer key"})) is None
    assert reason(scheme, delivery({"Authorization": "Bearer k\u00f6y"})) == "bad_signature"
    assert reason(scheme, delivery({"Authorization": "key"})) == "malformed_signature"
    assert reason(scheme, delivery({})) == "missing_signature"


def test_a_token_of_other_letters_matches_itself() -> None:
    """A secret outside ASCII arrives as its UTF-8 bytes."""
    scheme = made({"type": "token", "signature": {"in": "header:X-Token"}})
    arrived = "schl\u00fcssel".encode().decode("latin-1")
    assert reason(scheme, delivery({"X-Token": arrived}), "schl\u00fcssel") is None


def test_a_basic_password_may_hold_colons() -> None:
    """Only the first colon separates user and password, and the word Basic counts in any case."""
    scheme = made({"type": "basic", "signature": {"in": "header:Authorization"}})
    headers = signed(scheme, secret="user:pa:ss")
    assert reason(scheme, delivery(headers), "user:pa:ss") is None
    lower = headers["Authorization"].replace("Basic", "basic")
    assert reason(scheme, delivery({"Authorization": lower}), "user:pa:ss") is None
    assert reason(scheme, delivery(headers), "user:pa") == "bad_signature"


def test_a_wrong_signature_is_not_made_good_by_a_token() -> None:
    """Of alternatives, a token counts only where no signature was sent: there is no downgrade."""
    scheme = made(
        {"type": "any_of", "schemes": [PLAIN, {"type": "token", "signature": {"in": "header:X-Token"}}]}
    )
    assert reason(scheme, delivery({"X-Token": "key"})) is None
    assert reason(scheme, delivery({"X-Token": "key", "X-Sig": "00" * 32})) == "bad_signature"


def test_a_signature_can_stand_in_the_body() -> None:
    """It is put into the body without touching the rest, and headers stay as they are."""
    scheme = made({**PLAIN, "content": "{json:id}", "signature": {"in": "json:sig", "encoding": "hex"}})
    request = scheme.sign("key", delivery({}), NOW, "evt_1")
    signature = hmac.digest(b"key", b"evt_1", "sha256").hex()
    assert (request.headers, request.payload.value) == ((), {**json.loads(BODY), "sig": signature})
    assert reason(scheme, request) is None


def test_reasons_repeat_no_values() -> None:
    """The sentence of a rejection names places, never what stood there."""
    scheme = made(PLAIN)
    with pytest.raises(InvalidSignature) as caught:
        scheme.verify(("s3cret",), delivery({"X-Sig": "hunter2"}), NOW, None)
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
