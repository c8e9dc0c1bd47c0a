"""Parsing a delivery's payload."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from receiver.payload import FORM, MAX_FORM_FIELDS, UnreadablePayloadError, parse_payload

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON_VALUES)
def test_json_comes_back_as_it_was(value: object) -> None:
    """Every JSON value survives, whatever the content type says or does not say."""
    assert parse_payload(json.dumps(value).encode(), None) == value


def test_a_byte_order_mark_is_no_part_of_the_payload() -> None:
    """UTF-8 with a byte order mark parses; some senders write one."""
    assert parse_payload(b'\xef\xbb\xbf{"id":1}', "application/json") == {"id": 1}


def test_the_last_of_equal_keys_counts() -> None:
    """Duplicate keys have a defined answer, the one of nearly every parser."""
    assert parse_payload(b'{"id":"a","id":"b"}', None) == {"id": "b"}


@pytest.mark.parametrize("content_type", [FORM, FORM.upper(), f"{FORM}; charset=utf-8"])
def test_a_form_is_a_dict(content_type: str) -> None:
    """Blank fields stay, repeated fields become lists, and parameters of the content type do not matter."""
    assert parse_payload(b"a=1&b=&c=x%20y&c=z", content_type) == {"a": "1", "b": "", "c": ["x y", "z"]}


def test_json_in_a_forms_payload_is_the_payload() -> None:
    """GitHub's and Slack's forms hold their JSON in the field payload."""
    assert parse_payload(b"payload=%7B%22action%22%3A%22opened%22%7D", FORM) == {"action": "opened"}


def test_a_payload_field_that_is_no_json_is_a_field() -> None:
    """A form may have a field of that name for its own reasons."""
    assert parse_payload(b"payload=hello", FORM) == {"payload": "hello"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        ("{}".encode("utf-16"), "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"NaN", "does not have"),
        (b"9" * 10_000, "too long"),
        (b'{"secret": s3cr3t}', "at character 11"),
    ],
)
def test_an_unreadable_body_is_a_sentence(body: bytes, reason: str) -> None:
    """What cannot be parsed is one kind of error, whose sentence repeats nothing of the body."""
    with pytest.raises(UnreadablePayloadError, match=reason) as caught:
        parse_payload(body, "application/json")
    assert "s3cr3t" not in str(caught.value)


def test_a_form_of_too_many_fields_is_refused() -> None:
    """One more field than the bound is unreadable; the bound itself is not."""
    fields = b"&".join([b"a=1"] * MAX_FORM_FIELDS)
    assert len(parse_payload(fields, FORM)["a"]) == MAX_FORM_FIELDS
    with pytest.raises(UnreadablePayloadError, match="more than 10000 fields"):
        parse_payload(fields + b"&a=1", FORM)


@given(st.binary(), st.sampled_from([None, FORM, "application/json", "\x00", "text/plain"]))
def test_any_bytes_parse_or_are_unreadable(body: bytes, content_type: str | None) -> None:
    """No bytes raise anything but UnreadablePayloadError."""
    with suppress(UnreadablePayloadError):
        parse_payload(body, content_type)
