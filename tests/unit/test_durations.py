"""Durations as people write them."""

from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.toml import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("90s", 90), ("10min", 600), ("1.5h", 5400), ("30d", 2_592_000), (" 1 h ", 3600)],
)
def test_reads_a_number_with_its_unit(text: str, seconds: float) -> None:
    """Every unit counts for what it says, with blanks around and between allowed."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "d", "30x", "-1d", "1d2h", "1e3s", "1m", "30 days", ".5h"])
def test_refuses_what_is_no_duration(text: str) -> None:
    """What has no unit, no number or another unit is refused with an example of a right one."""
    with pytest.raises(ValueError, match="is not a duration; write a number with ms, s, min, h or d"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 20 + "d", "9" * 400 + "s"])
def test_refuses_what_no_duration_can_hold(text: str) -> None:
    """A number beyond the longest duration is a sentence, not an overflow."""
    with pytest.raises(ValueError, match="longer than a duration can be"):
        parse_duration(text)


@given(st.text())
def test_never_raises_anything_else(text: str) -> None:
    """Any text is a duration or a ValueError."""
    with suppress(ValueError):
        assert parse_duration(text) >= timedelta(0)
