"""Signatures of deliveries: pure, compiled once, and closed: verified or InvalidSignature, for all bytes."""

from collections.abc import Sequence

from receiver.signatures.errors import REASONS, CannotVerify, InvalidSignature
from receiver.signatures.request import CannotSign, Request
from receiver.signatures.schemes import Scheme, compile_scheme

__all__ = [
    "REASONS",
    "CannotSign",
    "CannotVerify",
    "InvalidSignature",
    "Request",
    "Scheme",
    "compile_scheme",
    "sign",
    "sign_request",
    "verify",
]

LOCAL_URL = "http://localhost:8000/webhooks/source"


def verify(
    scheme: Scheme, secrets: Sequence[str], request: Request, now: float, tolerance: int | None = None
) -> None:
    """Return when any secret fits; raise InvalidSignature, and nothing else, otherwise.

    `now` is Unix time in seconds; `tolerance`, in seconds, replaces the scheme's own.
    """
    if not secrets:
        raise InvalidSignature("no_secret")
    scheme.verify(secrets, request, now, tolerance)


def sign_request(scheme: Scheme, secret: str, request: Request, *, now: float, event_id: str) -> Request:
    """Sign a request as the provider would; some schemes put their values into the body or the URL.

    For public-key schemes the secret is the private key. Raise CannotSign or ValueError with a sentence.
    """
    return scheme.sign(secret, request, now, event_id)


def sign(
    scheme: Scheme,
    secret: str,
    *,
    body: bytes,
    now: float,
    event_id: str,
    method: str = "POST",
    url: str = LOCAL_URL,
) -> dict[str, str]:
    """Return the headers that sign a body as it is; raise CannotSign where headers alone cannot."""
    signed = sign_request(scheme, secret, Request(method, url, (), body), now=now, event_id=event_id)
    if signed.body != body or signed.url != url:
        raise CannotSign("this scheme puts its values into the body or the URL, not only into headers")
    return dict(signed.headers)
