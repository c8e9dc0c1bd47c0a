"""What the ledger's columns hold, as text: storable ids, hashes, row ids and times.

No text column takes U+0000, a lone surrogate, or more characters than it has room for: `storable` and
`clipped` make any text fit. `hashed` and `digest` name bytes by their SHA-256, `uuid7` names rows,
`random_hex` requests; `rfc3339` writes times.
"""

import base64
import hashlib
import os
import random
import time
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, overload
from uuid import UUID

# Characters of a source, id, type, address or content type.
TEXT_MAX = 255

# Ids must be unique, not secret: RFC 9562 allows a seeded generator, and the system's own costs a call that
# gives the interpreter away. A fork would repeat its parent's ids, so it begins with a seed of its own.
_noise = random.Random(os.urandom(32))
os.register_at_fork(after_in_child=lambda: _noise.seed(os.urandom(32)))


def plain(text: str) -> str:
    """Return a text that both databases store: what they cannot hold becomes a visible escape."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()


def clipped(text: str | None) -> str | None:
    """Return a text that fits its column, cut at the end."""
    return None if text is None else plain(text)[:TEXT_MAX]


def storable(text: str) -> str:
    """Return an id or type as it is, or `sha256:<hex>` where no column holds it."""
    if len(text) <= TEXT_MAX and plain(text) == text:
        return text
    # Never cut: two ids that differ in their last characters would become one event.
    return hashed(text.encode("utf-8", "surrogatepass"))


def hashed(body: bytes) -> str:
    """Return the SHA-256 of bytes as an id: `sha256:<hex>`."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def digest(parts: Iterable[bytes]) -> str:
    """Return one SHA-256 over several parts, in hex: the form of every stored fingerprint and scope."""
    whole = hashlib.sha256()
    for part in parts:
        # Each part begins with its length, so that `a, bc` and `ab, c` differ.
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()


def readable(body: bytes) -> dict[str, str]:
    """Return bytes for JSON, as `{encoding, body}`: as text where they are UTF-8, else in base64."""
    try:
        return {"encoding": "utf-8", "body": body.decode()}
    except UnicodeDecodeError:
        return {"encoding": "base64", "body": base64.b64encode(body).decode()}


def uuid7(now_ms: int | None = None, random_bits: int | None = None) -> UUID:
    """Make a UUID version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits.

    Row ids are these, so they sort by the time they were made. Of the present time, 12 of the random bits are
    its fraction of a millisecond (section 6.2, method 3): two rows of one millisecond keep their order.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    noise = (nanoseconds << 12) // 1_000_000 << 62 | _noise.getrandbits(62)
    if now_ms is not None:
        milliseconds, noise = now_ms, _noise.getrandbits(74)
    if random_bits is not None:
        noise = random_bits
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62
    return UUID(int=value | noise & (1 << 62) - 1)


def random_hex() -> str:
    """Return 128 random bits in hex, for what needs an id but no order."""
    return f"{_noise.getrandbits(128):032x}"


@overload
def rfc3339(at: datetime, timespec: Literal["auto", "seconds"] = ...) -> str: ...
@overload
def rfc3339(at: datetime | None, timespec: Literal["auto", "seconds"] = ...) -> str | None: ...
def rfc3339(at: datetime | None, timespec: Literal["auto", "seconds"] = "auto") -> str | None:
    """Write a UTC time as RFC 3339 with a Z; None stays None. `seconds` leaves out their fraction."""
    return None if at is None else at.isoformat(timespec=timespec).replace("+00:00", "Z")
