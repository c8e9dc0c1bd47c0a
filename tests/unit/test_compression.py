"""Compressed deliveries: what is unpacked, and what is left as it came."""

import gzip

import pytest

from config.providers import load_providers
from config.sources import Source
from receiver.endpoints import build_endpoints, unpacked
from receiver.signatures import InvalidSignature, Request

BODY = b'{"id":"a","type":"message.created"}'


def sent(body: bytes, encoding: str = "gzip") -> Request:
    """Make a POST with a content encoding."""
    return Request("POST", "https://x.example/", (("Content-Encoding", encoding),), body)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (sent(gzip.compress(BODY)), BODY),
        (sent(gzip.compress(BODY), " GZIP "), BODY),
        (sent(gzip.compress(b"")), b""),
        (sent(gzip.compress(b"x" * 100)), b"x" * 100),
    ],
)
def test_a_gzipped_body_is_unpacked(request_: Request, expected: bytes) -> None:
    """Up to the limit, whatever the case of the encoding's name."""
    assert unpacked(request_, 100).body == expected


@pytest.mark.parametrize(
    "request_",
    [
        sent(gzip.compress(b"x" * 101)),
        sent(gzip.compress(b"0" * 10_000_000)),
        sent(gzip.compress(BODY)[:-4]),
        sent(gzip.compress(BODY) + b"more"),
        sent(BODY),
        sent(b""),
        sent(gzip.compress(BODY), "identity"),
        Request("POST", "https://x.example/", (), gzip.compress(BODY)),
    ],
)
def test_what_does_not_unpack_is_left(request_: Request) -> None:
    """A bomb, a part, a body with something behind it, and what is not compressed stay as they came."""
    assert unpacked(request_, 100) is request_


def test_the_compressed_bytes_are_verified() -> None:
    """Nylas signs what it sends; the event is what was packed, and its body is kept unpacked."""
    endpoint = build_endpoints({"a": Source("a", load_providers()["nylas"], ("key",))})["a"]
    signed = endpoint.scheme.sign("key", sent(gzip.compress(BODY)), 0, "")
    endpoint.verify(signed, 0)
    (delivery,) = endpoint.extract(signed, None)
    assert (delivery.event_id, delivery.type, delivery.body) == ("a", "message.created", BODY)
    with pytest.raises(InvalidSignature):
        endpoint.verify(unpacked(signed, 100), 0)
