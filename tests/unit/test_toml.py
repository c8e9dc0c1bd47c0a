"""`config.toml`: durations as people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.toml import in_words, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("90s", 90), ("10min", 600), ("1.5h", 5400), ("30d", 2_592_000), (" 1 h ", 3600)],
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    """Blanks around and between them are allowed."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "30", "d", "30x", "-1d", "1d2h", "1e3s", "1m", "30 days", ".5h"])
def test_other_texts_are_refused(text: str) -> None:
    """The error gives an example of a valid duration."""
    with pytest.raises(ValueError, match="is not a duration; write a number with ms, s, min, h or d"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["9" * 20 + "d", "9" * 400 + "s"])
def test_a_duration_too_long_for_timedelta_is_refused(text: str) -> None:
    """A ValueError, not an OverflowError."""
    with pytest.raises(ValueError, match="longer than a duration can be"):
        parse_duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        assert parse_duration(text) >= timedelta(0)
    except ValueError as error:
        assert "duration" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(days=30), "30d"),
        (timedelta(hours=36), "36h"),
        (timedelta(minutes=90), "90min"),
        (timedelta(seconds=90), "90s"),
        (timedelta(seconds=0.25), "0.25s"),
    ],
)
def test_error_messages_write_durations_as_files_do(span: timedelta, text: str) -> None:
    assert in_words(span) == text
