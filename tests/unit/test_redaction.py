"""What a source leaves out: its paths, and where its values turn up again."""

import json
from typing import Any

import pytest

from config.nesting import MAX_DEPTH
from config.sources import parse_json_path
from receiver.redaction import HIDDEN, Redactor, shown_body

PAYLOAD: dict[str, Any] = {
    "data": {"email": "ada@example.com", "age": 36, "ok": True},
    "lines": [{"name": "Ada", "qty": 1}, {"name": "Grace Hopper", "qty": 2}],
}


def redactor(*paths: str, payload: Any = None) -> Redactor:
    """Return a redactor of a JSON payload."""
    body = json.dumps(PAYLOAD if payload is None else payload).encode()
    return Redactor([parse_json_path(path) for path in paths], body, "application/json")


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("$.data.object.email", ("data", "object", "email")),
        ("$.lines[*].name", ("lines", "*", "name")),
        ("$.data.*", ("data", "*")),
        ("$[*].email", ("*", "email")),
        ("$.a-b.c_d", ("a-b", "c_d")),
    ],
)
def test_a_path_is_read(text: str, steps: tuple[str, ...]) -> None:
    """Keys after dots; `*` or `[*]` for each member or element."""
    assert parse_json_path(text).steps == steps


@pytest.mark.parametrize(
    "text", ["", "$", "data.email", "$data", "$.", "$..email", "$.a[0]", "$.a b", "$.a."]
)
def test_what_is_no_path_is_refused(text: str) -> None:
    """A path that silently matches nothing would show what it should hide."""
    with pytest.raises(ValueError, match="is not a path"):
        parse_json_path(text)


def test_the_payload_is_shown_without_the_places() -> None:
    """The rest stays as it is."""
    shown = redactor("$.data.email", "$.lines[*].name").payload(PAYLOAD)
    assert shown["data"] == {"email": HIDDEN, "age": 36, "ok": True}
    assert shown["lines"] == [{"name": HIDDEN, "qty": 1}, {"name": HIDDEN, "qty": 2}]
    assert PAYLOAD["data"]["email"] == "ada@example.com", "the payload itself is changed"


def test_a_place_hides_all_that_is_below_it() -> None:
    """A whole object, and the texts in it wherever they turn up."""
    hides = redactor("$.lines")
    assert hides.payload(PAYLOAD)["lines"] == HIDDEN
    assert hides.blank("Grace Hopper ordered") == f"{HIDDEN} ordered"


def test_values_are_blanked_wherever_they_turn_up() -> None:
    """In reasons, tracebacks and what was sent elsewhere; the longest first."""
    payload = {"a": "ada", "b": "ada@example.com"}
    hides = redactor("$.a", "$.b", payload=payload)
    told = hides.blank({"reason": "no such user: ada@example.com", "calls": [{"step": "mail ada"}], "n": 1})
    assert told == {"reason": f"no such user: {HIDDEN}", "calls": [{"step": f"mail {HIDDEN}"}], "n": 1}


def test_short_values_are_hidden_in_place_only() -> None:
    """A value of two characters stands in every other word."""
    hides = redactor("$.data.age")
    assert hides.payload(PAYLOAD)["data"]["age"] == HIDDEN
    assert hides.blank("36 of 136") == "36 of 136"


def test_without_paths_nothing_changes() -> None:
    """Most sources have none, and a body stays exact."""
    assert redactor().payload(PAYLOAD) == PAYLOAD
    assert shown_body((), b"\xff exact", None) == b"\xff exact"


def test_a_body_that_cannot_be_searched_is_not_shown() -> None:
    """Nobody can say where its places are."""
    paths = [parse_json_path("$.email")]
    assert shown_body(paths, b"email=ada", "text/plain") == HIDDEN.encode()
    assert not Redactor(paths, b"email=ada", "text/plain").readable


def test_a_form_is_searched_too() -> None:
    """Its fields are a payload's members."""
    shown = shown_body(
        [parse_json_path("$.email")], b"email=ada%40b.c&x=1", "application/x-www-form-urlencoded"
    )
    assert json.loads(shown) == {"email": HIDDEN, "x": "1"}


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("Zo\u00eb", r"Zo\u00eb"),
        ("a/b c", r"a\/b c"),
        ('Ada "A" L', r"Ada \"A\" L"),
        ("ada@example.com", "ada%40example.com"),
        ("Ada Lovelace", "Ada+Lovelace"),
        ("Ada Lovelace", "Ada%20Lovelace"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_values_are_blanked_however_they_are_written(value: str, written: str) -> None:
    """As JSON escapes them, as Python's errors quote them, and as URLs hold them."""
    hides = redactor("$.a", payload={"a": value})
    assert hides.blank({"url": f"/who/{written}"}) == {"url": f"/who/{HIDDEN}"}


def test_what_the_ledger_writes_itself_stands() -> None:
    """A value that is also a state, a year or a piece of an id breaks none of them."""
    hides = redactor("$.a", "$.b", payload={"a": "2026", "b": "done"})
    told = {"id": "2026-done", "state": "done", "received_at": "2026-01-01T00:00:00Z", "reason": "2026 done"}
    assert hides.blank(told) == told | {"reason": f"{HIDDEN} {HIDDEN}"}
    assert hides.data({"state": "done"}) == {"state": HIDDEN}, "a payload's own member is no state of ours"


def test_a_body_that_is_nested_too_deeply_is_not_shown() -> None:
    """What is not read cannot be searched, and is hidden whole."""
    body = b'{"a": ' + b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH + b"}"
    assert shown_body([parse_json_path("$.b")], body, "application/json") == HIDDEN.encode()


def test_half_a_character_is_written_as_its_escape() -> None:
    """JSON may hold one; UTF-8 cannot."""
    assert shown_body([parse_json_path("$.a")], rb'{"b": "\ud800"}', None) == rb'{"b": "\ud800"}'
