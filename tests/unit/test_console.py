"""Parts of the command line that need nothing around them."""

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
    found = TimeParam().convert("2h", None, None)
    assert abs(datetime.now(UTC) - timedelta(hours=2) - found) < timedelta(seconds=5)


@pytest.mark.parametrize(
    "text", ["2026-11-21T10:00:00Z", "2026-11-21T11:00:00+01:00", "2026-11-21 10:00:00.0Z"]
)
def test_a_written_time_keeps_its_offset(text: str) -> None:
    """RFC 3339 in any of its spellings is the same moment."""
    assert TimeParam().convert(text, None, None) == datetime(2026, 11, 21, 10, tzinfo=UTC)


@given(st.text())
def test_any_other_text_is_misuse(text: str) -> None:
    """A text is an aware time or is refused as misuse; nothing else happens."""
    with suppress(click.BadParameter):
        assert TimeParam().convert(text, None, None).utcoffset() is not None


@pytest.mark.parametrize("text", ["2026-11-21T10:00:00", "2026-11-21", "99999999999999d", "-2h", "1e9d"])
def test_what_could_be_anybodys_time_is_refused(text: str) -> None:
    """No offset, out of range, or in the future."""
    with pytest.raises(click.BadParameter):
        TimeParam().convert(text, None, None)


@given(st.text())
def test_nothing_unprintable_is_printed(text: str) -> None:
    """A terminal gets printable characters only, and a longer text line by line."""
    assert visible(text).isprintable()
    assert all(line.isprintable() for line in visible_lines(text))


def test_words_for_people() -> None:
    """Numbers agree with their nouns, times lose their fractions, nothing is an empty cell."""
    assert (plural(1, "event"), plural(0, "event")) == ("1 event", "0 events")
    assert moment(datetime(2026, 11, 21, 10, 0, 0, 123456, tzinfo=UTC)) == "2026-11-21T10:00:00Z"
    assert (moment(None), visible(None), visible(7)) == ("", "", "7")


def test_options_make_a_filter() -> None:
    """What is not given stays open."""
    nothing = {"by_source": None, "state": None, "event_type": None, "since": None, "until": None}
    assert filter_of(nothing) == EventFilter()
    assert filter_of(nothing | {"state": "dead"}) == EventFilter(state=State.DEAD)
