"""Row ids, storable texts, digests and times."""

import subprocess
import sys
import time
from datetime import UTC, datetime
from uuid import RFC_4122

from hypothesis import example, given
from hypothesis import strategies as st

from receiver.ledger.text import TEXT_MAX, clipped, digest, plain, rfc3339, storable, uuid7
from tests.services.checkout import CHECKOUT

TIMES = st.integers(0, 2**48 - 1)
NOISE = st.integers(0, 2**74 - 1)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=600)


@given(TIMES, NOISE)
def test_a_row_id_is_a_version_7_uuid_with_its_time_in_front(milliseconds: int, noise: int) -> None:
    """RFC 9562, section 5.7: 48 bits of milliseconds, version, 12 bits, variant, 62 bits."""
    made = uuid7(milliseconds, noise)
    assert (made.version, made.variant) == (7, RFC_4122)
    assert made.int >> 80 == milliseconds
    assert ((made.int >> 64 & 0xFFF) << 62 | made.int & (1 << 62) - 1) == noise, "random bits were lost"


@given(TIMES, TIMES, NOISE, NOISE)
def test_row_ids_sort_by_time(first_at: int, second_at: int, noise: int, more: int) -> None:
    """As numbers and as text, whatever the random bits."""
    early, late = sorted((first_at, second_at))
    if early < late:
        first, second = uuid7(early, noise), uuid7(late, more)
        assert (first < second, str(first) < str(second)) == (True, True)


def test_row_ids_come_from_the_clock_and_differ() -> None:
    before = time.time_ns() // 1_000_000
    made = {uuid7() for _ in range(1000)}
    after = time.time_ns() // 1_000_000
    assert len(made) == 1000
    assert all(before <= row_id.int >> 80 <= after for row_id in made)


def test_row_ids_of_one_millisecond_keep_their_order() -> None:
    """A millisecond holds thousands of ids; each sorts behind the one before, however fast they are made."""
    made = []
    for _ in range(2000):
        made.append(uuid7())
        begun = time.time_ns()
        # The fraction has steps of 244 ns.
        while time.time_ns() - begun < 300:
            pass
    assert made == sorted(made)


def test_the_example_of_the_rfc() -> None:
    """RFC 9562, appendix A.6."""
    noise = 0xCC3 << 62 | 0x18C4DC0C0C07398F
    assert str(uuid7(0x017F22E279B0, noise)) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(ANY_TEXT)
def test_any_text_becomes_storable(text: str) -> None:
    """Without U+0000 and lone surrogates; a text that has none stays as it is."""
    made = plain(text)
    made.encode()
    assert "\x00" not in made
    if "\x00" not in text and not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        assert made == text


@given(ANY_TEXT, ANY_TEXT)
@example("x" * TEXT_MAX + "1", "x" * TEXT_MAX + "2")
@example("\x00", "\\x00")
def test_different_ids_stay_different(first: str, second: str) -> None:
    """Each fits its column."""
    made = storable(first)
    made.encode()
    assert len(made) <= TEXT_MAX
    assert "\x00" not in made
    assert (made == storable(second)) == (first == second)


def test_an_id_is_kept_as_it_is_up_to_the_columns_length() -> None:
    """255 characters stay; a longer id becomes its hash."""
    assert storable("é" * TEXT_MAX) == "é" * TEXT_MAX
    assert storable("a" * (TEXT_MAX + 1)).startswith("sha256:")


def test_a_long_text_is_cut_and_none_stays_none() -> None:
    """Types, addresses and content types are cut at the column's length."""
    assert clipped("x" * 300) == "x" * TEXT_MAX
    assert clipped("\x00" * 300) == ("\\x00" * 300)[:TEXT_MAX]
    assert clipped(None) is None


@given(st.lists(st.binary(max_size=20), max_size=4), st.lists(st.binary(max_size=20), max_size=4))
@example([b""], [b"", b""])
@example([b"ab"], [b"a", b"b"])
@example([b"", b"ab"], [b"ab", b""])
def test_digests_keep_parts_apart(first: list[bytes], second: list[bytes]) -> None:
    """Only equal lists of parts have equal digests: `a, bc` is not `ab, c`."""
    assert (digest(first) == digest(second)) == (first == second)


def test_times_are_rfc3339_in_utc() -> None:
    """With the fraction that there is, or without."""
    at = datetime(2026, 5, 6, 7, 8, 9, 10, tzinfo=UTC)
    assert rfc3339(at) == "2026-05-06T07:08:09.000010Z"
    assert rfc3339(at.replace(microsecond=0)) == "2026-05-06T07:08:09Z"
    assert rfc3339(at, "seconds") == "2026-05-06T07:08:09Z"
    assert rfc3339(None) is None


FORK = """
import os
from receiver.ledger.text import random_hex
child = os.fork()
print(random_hex(), flush=True)
if child:
    os.waitpid(child, 0)
"""


def test_a_fork_makes_ids_of_its_own() -> None:
    """A forked process does not repeat the ids that its parent makes."""
    ran = subprocess.run([sys.executable, "-c", FORK], cwd=CHECKOUT, capture_output=True, check=True)
    assert len(set(ran.stdout.split())) == 2
