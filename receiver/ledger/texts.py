"""What a text column can hold: no U+0000, no lone surrogate, no more characters than it has room for."""

import base64
import hashlib

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
