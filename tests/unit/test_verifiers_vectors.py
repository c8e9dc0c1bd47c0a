"""Test vectors of providers verified by code; skipped without their file."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from config.providers import load_providers
from config.sources import Source
from receiver.endpoints import VERIFIERS, Extractor
from receiver.signatures import InvalidSignature, Request
from receiver.verifiers.base import Verifier
from tests.services.checkout import CHECKOUT
from tests.services.issuing import FixedKeys, certificate

FILE = CHECKOUT.parent / "shared" / "providers" / "vectors.json"
NOW = 1_500_000_000.0
VECTORS = [
    vector
    for vector in (json.loads(FILE.read_text()) if FILE.exists() else [])
    if vector["provider"] in VERIFIERS and vector["kind"] == "signature"
]


def held(pem: str, name: str) -> FixedKeys:
    """Return keys with a certificate of a vector's key, valid at NOW."""
    key = serialization.load_pem_public_key(pem.encode())
    return FixedKeys(certificate(key, name, since=datetime.fromtimestamp(NOW - 1, UTC)))


def made(vector: dict[str, Any]) -> tuple[Verifier, list[str]]:
    """Return a verifier with the vector's key in place of the fetched one, and its secrets."""
    name, secret = vector["provider"], vector["secret"]
    options: dict[str, str] = {}
    keys, secrets = FixedKeys(None), [secret] if isinstance(secret, str) else secret
    if name == "aws-sns":
        options = {"topic_arn": "arn:aws:sns:us-west-2:123456789012:MyTopic"}
        keys, secrets = held(secret, "sns.amazonaws.com"), []
    elif name == "paypal":
        webhook, _, pem = secret.partition("\n")
        options = {"webhook_id": webhook}
        keys, secrets = held(pem, "messageverificationcerts.paypal.com"), []
    elif name == "plaid":
        options = {"client_id": "client", "environment": "production"}
        keys = FixedKeys(json.dumps({"key": json.loads(secret)["keys"][0]}).encode())
        secrets = ["secret"]
    return VERIFIERS[name](options, keys), secrets


@pytest.mark.skipif(not VECTORS, reason="the collection of vectors is not beside this checkout")
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_a_vector_is_accepted_or_rejected(vector: dict[str, Any]) -> None:
    """As it says."""
    verifier, secrets = made(vector)
    url = vector.get("url") or "https://hooks.example.com/webhooks/a"
    body = vector["body"].encode()
    request = Request(vector["method"], url, tuple(vector["headers"].items()), body)
    try:
        verifier.verify(secrets, request, vector.get("now") or NOW, None)
        verified = True
    except InvalidSignature:
        verified = False
    assert verified == vector["valid"], vector.get("reason")


@pytest.mark.skipif(not VECTORS, reason="the collection of vectors is not beside this checkout")
@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS if "event_type" in vector.get("expect", {})],
    ids=lambda vector: vector["id"],
)
def test_a_vector_has_its_id_and_type(vector: dict[str, Any]) -> None:
    """A type of two parts is joined with a dot."""
    source = Source(vector["provider"], load_providers()[vector["provider"]], ())
    url = "https://hooks.example.com/webhooks/a"
    request = Request(vector["method"], url, tuple(vector["headers"].items()), vector["body"].encode())
    (item,) = Extractor(source).items(request)
    assert item.type == vector["expect"]["event_type"].replace("/", ".")
    assert item.event_id == vector["expect"].get("event_id", item.event_id)
    assert item.problem is None
