"""Redaction of a source's paths, and of their values wherever they occur again."""

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
def test_paths_are_parsed(text: str, steps: tuple[str, ...]) -> None:
    """Keys after dots; `*` or `[*]` for each member or element."""
    assert parse_json_path(text).steps == steps


@pytest.mark.parametrize(
    "text", ["", "$", "data.email", "$data", "$.", "$..email", "$.a[0]", "$.a b", "$.a."]
)
def test_wrong_paths_are_refused(text: str) -> None:
    """A path that silently matches nothing would hide nothing."""
    with pytest.raises(ValueError, match="is not a path"):
        parse_json_path(text)


def test_values_at_the_paths_are_hidden() -> None:
    """The rest of the payload stays as it is."""
    shown = redactor("$.data.email", "$.lines[*].name").payload(PAYLOAD)
    assert shown["data"] == {"email": HIDDEN, "age": 36, "ok": True}
    assert shown["lines"] == [{"name": HIDDEN, "qty": 1}, {"name": HIDDEN, "qty": 2}]
    assert PAYLOAD["data"]["email"] == "ada@example.com", "the payload itself is changed"


def test_a_path_to_an_object_hides_all_of_it() -> None:
    """And each text in it wherever it occurs again."""
    redaction = redactor("$.lines")
    assert redaction.payload(PAYLOAD)["lines"] == HIDDEN
    assert redaction.blank("Grace Hopper ordered") == f"{HIDDEN} ordered"


def test_hidden_values_are_blanked_wherever_they_occur() -> None:
    """In reasons, tracebacks and outbound requests; the longest value first."""
    payload = {"a": "ada", "b": "ada@example.com"}
    redaction = redactor("$.a", "$.b", payload=payload)
    blanked = redaction.blank(
        {"reason": "no such user: ada@example.com", "calls": [{"step": "mail ada"}], "n": 1}
    )
    assert blanked == {"reason": f"no such user: {HIDDEN}", "calls": [{"step": f"mail {HIDDEN}"}], "n": 1}


def test_short_values_are_hidden_in_place_only() -> None:
    """Two characters are part of many other words."""
    redaction = redactor("$.data.age")
    assert redaction.payload(PAYLOAD)["data"]["age"] == HIDDEN
    assert redaction.blank("36 of 136") == "36 of 136"


def test_without_paths_nothing_changes() -> None:
    """A body keeps its exact bytes."""
    assert redactor().payload(PAYLOAD) == PAYLOAD
    assert shown_body((), b"\xff exact", None) == b"\xff exact"


def test_a_body_that_cannot_be_searched_is_not_shown() -> None:
    """Its paths cannot be found."""
    paths = [parse_json_path("$.email")]
    assert shown_body(paths, b"email=ada", "text/plain") == HIDDEN.encode()
    assert not Redactor(paths, b"email=ada", "text/plain").readable


def test_a_form_is_searched_too() -> None:
    """Its fields are members."""
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
    """Escaped as in JSON, quoted as in Python's errors, encoded as in URLs."""
    redaction = redactor("$.a", payload={"a": value})
    assert redaction.blank({"url": f"/who/{written}"}) == {"url": f"/who/{HIDDEN}"}


def test_ids_states_and_times_are_not_blanked() -> None:
    """Even if a hidden value is also a state, a year or part of an id."""
    redaction = redactor("$.a", "$.b", payload={"a": "2026", "b": "done"})
    story = {
        "id": "2026-done",
        "state": "done",
        "received_at": "2026-01-01T00:00:00Z",
        "reason": "2026 done",
    }
    assert redaction.blank(story) == story | {"reason": f"{HIDDEN} {HIDDEN}"}
    assert redaction.data({"state": "done"}) == {"state": HIDDEN}, (
        "a payload's own member is no state of ours"
    )


def test_a_body_that_is_nested_too_deeply_is_not_shown() -> None:
    body = b'{"a": ' + b"[" * MAX_DEPTH + b"1" + b"]" * MAX_DEPTH + b"}"
    assert shown_body([parse_json_path("$.b")], body, "application/json") == HIDDEN.encode()


def test_a_lone_surrogate_is_written_as_its_escape() -> None:
    """JSON may contain one; UTF-8 cannot."""
    assert shown_body([parse_json_path("$.a")], rb'{"b": "\ud800"}', None) == rb'{"b": "\ud800"}'
