"""The command line's output, times and filters."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firstseen.console import TimeParam, filter_of, moment, plural, visible, visible_lines
from receiver.ledger.filter import EventFilter
from receiver.ledger.states import State


def test_a_duration_is_counted_back_from_now() -> None:
    """`2h` is two hours ago."""
    before = datetime.now(UTC)
    found = TimeParam().convert("2h", None, None)
    assert before <= found + timedelta(hours=2) <= datetime.now(UTC)


@pytest.mark.parametrize(
    "text", ["2026-11-21T10:00:00Z", "2026-11-21T11:00:00+01:00", "2026-11-21 10:00:00.0Z"]
)
def test_an_rfc3339_time_is_read_with_its_offset(text: str) -> None:
    assert TimeParam().convert(text, None, None) == datetime(2026, 11, 21, 10, tzinfo=UTC)


@given(st.text())
def test_any_text_is_an_aware_time_or_a_bad_parameter(text: str) -> None:
    with suppress(click.BadParameter):
        assert TimeParam().convert(text, None, None).utcoffset() is not None


@pytest.mark.parametrize("text", ["2026-11-21T10:00:00", "2026-11-21", "99999999999999d", "-2h", "1e9d"])
def test_ambiguous_times_are_refused(text: str) -> None:
    """No offset, out of range, or in the future."""
    with pytest.raises(click.BadParameter):
        TimeParam().convert(text, None, None)


@given(st.text())
def test_only_printable_characters_are_printed(text: str) -> None:
    """A longer text is printed line by line."""
    assert visible(text).isprintable()
    assert all(line.isprintable() for line in visible_lines(text))


def test_numbers_times_and_empty_cells() -> None:
    """Nouns agree with their numbers, times have whole seconds, None is an empty cell."""
    assert (plural(1, "event"), plural(0, "event")) == ("1 event", "0 events")
    assert moment(datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=UTC)) == "2026-11-21T10:00:00Z"
    assert (moment(None), visible(None), visible(7)) == ("", "", "7")


def test_options_make_a_filter() -> None:
    """An option that was not given filters nothing."""
    nothing = {"by_source": None, "state": None, "event_type": None, "since": None, "until": None}
    assert filter_of(nothing) == EventFilter()
    assert filter_of(nothing | {"state": "dead"}) == EventFilter(state=State.DEAD)
