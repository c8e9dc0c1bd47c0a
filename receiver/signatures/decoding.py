"""Strict decoders: text that is not exactly hex or canonical base64 is nothing.

A decoder that skips stray characters lets one signature be written in many ways.
"""

import binascii
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Mapping


def wire(text: str) -> bytes:
    """Return the bytes behind a header's latin-1 text; UTF-8 where a tool put other characters."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def from_hex(text: str) -> bytes | None:
    """Decode hex in any case, or None."""
    try:
        return binascii.unhexlify(text)
    except ValueError:  # binascii.Error, and str that is not ASCII
        return None


def from_base64(text: str) -> bytes | None:
    """Decode padded, canonical base64, or None."""
    try:
        raw = b64decode(text, validate=True)
    except ValueError:
        return None
    return raw if b64encode(raw).decode() == text else None


def from_base64url(text: str) -> bytes | None:
    """Decode canonical URL-safe base64, padded or not, or None."""
    bare = text.rstrip("=")
    try:
        raw = b64decode(bare + "=" * (-len(bare) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return None
    padded = urlsafe_b64encode(raw).decode()
    return raw if text in (padded, padded.rstrip("=")) else None


DECODERS: Mapping[str, Callable[[str], bytes | None]] = {
    "hex": from_hex,
    "base64": from_base64,
    "base64url": from_base64url,
}


def encode(raw: bytes, encoding: str) -> str:
    """Write a signature the way `DECODERS` read it."""
    if encoding == "hex":
        return raw.hex()
    return (urlsafe_b64encode(raw).rstrip(b"=") if encoding == "base64url" else b64encode(raw)).decode()
