"""What came back of a send, as the rules read it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from config.dialects import Error
from config.nesting import load_json

RETRY_AFTER_MAX = timedelta(hours=24)
"""No API puts a call off for longer: keys are forgotten meanwhile."""

_SECONDS = re.compile(r"-?\d{1,12}(\.\d+)?", re.ASCII)


@dataclass(frozen=True)
class Answer:
    """A complete HTTP answer, its header names in lower case; `truncated` when its body is over the cap."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool = False

    def says(self, error: Error | None) -> bool:
        """Whether it is this error: its status, and its code as a whole word anywhere in the body.

        Anywhere, since the documents name codes and not the shape of what they stand in.
        """
        if error is None or self.status != error.status:
            return False
        code = re.escape(error.code.encode())
        return (
            not code or re.search(rb"(?<![A-Za-z0-9_])" + code + rb"(?![A-Za-z0-9_])", self.body) is not None
        )

    def flag(self, header: str | None) -> bool | None:
        """Read a header of `true` or `false`; None for another value, or without it."""
        value = self.headers.get(header.lower(), "") if header else ""
        return {"true": True, "false": False}.get(value.strip().lower())

    def boolean(self, name: str) -> bool | None:
        """Read a boolean at the top of the JSON body; None where there is none."""
        try:
            parsed = load_json(self.body)
        except ValueError:
            return None
        value = parsed.get(name) if isinstance(parsed, dict) else None
        return value if isinstance(value, bool) else None

    def retry_after(self, now: datetime) -> timedelta | None:
        """Read Retry-After, seconds or a date (RFC 9110, section 10.2.3), as 0 to 24 h; None without one."""
        text = self.headers.get("retry-after", "").strip()
        wait = timedelta(seconds=float(text)) if _SECONDS.fullmatch(text) else _until(text, now)
        return None if wait is None else min(max(wait, timedelta(0)), RETRY_AFTER_MAX)


def _until(text: str, now: datetime) -> timedelta | None:
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)) - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


@dataclass(frozen=True)
class Failure:
    """No answer. `written` is False when no byte had left: refused, DNS, TLS, no free connection.

    `error` is a short sentence without secrets.
    """

    error: str
    written: bool
