"""Properties of verification: for any bytes it accepts or raises InvalidSignature, in bounded work."""

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.providers import Provider, SchemeTable
from receiver.signatures import InvalidSignature, Request, compile_scheme
from tests.services.presets import DECLARED, compiled, make_keys, over, signing_places, with_values

HEX_SIGNATURE = {"in": "header:X-Sig", "encoding": "hex"}
SIGNED = {"type": "hmac", "hash": "sha256", "content": "{body}", "signature": HEX_SIGNATURE}
BASE64 = {"in": "header:X-Sig", "encoding": "base64"}
TABLES: list[dict[str, Any]] = [
    SIGNED,
    {
        **SIGNED,
        "content": "{json:a.0}{form:a}{query:a}",
        "signature": {**HEX_SIGNATURE, "in": "json:sig|form:sig"},
    },
    {**SIGNED, "content": "{method}{url}{url_no_query}{path_query}{body_sha256_hex}{header:X-Id}"},
    {**SIGNED, "signature": {**HEX_SIGNATURE, "in": "header:X-Sig||header:X-Other", "list_sep": "[, ]+"}},
    {
        **SIGNED,
        "content": "{timestamp}{body}",
        "timestamp": {"in": "json:t|header:X-Time", "unit": "iso8601", "tolerance": 60},
    },
    {
        **SIGNED,
        "content": "{timestamp}{body}",
        "nonce_field": "t",
        "signature": {**HEX_SIGNATURE, "list_sep": ",", "pair_sep": "=", "field": "s"},
    },
    {**SIGNED, "type": "hash", "content": "{secret}{body}"},
    {"type": "token", "signature": {"in": "json:token|query:token"}},
    {"type": "basic", "signature": {"in": "header:X-Sig"}},
    {**SIGNED, "type": "ed25519", "hash": None, "signature": BASE64, "key": {"encoding": "ed25519-hex"}},
    {**SIGNED, "type": "ecdsa", "signature": BASE64, "key": {"encoding": "spki-base64"}},
    {**SIGNED, "type": "rsa", "signature": BASE64, "key": {"encoding": "pem"}},
    {"type": "any_of", "schemes": [SIGNED, {"type": "token", "signature": {"in": "header:X-Token"}}]},
]
SCHEMES = [
    *(
        compile_scheme(SchemeTable.model_validate({k: v for k, v in t.items() if v is not None}))
        for t in TABLES
    ),
    *(compiled(provider.name) for provider in DECLARED),
]
OWN_NAMES = ["X-Sig", "X-Other", "X-Time", "X-Token", "X-Id", "Content-Type"]
VALUES = st.one_of(
    st.text(st.characters(max_codepoint=255)),
    st.text("0123456789abcdefv=,.;:+/- \t%", max_size=80),
    st.sampled_from(
        [
            "t=1,v1=00",
            "v1,AAAA",
            "sha256=00",
            "v0=00",
            "application/x-www-form-urlencoded",
            "1700000000",
            "0" * 64,
        ]
    ),
)
HEADERS = st.lists(st.tuples(st.sampled_from(OWN_NAMES) | st.text(), VALUES), max_size=8)
BODIES = st.binary() | st.sampled_from(
    [b'{"a":["x"],"sig":"00","t":1}', b"a=1&sig=00", b"[" * 100_000, b"9" * 9_999]
)
URLS = st.text() | st.sampled_from(
    ["https://x/?a=1&token=x", "https://[bad/?a", "//", "?#", "http://x/?" + "a&" * 2_000]
)
SECRETS = st.lists(st.text() | st.sampled_from(["00" * 32, "AAAA", "-----BEGIN", "\udc80"]), max_size=3)


HEADERS_ALONE = [
    provider.name
    for provider in DECLARED
    if provider.required_scheme.type in {"hmac", "hash", "token", "any_of"}
    and all(place.kind == "header" for place in signing_places(provider.required_scheme))
]
REQUESTS = st.builds(Request, st.text(), URLS, HEADERS.map(tuple), BODIES)


@settings(max_examples=100)
@given(REQUESTS, SECRETS, st.floats(allow_nan=False, allow_infinity=False))
@example(Request("POST", "https://x/", (("X-Sig", "0" * 64),), b""), ["key"], 0.0)
@example(Request("POST", "https://x/", (("X-Sig", "0" * 64),), b""), ["\ud800", ""], 0.0)
@example(Request("\ud800", "\ud800", (("X-Sig", "\ud800"),), b"\xff"), ["\ud800"], -1e308)
def test_verification_raises_only_invalid_signature(
    request_: Request, secrets: list[str], now: float
) -> None:
    """For any headers, body, URL and secrets."""
    for scheme in SCHEMES:
        with suppress(InvalidSignature):
            scheme.verify(secrets, request_, now, None)


@over(DECLARED)
@settings(max_examples=8)
@given(st.data())
def test_any_values_at_a_providers_own_places(provider: Provider, data: st.DataObject) -> None:
    """So that each step of its scheme runs."""
    request = data.draw(REQUESTS)
    for place in signing_places(provider.required_scheme):
        if place.kind == "header":
            request = with_values(request, place, data.draw(st.lists(VALUES, min_size=1, max_size=2)))
    with suppress(InvalidSignature):
        compiled(provider.name).verify(data.draw(SECRETS), request, 1.7e9, None)


@given(
    st.binary(), st.text(st.characters(max_codepoint=255, exclude_characters="\0"), min_size=1, max_size=40)
)
def test_any_body_and_id_verify_once_signed(body: bytes, event_id: str) -> None:
    """For all schemes that sign in headers alone."""
    for name in HEADERS_ALONE:
        scheme = compiled(name)
        request = scheme.sign("AAAA", Request("POST", "https://x/", (), body), 1e9, event_id)
        scheme.verify(("AAAA",), request, 1e9, None)


CALLS_MAX = 250
"""Upper bound on function calls of one verification; the longest takes 146, most take fewer than 100."""
HMACS = [provider for provider in DECLARED if provider.required_scheme.type == "hmac"]


@over(HMACS)
def test_verification_work_does_not_grow_with_the_body(provider: Provider) -> None:
    """100 kB take as many function calls as 1 kB, and no more than CALLS_MAX."""
    scheme, (secret, _) = compiled(provider.name), make_keys(provider)

    def calls_for(size: int) -> int:
        body = b'{"data":"' + b"x" * size + b'"}'
        unsigned = Request("POST", "https://x/", (), body)
        signed = scheme.sign(secret, unsigned, 1e9, "evt_1")

        def run() -> None:
            # A new request each time, because a request caches what it has decoded.
            scheme.verify((secret,), Request("POST", signed.url, signed.headers, signed.body), 1e9, None)

        return _calls(run)

    assert calls_for(100_000) <= calls_for(1_000) <= CALLS_MAX


def _calls(run: Callable[[], object]) -> int:
    """Return how many functions `run` calls, in Python and C: the least of three runs."""
    # Finalizers may run in between and add calls.
    counted = []
    for _ in range(3):
        events: list[str] = []
        sys.setprofile(lambda _frame, event, _arg, events=events: events.append(event))  # type: ignore[misc]
        try:
            run()
        finally:
            sys.setprofile(None)
        counted.append(events.count("call") + events.count("c_call"))
    return min(counted)
