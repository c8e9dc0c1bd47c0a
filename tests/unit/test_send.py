"""`firstseen send`: samples signed as their provider signs, and read back by the endpoint."""

import json
from dataclasses import replace
from typing import Any

import pytest

from config.providers import PUBLIC_KEY, Provider, generate_secret, load_providers
from config.sources import SOURCES, Source, load_sources
from firstseen.send import Sample, sample
from receiver.endpoints import Extractor, build_endpoints
from receiver.handshakes import Handshakes
from receiver.ledger.intake import Delivery
from receiver.signatures import CannotSign, Request, compile_scheme
from receiver.verifiers.base import OwnVerifier
from tests.services.presets import DECLARED, make_keys, options, over

NOW = 1_800_000_000.25
PROVIDERS = load_providers()


def _sources() -> dict[str, Source]:
    bare = load_sources(SOURCES, PROVIDERS, {})
    environ = {
        name: generate_secret(source.provider) for source in bare.values() for name in source.secret_names
    }
    return dict(load_sources(SOURCES, PROVIDERS, environ))


ALL = _sources()
each = pytest.mark.parametrize("source", ALL.values(), ids=lambda source: source.name)


def received(source: Source, sent: Sample) -> Delivery:
    """Verify a sample as the endpoint would, and return its only event."""
    request = Request(sent.method, sent.url, tuple(sent.headers.items()), sent.body)
    compile_scheme(source.scheme, source.options).verify(source.secrets, request, NOW, source.tolerance)
    (item,) = Extractor(source).items(request)
    assert item.problem is None
    return item


@each
def test_a_sample_verifies_under_a_new_id(source: Source) -> None:
    """Each sample is another event."""
    first, second = (sample(source, type=None, event_id=None, now=NOW) for _ in range(2))
    assert received(source, first).event_id == first.event_id != second.event_id


@each
def test_id_and_type_can_be_chosen(source: Source) -> None:
    """Also a type without a sample."""
    sent = sample(source, type="ping", event_id="id-1", now=NOW)
    item = received(source, sent)
    assert (item.event_id, item.type, sent.event_id) == ("id-1", "ping", "id-1")


@pytest.mark.parametrize(
    ("name", "type_", "path", "value"),
    [
        ("stripe", "invoice.paid", ("data", "object", "customer_name"), "Jenny Rosen"),
        ("github", "pull_request.opened", ("pull_request", "state"), "open"),
        ("shopify", "orders/create", ("customer", "last_name"), "Smith"),
        ("slack", "message", ("event", "text"), "Hello, world"),
        ("standard", "invoice.paid", ("data", "customer_name"), "Jenny Rosen"),
    ],
)
def test_the_usual_sample(name: str, type_: str, path: tuple[str, ...], value: str) -> None:
    """Without a type, a sample is the provider's usual event, with the data that a first handler reads."""
    sent = sample(ALL[name], type=None, event_id=None, now=NOW)
    found: Any = json.loads(sent.body)
    for step in path:
        found = found[step]
    assert (received(ALL[name], sent).type, found) == (type_, value)


@each
def test_a_files_bytes_are_signed_as_they_are(source: Source) -> None:
    """Byte for byte; the response names the file's id."""
    body = b'{ "id": "f1", "event_id": "f1", "type": "a.b", "event": {"type": "a.b"} }\n'
    sent = sample(source, type=None, event_id=None, now=NOW, file=body)
    assert sent.body == body
    assert received(source, sent).event_id == sent.event_id


def test_a_file_that_would_have_to_change_is_refused() -> None:
    """An id inside a body cannot be set without changing the file's bytes."""
    with pytest.raises(CannotSign, match="would have to change"):
        sample(ALL["stripe"], type=None, event_id="f2", now=NOW, file=b'{"id":"f1"}')


def test_a_file_that_is_no_json_can_be_sent() -> None:
    """To see it parked."""
    sent = sample(ALL["stripe"], type=None, event_id=None, now=NOW, file=b"\xff\x00")
    assert sent.event_id.startswith("sha256:")


