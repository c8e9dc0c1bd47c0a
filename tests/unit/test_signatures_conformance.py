"""Tests that every declared provider inherits, by its own scheme."""

import hmac
from dataclasses import replace
from functools import cache

import pytest

from config.providers import PUBLIC_KEY, Locator, Provider
from receiver.signatures import InvalidSignature, Request
from receiver.signatures.request import texts
from tests.services.presets import (
    BODY,
    DECLARED,
    URL,
    compiled,
    flips,
    make_keys,
    over,
    signing_places,
    with_values,
)

NOW = 1_700_000_000.0
GARBAGE = ("", " ", "=", ",", "t=,v1=", "v1", "\x00", "\u00ff" * 100, "v1," * 999, "sha256=", "Basic")
SHARED = [provider for provider in DECLARED if provider.required_scheme.type not in PUBLIC_KEY]
TIMED = [provider for provider in DECLARED if provider.has_tolerable_time]


each = over(DECLARED)


class Case:
    """A provider with keys of its format and a delivery signed with them."""

    def __init__(self, provider: Provider) -> None:
        self.scheme = compiled(provider.name)
        self.secret, self.signing = make_keys(provider)
        self.other, _ = make_keys(provider)
        unsigned = Request("POST", URL, (("Content-Type", "application/json"),), BODY)
        self.request = self.scheme.sign(self.signing, unsigned, NOW, "evt_1")
        self.places = signing_places(provider.required_scheme)

    def reason(self, request: Request, *secrets: str, now: float = NOW) -> str | None:
        """Return the reason of a rejection, None if the delivery is accepted."""
        try:
            self.scheme.verify(secrets or (self.secret,), request, now, None)
        except InvalidSignature as error:
            return error.reason
        return None

    def text(self, place: Locator) -> str:
        """Return the value at a place."""
        (text,) = texts(place, self.request)
        return text


@cache
def case_of(provider_name: str) -> Case:
    """Return a provider's case, made once for all tests."""
    return Case(next(provider for provider in DECLARED if provider.name == provider_name))


@each
def test_a_signed_delivery_verifies(provider: Provider) -> None:
    """Also with another secret before the right one."""
    case = case_of(provider.name)
    assert case.reason(case.request) is None
    assert case.reason(case.request, case.other, case.secret) is None


@each
def test_a_flipped_bit_of_the_body_is_refused(provider: Provider) -> None:
    """Any changed bit, and a cut, prefixed or extended body."""
    case = case_of(provider.name)
    scheme = provider.required_scheme
    if not (scheme.schemes[0] if scheme.schemes else scheme).signs_body:
        assert case.reason(replace(case.request, body=case.request.body.replace(b"1999", b"1998", 1))) is None
        return
    body = case.request.body
    for position in range(len(body)):
        changed = body[:position] + bytes([body[position] ^ 1 << position % 8]) + body[position + 1 :]
        assert case.reason(replace(case.request, body=changed)) is not None
    for changed in (b"", body + b"\n", b"\xef\xbb\xbf" + body):
        assert case.reason(replace(case.request, body=changed)) is not None


@each
def test_a_flipped_bit_of_any_signed_value_is_refused(provider: Provider) -> None:
    """Each character of signature, timestamp, signed id and other signed values."""
    case = case_of(provider.name)
    assert case.places
    for place in case.places:
        for position, changed in flips(case.text(place)):
            request = with_values(case.request, place, [changed])
            assert case.reason(request) is not None, (str(place), position)


@over(SHARED)
def test_a_similar_secret_is_refused(provider: Provider) -> None:
    case = case_of(provider.name)
    middle = len(case.secret) // 2
    # Hex keys ignore case, so a change of case alone would be no change.
    other = "B" if case.secret[middle] in "Aa" else "A"
    close = case.secret[:middle] + other + case.secret[middle + 1 :]
    assert case.reason(case.request, close) in {"bad_signature", "no_secret"}


@each
def test_another_key_is_refused(provider: Provider) -> None:
    """A key of the same format, and a text that is no key."""
    case = case_of(provider.name)
    assert case.reason(case.request, case.other) == "bad_signature"
    assert case.reason(case.request, "\ud800", "") in {"bad_signature", "no_secret"}


@each
def test_missing_empty_repeated_and_garbage_values_are_refused(provider: Provider) -> None:
    """At every place that the scheme reads."""
    case = case_of(provider.name)
    for place in case.places:
        text = case.text(place)
        assert case.reason(with_values(case.request, place, [])) is not None
        for garbage in GARBAGE:
            assert case.reason(with_values(case.request, place, [garbage])) is not None, (place, garbage)
        if place.kind in {"header", "query"}:
            assert case.reason(with_values(case.request, place, [text, text])) == "repeated_value"


@over(SHARED)
def test_secrets_are_compared_in_constant_time(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hmac.compare_digest` alone decides: when it returns False, the right signature is refused."""
    case = case_of(provider.name)
    monkeypatch.setattr(hmac, "compare_digest", lambda _, __: False)
    assert case.reason(case.request) == "bad_signature"


@over(TIMED)
def test_stale_and_future_deliveries_are_refused(provider: Provider) -> None:
    """The tolerance is inclusive in both directions."""
    case = case_of(provider.name)
    scheme = provider.required_scheme
    table = (scheme.schemes[0] if scheme.schemes else scheme).timestamp
    assert table is not None
    tolerance = table.tolerance
    if tolerance is None:  # signed, and without a limit of the provider's own: a source may set one
        case.scheme.verify((case.secret,), case.request, NOW + 60, 60)
        with pytest.raises(InvalidSignature, match="too long ago"):
            case.scheme.verify((case.secret,), case.request, NOW + 61, 60)
        return
    for sign in (1, -1):
        assert case.reason(case.request, now=NOW + sign * tolerance) is None
    assert case.reason(case.request, now=NOW + tolerance + 1) == "stale_timestamp"
    assert case.reason(case.request, now=NOW - tolerance - 1) == "future_timestamp"


def test_the_catalogue_is_not_empty() -> None:
    """These tests would prove nothing for an empty one."""
    assert len(DECLARED) >= 188
    assert {"standard-webhooks", "stripe", "slack", "linear", "discord", "box"} <= {p.name for p in TIMED}
