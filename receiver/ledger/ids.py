"""Row ids that sort by the time they were made."""

import secrets
import time
from uuid import UUID


def uuid7(now_ms: int | None = None, random_bits: int | None = None) -> UUID:
    """Make a UUID version 7 (RFC 9562, section 5.7): 48 bits of Unix milliseconds, then 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    noise = secrets.randbits(74) if random_bits is None else random_bits
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 62) << 64 | 0b10 << 62
    return UUID(int=value | noise & (1 << 62) - 1)