def test_without_a_secret_nothing_is_signed() -> None:
    """The error names the missing variable."""
    source = load_sources(SOURCES, PROVIDERS, {})["stripe"]
    with pytest.raises(CannotSign, match="STRIPE_WEBHOOK_SECRETS is not set"):
        sample(source, type=None, event_id=None, now=NOW)


def test_the_repr_of_a_sample_shows_no_secret() -> None:
    """And no signature."""
    sent = sample(ALL["github"], type=None, event_id=None, now=NOW)
    assert ALL["github"].secrets[0] not in f"{sent!r}{dict(sent.headers)}"


def source_of(provider: Provider) -> tuple[Source, str]:
    """Make a source of a preset, and the private key that signs for it, if there is one."""
    secret, signing = make_keys(provider)
    source = Source(provider.name, provider, (secret,), options=options(provider))
    return source, signing if provider.required_scheme.type in PUBLIC_KEY else ""


every = over(DECLARED)


@every
def test_every_preset_has_a_sample(provider: Provider) -> None:
    """It verifies, is one event with an id and a type, and is not taken for a handshake."""
    source, key = source_of(provider)
    sent = sample(source, type=None, event_id=None, now=NOW, key=key)
    item = received(source, sent)
    assert item.event_id == sent.event_id or provider.policy == "none"
    assert (item.type == "unknown") == (not provider.event_type)
    assert (item.created_at is None) == (provider.created_at is None)
    assert item.created_at is None or abs(item.created_at.timestamp() - NOW) < 1
    request = Request(sent.method, sent.url, tuple(sent.headers.items()), sent.body)
    shakes = Handshakes(replace(source, handshake=True, verify_tokens=("t",)))
    assert shakes.before_verifying(request) is shakes.after_verifying(request) is None


@every
def test_every_preset_with_ids_takes_the_chosen_id(provider: Provider) -> None:
    """The others refuse it."""
    source, key = source_of(provider)
    if not provider.event_id:
        with pytest.raises(CannotSign, match="no ids of their own"):
            sample(source, type=None, event_id="id-1", now=NOW, key=key)
        return
    item = received(source, sample(source, type=None, event_id="id-1", now=NOW, key=key))
    assert "id-1" in item.event_id


def test_signing_with_a_public_key_scheme_needs_the_private_key() -> None:
    """The error says how to give it."""
    source, _ = source_of(PROVIDERS["discord"])
    with pytest.raises(CannotSign, match="name the private key's file with --key"):
        sample(source, type=None, event_id=None, now=NOW)
    with pytest.raises(CannotSign, match="not a private ed25519 key"):
        sample(source, type=None, event_id=None, now=NOW, key="00")


@pytest.mark.parametrize("name", ["twilio", "mandrill", "adyen", "strava"])
def test_code_signs_where_the_secret_is_shared(name: str) -> None:
    """The verifier of the sample signs it; no scheme is needed."""
    provider = PROVIDERS[name]
    source = Source(name, provider, ("ab" * 16,) if provider.needs_secret else ())
    made = sample(source, type=None, event_id=None, now=NOW, url=f"https://hooks.example.com/webhooks/{name}")
    endpoint = build_endpoints({name: source})[name]
    request = Request("POST", made.url, tuple(made.headers.items()), made.body)
    endpoint.verify(request, NOW)
    assert [item.event_id for item in endpoint.extractor.items(request)] == [made.event_id]


def test_a_verifier_of_your_own_signs_nothing() -> None:
    """The error is about the user's function, not about a provider's key."""
    verifier = OwnVerifier("my_webhooks:acme", lambda _request, _secrets, _now: None)
    with pytest.raises(CannotSign, match="my_webhooks:acme is code of your own"):
        verifier.sign("s", Request("POST", "https://x/", (), b""), NOW, "e1")


def test_code_without_a_shared_secret_signs_nothing() -> None:
    """Only the provider has the key."""
    source = Source("a", PROVIDERS["aws-sns"], (), options={"topic_arn": "arn"})
    with pytest.raises(CannotSign, match="a key that only it has"):
        sample(source, type=None, event_id=None, now=NOW)
