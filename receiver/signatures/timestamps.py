"""Timestamps of deliveries: seconds, milliseconds or ISO 8601, and how far from now they may be."""

import math
import re
from datetime import UTC, datetime

from receiver.signatures.errors import InvalidSignature

_NUMBER = re.compile(r"[0-9]{1,15}")

# Seen in use: nine digits of fraction, `Z`, an offset with or without its colon, and no zone at all.
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d*)?(?:([Zz])|([+-]\d\d):?(\d\d))?", re.ASCII
)


def parse_time(text: str, unit: str) -> float | None:
    """Read a time into Unix seconds, or None.

    An ISO time without a zone is UTC; its digits finer than microseconds are cut.
    """
    if unit == "iso8601":
        match = _ISO.fullmatch(text)
        if match is None:
            return None
        whole, fraction, _, hours, minutes = match.groups()
        micros, offset = (fraction or "").ljust(6, "0"), f"{hours}:{minutes}" if hours else "+00:00"
        try:
            return datetime.fromisoformat(f"{whole}.{micros}{offset}").astimezone(UTC).timestamp()
        except (ValueError, OverflowError):
            return None
    if not _NUMBER.fullmatch(text):
        return None
    return int(text) / 1_000 if unit == "ms" else float(text)


def format_time(now: float, unit: str) -> str:
    """Write Unix seconds as a provider does."""
    if unit == "iso8601":
        moment = datetime.fromtimestamp(now, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(int(now * 1_000) if unit == "ms" else int(now))


def check_age(text: str, unit: str, now: float, tolerance: int) -> None:
    """Raise InvalidSignature unless the time is within `tolerance` seconds of `now`, ends included."""
    signed = parse_time(text, unit)
    if signed is None:
        raise InvalidSignature("malformed_timestamp")
    # For providers that send whole seconds, whole seconds are compared, as their own libraries do.
    age = (math.floor(now) if unit == "s" else now) - signed
    if age > tolerance:
        raise InvalidSignature("stale_timestamp", f"{age:.0f} s ago, {tolerance} s are allowed", age=age)
    if -age > tolerance:
        raise InvalidSignature("future_timestamp", f"{-age:.0f} s ahead, {tolerance} s are allowed", age=age)
