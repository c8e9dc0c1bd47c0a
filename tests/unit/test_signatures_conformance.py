"""What every entry of the catalogue must do, by its own scheme; a new entry inherits all of it."""

from dataclasses import replace

import pytest

from config.catalogue import load_providers
from config.locators import Locators, parse_locators
from config.providers import Provider
from config.schemes import PUBLIC_KEY
from config.secrets import generate_secret
from receiver.signatures import InvalidSignature, Request, compile_scheme, sign_request, verify

NOW = 1_700_000_000.0
BODY = b'{"id":"evt_1","type":"invoice.paid","data":{"amount":1999}}'
SIGNING = [
    provider
    for provider in load_providers().values()
    if provider.scheme and provider.scheme.type not in PUBLIC_KEY
]
TIMED = [provider for provider in SIGNING if provider.required_scheme.has_tolerable_time]

each = pytest.mark.parametrize("provider", SIGNING, ids=lambda provider: provider.name)
each_timed = pytest.mark.parametrize("provider", TIMED, ids=lambda provider: provider.name)


class Case:
    """One provider with a secret of its shape and a delivery signed with it."""

    def __init__(self, provider: Provider) -> None:
        self.scheme = compile_scheme(provider.required_scheme)
        self.secret = generate_secret(provider)
        headers = (("Content-Type", "application/json"),)
        unsigned = Request("POST", "https://receiver.example/webhooks/x?a=1", headers, BODY)
        self.request = sign_request(self.scheme, self.secret, unsigned, now=NOW, event_id="evt_1")

    def reason(self, request: Request, *secrets: str, now: float = NOW) -> str | None:
        """Say why a delivery is refused, None when it is not."""
        try:
            verify(self.scheme, secrets or (self.secret,), request, now)
        except InvalidSignature as error:
            return error.reason
        return None

    def with_header(self, name: str, *values: str) -> Request:
        """Return the delivery with a header's values replaced."""
        others = tuple(pair for pair in self.request.headers if pair[0].lower() != name.lower())
        return replace(self.request, headers=(*others, *((name, value) for value in values)))


def header_names(provider: Provider) -> list[str]:
    """Name the headers that this scheme's signature, time and id stand in."""
    scheme = provider.required_scheme
    places: list[Locators] = [table.places for table in (scheme.signature, scheme.timestamp) if table]
    if scheme.id:
        places.append(parse_locators(scheme.id))
    return [where.places[0].name for where in places if where.places[0].kind == "header"]


@each
def test_what_it_signs_verifies(provider: Provider) -> None:
    """What an entry's scheme signs is accepted, also when another secret stands before the right one."""
    case = Case(provider)
    assert case.reason(case.request) is None
    assert case.reason(case.request, generate_secret(provider), case.secret) is None


@each
def test_a_flipped_bit_of_the_body_is_refused(provider: Provider) -> None:
    """Each single bit of the body counts."""
    case = Case(provider)
    for position in range(len(BODY)):
        body = bytearray(case.request.body)
        body[position] ^= 1 << (position % 8)
        assert case.reason(replace(case.request, body=bytes(body))) == "bad_signature"


@each
def test_a_lost_or_longer_body_is_refused(provider: Provider) -> None:
    """Raw bytes are signed: a missing body and a newline at its end are other bytes."""
    case = Case(provider)
    for body in (b"", case.request.body + b"\n", b"\xef\xbb\xbf" + case.request.body):
        assert case.reason(replace(case.request, body=body)) == "bad_signature"


@each
def test_a_flipped_bit_of_any_signing_header_is_refused(provider: Provider) -> None:
    """Each character of signature, timestamp and signed id counts."""
    case = Case(provider)
    for name in header_names(provider):
        text = case.request.header(name) or ""
        for position, character in enumerate(text):
            flipped = chr(ord(character) ^ 1)
            if flipped.lower() == character.lower():
                continue
            changed = text[:position] + flipped + text[position + 1 :]
            assert case.reason(case.with_header(name, changed)) is not None, (name, position)


@each
def test_a_flipped_bit_of_the_secret_is_refused(provider: Provider) -> None:
    """Another secret, however close, is another secret."""
    case = Case(provider)
    middle = len(case.secret) // 2
    close = case.secret[:middle] + ("A" if case.secret[middle] != "A" else "B") + case.secret[middle + 1 :]
    assert case.reason(case.request, close) in {"bad_signature", "no_secret"}


@each
@pytest.mark.parametrize(
    "garbage", ["", " ", "=", ",", "t=,v1=", "v1", "\x00", "\u00ff" * 100, "v1," * 999, "sha256="]
)
def test_missing_empty_repeated_and_garbage_headers_are_refused(provider: Provider, garbage: str) -> None:
    """Whatever stands in a signing header but its one right value is a rejection."""
    case = Case(provider)
    for name in header_names(provider):
        text = case.request.header(name) or ""
        assert case.reason(case.with_header(name)) is not None
        assert case.reason(case.with_header(name, garbage)) is not None
        assert case.reason(case.with_header(name, text, text)) == "repeated_value"


@each_timed
def test_stale_and_future_deliveries_are_refused(provider: Provider) -> None:
    """The tolerance counts in both directions, its last second included."""
    case = Case(provider)
    table = provider.required_scheme.timestamp
    assert table is not None
    assert table.tolerance is not None
    for sign in (1, -1):
        assert case.reason(case.request, now=NOW + sign * table.tolerance) is None
    assert case.reason(case.request, now=NOW + table.tolerance + 1) == "stale_timestamp"
    assert case.reason(case.request, now=NOW - table.tolerance - 1) == "future_timestamp"


def test_the_presets_of_this_release_are_covered() -> None:
    """The conformance of an empty catalogue would prove nothing."""
    assert {"standard-webhooks", "stripe", "github", "shopify", "slack"} <= {p.name for p in SIGNING}
    assert {"standard-webhooks", "stripe", "slack"} <= {p.name for p in TIMED}
