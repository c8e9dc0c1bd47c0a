"""Test vectors of declared providers, verified by the catalogue's entries; skipped without their file."""

import json
from typing import Any

import pytest

from config.providers import load_providers
from config.sources import Source
from receiver.endpoints import Endpoint, build_endpoints
from receiver.signatures import InvalidSignature, Request
from tests.services.checkout import CHECKOUT

FILE = CHECKOUT.parent / "shared" / "providers" / "vectors.json"
CATALOGUE = load_providers()


def vectors() -> list[Any]:
    """Return the vectors of providers that have a scheme."""
    if not FILE.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason="the shared vectors are not here"))]
    known = [vector for vector in json.loads(FILE.read_text(encoding="utf-8")) if _is_declared(vector)]
    return [pytest.param(vector, id=vector["id"]) for vector in known]


def _is_declared(vector: dict[str, Any]) -> bool:
    return vector["provider"] in CATALOGUE and CATALOGUE[vector["provider"]].scheme is not None


def received(vector: dict[str, Any]) -> tuple[Endpoint, Request]:
    """Return an endpoint with the vector's secrets, and its delivery."""
    provider = CATALOGUE[vector["provider"]]
    secrets = vector["secret"] if isinstance(vector["secret"], list) else [vector["secret"]]
    options = dict.fromkeys(provider.option_names, "given")
    source = Source("a", provider, tuple(secrets), options=options)
    headers = tuple(vector["headers"].items())
    request = Request(vector["method"], vector.get("url", "https://x/"), headers, vector["body"].encode())
    return build_endpoints({"a": source})["a"], request


@pytest.mark.parametrize("vector", vectors())
def test_a_vector_is_accepted_or_rejected(vector: dict[str, Any]) -> None:
    """As it says."""
    endpoint, request = received(vector)
    try:
        endpoint.verify(request, vector.get("now") or 0)
        accepted = True
    except InvalidSignature:
        accepted = False
    assert accepted == vector["valid"], vector.get("reason")


@pytest.mark.parametrize("vector", vectors())
def test_a_vector_has_its_id_type_and_challenge_response(vector: dict[str, Any]) -> None:
    """A type may be more exact than the vector's, as in `pull_request.opened`."""
    endpoint, request = received(vector)
    expected = vector.get("expect", {})
    found = endpoint.extractor.items(request)
    if "event_id" in expected:
        assert [item.event_id for item in found] == [expected["event_id"]]
    if "event_ids" in expected:
        assert [item.event_id for item in found] == expected["event_ids"]
    if "event_type" in expected:
        assert all(f"{item.type}.".startswith(f"{expected['event_type']}.") for item in found)
    if "challenge_response" in expected:
        answer = endpoint.handshakes.after_verifying(request)
        assert answer is not None
        assert answer.body.decode() == expected["challenge_response"]
