"""Keys and credential marks: HMACs that tell their parts apart and nothing about the secret."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.calls.outbound import credential_marks, make_key

SECRET = b"secret"
PARTS = ("stripe", "evt_1", 0, "letter", 0)
names = st.text(st.characters(exclude_categories=()), max_size=6)
parts = st.tuples(names, names, st.integers(0, 99), names, st.integers(0, 9))


def test_a_key_is_what_it_was() -> None:
    """The key of these parts never changes: a restored ledger must find it again."""
    assert make_key(SECRET, PARTS) == "7227f4a6-c0c6-46c8-9a00-7b75a5b6ea44"


@given(parts=parts)
def test_a_key_is_shaped_like_a_random_uuid(parts: tuple[str, str, int, str, int]) -> None:
    """36 characters, version 4, whatever the names hold."""
    key = make_key(SECRET, parts)
    assert (len(key), str(UUID(key)), UUID(key).version) == (36, key, 4)


@given(one=parts, other=parts)
def test_other_parts_are_another_key(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    """Two calls share a key only if all their parts are the same."""
    assert (make_key(SECRET, one) == make_key(SECRET, other)) == (one == other)


@pytest.mark.parametrize(
    "other",
    [
        ("stripeevt_1", "", 0, "letter", 0),
        ("stripe", "evt_", 10, "letter", 0),
        ("stripe", "evt_1", 1, "letter", 0),
        ("stripe", "evt_1", 0, "letter", 1),
        ("stripe", "evt_1", 0, "letter0", 0),
    ],
)
def test_neighbouring_parts_do_not_run_together(other: tuple[str | int, ...]) -> None:
    """Where one part ends and the next begins counts."""
    assert make_key(SECRET, PARTS) != make_key(SECRET, other)


def test_another_secret_is_another_key() -> None:
    """Without the secret nobody can say a key."""
    assert make_key(SECRET, PARTS) != make_key(b"another", PARTS)


def test_a_credential_has_a_mark_under_each_secret() -> None:
    """The current one first; API and credential make it; the credential itself is not in it."""
    marks = credential_marks([SECRET, b"old"], "shop", "token")
    assert [len(bytes.fromhex(mark)) for mark in marks] == [32, 32]
    assert credential_marks([b"old"], "shop", "token") == marks[1:]
    assert credential_marks([SECRET], "other", "token")[0] != marks[0]
    assert credential_marks([SECRET], "shop", "token2")[0] != marks[0]


def test_a_mark_is_no_key() -> None:
    """A credential's mark and a call's key of the same words share nothing."""
    assert make_key(SECRET, ("shop", "token"))[:8] != credential_marks([SECRET], "shop", "token")[0][:8]
