"""What a text column can hold: no U+0000, no lone surrogate, no more characters than it has room for."""

import base64
import hashlib
import secrets
import time
from datetime import datetime
from uuid import UUID

TEXT_MAX = 255
"""Characters of a source, id, type, address or content type."""


def plain(text: str) -> str:
    """Return a text that both databases store: what they cannot hold becomes a visible escape."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def clipped(text: str | None) -> str | None:
    """Return a text that fits its column, cut at the end."""
    return None if text is None else plain(text)[:TEXT_MAX]


def storable_id(event_id: str) -> str:
    """Return an id as it is, or its SHA-256 where it cannot be stored: cutting it would join two events."""
    if len(event_id) <= TEXT_MAX and plain(event_id) == event_id:
        return event_id
    return "sha256:" + hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()


def readable(body: bytes) -> dict[str, str]:
    """Return bytes for JSON, as `{encoding, body}`: as text where they are UTF-8, else in base64."""
    try:
        return {"encoding": "utf-8", "body": body.decode()}
    except UnicodeDecodeError:
        return {"encoding": "base64", "body": base64.b64encode(body).decode()}


# Row ids that sort by the time they were made.


def uuid7(now_ms: int | None = None, random_bits: int | None = None) -> UUID:
    """Make a UUID version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    noise = secrets.randbits(74) if random_bits is None else random_bits
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62
    return UUID(int=value | noise & (1 << 62) - 1)


# Reading the ledger: which events there are. The command line, /v1 and the dashboard all ask here.


def rfc3339(at: datetime | None) -> str | None:
    """Write a time as RFC 3339 in UTC, with a Z."""
    return None if at is None else at.isoformat().replace("+00:00", "Z")
