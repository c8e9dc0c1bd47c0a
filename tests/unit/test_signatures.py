"""Verification: parsing, strictness, timestamps and keys."""

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
    """Compile a scheme's table."""
    return compile_scheme(SchemeTable.model_validate(table), options)


def delivery(headers: dict[str, str], body: bytes = BODY, url: str = "https://x.example/hook") -> Request:
    """Make a POST."""
    return Request("POST", url, tuple(headers.items()), body)


def reason(
    scheme: Any, request: Request, *secrets: str, now: float = NOW, tolerance: int | None = None
) -> str | None:
    """Return the reason of a rejection, None if the request is accepted."""
    try:
        scheme.verify(secrets or ("key",), request, now, tolerance)
    except InvalidSignature as error:
        return error.reason
    return None


def signed(scheme: Any, secret: str = "key", **kwargs: Any) -> dict[str, str]:
    """Return the headers that sign BODY at NOW."""
    return signed_headers(scheme, secret, BODY, NOW, "evt_1", **kwargs)


def with_signature(table: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Return a table with a changed signature."""
    return {**table, "signature": {**table["signature"], **keys}}


def test_hex_counts_in_any_case() -> None:
    scheme = made(PLAIN)
    headers = signed(scheme)
    assert reason(scheme, delivery({"x-sIG": headers["X-Sig"].upper()})) is None


@pytest.mark.parametrize(
    "change", [lambda s: s[:-1], lambda s: f" {s}", lambda s: f"{s[:2]} {s[2:]}", lambda s: f"0x{s}"]
)
def test_hex_is_strict(change: Any) -> None:
    """Half a byte, blanks and prefixes are refused, so that a signature has one spelling but for case."""
    scheme = made(PLAIN)
    assert reason(scheme, delivery({"X-Sig": change(signed(scheme)["X-Sig"])})) == "malformed_signature"


@pytest.mark.parametrize(
    "change", [lambda s: s.rstrip("="), lambda s: f"{s}\n", lambda s: s.replace("=", "=="), lambda s: f"!{s}"]
)
def test_base64_is_canonical(change: Any) -> None:
    """Missing padding, stray characters and spare padding are refused."""
    scheme = made(with_signature(PLAIN, encoding="base64"))
    assert reason(scheme, delivery({"X-Sig": change(signed(scheme)["X-Sig"])})) == "malformed_signature"


def test_base64_with_spare_bits_is_refused() -> None:
    """The last character's unused bits are zero, or a signature would have several spellings."""
    scheme = made(with_signature(PLAIN, encoding="base64"))
    text = signed(scheme)["X-Sig"]
    assert text.endswith("=")
    following = chr(ord(text[-2]) + 1)
    assert reason(scheme, delivery({"X-Sig": text[:-2] + following + "="})) == "malformed_signature"


@pytest.mark.parametrize("padding", ["", "="])
def test_base64url_counts_with_and_without_padding(padding: str) -> None:
    """Both are in use."""
    scheme = made(with_signature(PLAIN, encoding="base64url"))
    assert reason(scheme, delivery({"X-Sig": signed(scheme)["X-Sig"] + padding})) is None


@pytest.mark.parametrize("change", [lambda s: s[:-1] + chr(ord(s[-1]) + 1), lambda s: s + "=="])
def test_base64url_is_canonical(change: Any) -> None:
    """Spare bits and too much padding are refused."""
    scheme = made(with_signature(PLAIN, encoding="base64url"))
    assert reason(scheme, delivery({"X-Sig": change(signed(scheme)["X-Sig"])})) == "malformed_signature"


def test_a_prefix_is_mandatory() -> None:
    """Without its `sha256=` a signature is malformed."""
    scheme = made(with_signature(PLAIN, prefix="sha256="))
    text = signed(scheme)["X-Sig"]
    assert reason(scheme, delivery({"X-Sig": text})) is None
    assert reason(scheme, delivery({"X-Sig": text.removeprefix("sha256=")})) == "malformed_signature"


def test_any_of_several_signatures_may_match() -> None:
    """A provider signs with both secrets during a rotation; wrong, unknown and broken entries are skipped."""
    scheme = made(TIMED)
    good = signed(scheme)["X-Sig"]
    noisy = f"=,,v1,v1=zz,v0=00,v1={'11' * 32},{good},v1={'00' * 32},v9==x="
    assert reason(scheme, delivery({"X-Sig": noisy})) is None


def test_a_pair_is_split_at_its_first_separator() -> None:
    """Base64 padding in a value is no separator."""
    scheme = made(with_signature(TIMED, encoding="base64"))
    assert signed(scheme)["X-Sig"].endswith("=")
    assert reason(scheme, delivery(signed(scheme))) is None


def test_a_header_without_the_known_version_is_malformed() -> None:
    scheme = made(TIMED)
    text = signed(scheme)["X-Sig"].replace("v1=", "v0=")
    assert reason(scheme, delivery({"X-Sig": text})) == "malformed_signature"


def test_a_huge_list_is_read_up_to_a_bound() -> None:
    """Entries after the first hundred are ignored."""
    scheme = made(TIMED)
    good = signed(scheme)["X-Sig"]
    junk = ",".join(["v1=00"] * 200_000)
    assert reason(scheme, delivery({"X-Sig": f"{good},{junk}"})) is None
    assert reason(scheme, delivery({"X-Sig": f"t={NOW:.0f},{junk},{good}"})) == "bad_signature"


def test_a_repeated_signature_header_is_refused() -> None:
    """A proxy and the receiver could each read another one."""
    scheme = made(PLAIN)
    pair = ("X-Sig", signed(scheme)["X-Sig"])
    assert reason(scheme, Request("POST", "https://x/", (pair, pair), BODY)) == "repeated_value"


@pytest.mark.parametrize(
    ("age", "expected"),
    [(0, None), (300, None), (301, "stale_timestamp"), (-300, None), (-301, "future_timestamp")],
)
def test_the_tolerance_is_inclusive(age: int, expected: str | None) -> None:
    """In both directions, as in Stripe's library."""
    scheme = made(TIMED)
    assert reason(scheme, delivery(signed(scheme)), now=NOW + age) == expected


def test_whole_seconds_are_compared_with_whole_seconds() -> None:
    """A delivery is accepted through the whole last second of its tolerance."""
    scheme = made(TIMED)
    assert reason(scheme, delivery(signed(scheme)), now=NOW + 300.9) is None


def test_a_sources_tolerance_replaces_the_schemes() -> None:
    """Wider or narrower."""
    scheme = made(TIMED)
    request = delivery(signed(scheme))
    assert reason(scheme, request, now=NOW + 400, tolerance=500) is None
    assert reason(scheme, request, now=NOW + 20, tolerance=10) == "stale_timestamp"


def test_a_refreshed_timestamp_breaks_the_signature() -> None:
    """The timestamp is signed."""
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
    """Seconds, milliseconds and ISO 8601 in the forms in use; other texts are malformed."""
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
    """Several secrets are valid during a rotation; an empty one is no key."""
    scheme = made(PLAIN)
    assert reason(scheme, delivery(signed(scheme)), *secrets) == expected


def test_without_secrets_everything_is_rejected() -> None:
    """Also a delivery signed with an empty key."""
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
    """Anybody could sign with an empty one."""
    digest = hashlib.sha256(BODY).hexdigest()
    empty = hmac.digest(b"", BODY, "sha256").hex()
    for text in (digest, empty, "Basic Og=="):
        assert reason(made(table), delivery({"X-Sig": text}), secret) in {"no_secret", "malformed_signature"}


def test_keys_are_read_by_their_encoding() -> None:
    """With or without prefix and padding, in either base64 alphabet, it is one key."""
    scheme = made({**PLAIN, "key": {"encoding": "base64", "strip_prefix": "whsec_"}})
    request = delivery(signed(scheme, secret="whsec_+/+/+/+/+w=="))
    assert reason(scheme, request, "-_-_-_-_-w") is None
    assert reason(scheme, request, "not base64 at all!") == "no_secret"


def test_url_and_method_can_be_signed() -> None:
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
    """Each placeholder is the part that its name says."""
    headers = signed(made({**PLAIN, "content": content}, app="app_1"), url=url)
    fixed = {**PLAIN, "content": "{json:expected}"}
    body = f'{{"expected":"{expected}"}}'.encode()
    assert reason(made(fixed), delivery(headers, body)) is None


def test_a_required_header_is_checked() -> None:
    """A delivery with another version of the signature is refused."""
    scheme = made({**PLAIN, "require": {"header:X-Version": "1"}})
    headers = signed(scheme)
    assert headers["X-Version"] == "1"
    assert reason(scheme, delivery({**headers, "X-Version": "2"})) == "unmet_requirement"


def test_a_token_is_compared_as_bytes() -> None:
    """Any characters may arrive."""
    scheme = made({"type": "token", "signature": {"in": "header:Authorization", "prefix": "Bearer "}})
    assert reason(scheme, delivery({"Authorization": "Bearer key"})) is None
    assert reason(scheme, delivery({"Authorization": "Bearer k\u00f6y"})) == "bad_signature"
    assert reason(scheme, delivery({"Authorization": "key"})) == "malformed_signature"
    assert reason(scheme, delivery({})) == "missing_signature"


def test_a_token_outside_ascii_matches() -> None:
    """It arrives as its UTF-8 bytes."""
    scheme = made({"type": "token", "signature": {"in": "header:X-Token"}})
    arrived = "schl\u00fcssel".encode().decode("latin-1")
    assert reason(scheme, delivery({"X-Token": arrived}), "schl\u00fcssel") is None


def test_a_basic_password_may_hold_colons() -> None:
    """Only the first colon separates; `Basic` is read in any case."""
    scheme = made({"type": "basic", "signature": {"in": "header:Authorization"}})
    headers = signed(scheme, secret="user:pa:ss")
    assert reason(scheme, delivery(headers), "user:pa:ss") is None
    lower = headers["Authorization"].replace("Basic", "basic")
    assert reason(scheme, delivery({"Authorization": lower}), "user:pa:ss") is None
    assert reason(scheme, delivery(headers), "user:pa") == "bad_signature"


def test_a_token_does_not_replace_a_wrong_signature() -> None:
    """Of alternatives, a token counts only if no signature was sent."""
    scheme = made(
        {"type": "any_of", "schemes": [PLAIN, {"type": "token", "signature": {"in": "header:X-Token"}}]}
    )
    assert reason(scheme, delivery({"X-Token": "key"})) is None
    assert reason(scheme, delivery({"X-Token": "key", "X-Sig": "00" * 32})) == "bad_signature"


def test_a_signature_can_be_in_the_body() -> None:
    """Signing adds it and leaves the rest and the headers unchanged."""
    scheme = made({**PLAIN, "content": "{json:id}", "signature": {"in": "json:sig", "encoding": "hex"}})
    request = scheme.sign("key", delivery({}), NOW, "evt_1")
    signature = hmac.digest(b"key", b"evt_1", "sha256").hex()
    assert (request.headers, request.payload.value) == ((), {**json.loads(BODY), "sig": signature})
    assert reason(scheme, request) is None


def test_rejections_quote_no_values() -> None:
    """They name places only."""
    scheme = made(PLAIN)
    with pytest.raises(InvalidSignature) as caught:
        scheme.verify(("s3cret",), delivery({"X-Sig": "hunter2"}), NOW, None)
    assert "hunter2" not in str(caught.value)
    assert "s3cret" not in str(caught.value)
