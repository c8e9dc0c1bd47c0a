"""Durations as people write them: `90s`, `10min`, `1h`, `30d`."""

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator

from config.tables import kind_of

LONGEST = timedelta(days=36_500)  # a longer one, taken from today, leaves the calendar
UNITS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86_400}
_SHAPE = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|min|h|d)")


def parse_duration(text: str) -> timedelta:
    """Read a number with a unit of ms, s, min, h or d; raise ValueError with a sentence otherwise."""
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write a number with ms, s, min, h or d, such as 30d")
    try:
        return timedelta(seconds=float(match[1]) * UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"{text!r} is longer than a duration can be") from None


def in_words(span: timedelta) -> str:
    """Write a duration as it is written in TOML: `30d`, `36h`, `90s`."""
    seconds = span.total_seconds()
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds:g}s"


def _coerce(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(_coerce)]


def _read_written(value: Any) -> timedelta:
    if not isinstance(value, str):
        raise ValueError(f'found {kind_of(value)}; write a number with its unit in quotes, such as "30d"')  # noqa: TRY004 - pydantic turns only this one into a sentence
    span = parse_duration(value)
    if not timedelta(0) < span <= LONGEST:
        raise ValueError(f"{value!r} is out of range; it must be more than 0s and at most {LONGEST.days}d")
    return span


WrittenDuration = Annotated[timedelta, BeforeValidator(_read_written)]
