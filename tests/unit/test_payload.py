"""`parse_payload`."""

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
    """With any content type."""
    assert parse_payload(json.dumps(value).encode(), None) == value


def test_a_byte_order_mark_is_skipped() -> None:
    """Some senders write one."""
    assert parse_payload(b'\xef\xbb\xbf{"id":1}', "application/json") == {"id": 1}


def test_the_last_of_equal_keys_counts() -> None:
    """As in nearly every parser."""
    assert parse_payload(b'{"id":"a","id":"b"}', None) == {"id": "b"}


@pytest.mark.parametrize("content_type", [FORM, FORM.upper(), f"{FORM}; charset=utf-8"])
def test_a_form_is_a_dict(content_type: str) -> None:
    """Blank fields stay, repeated fields become lists, parameters of the content type are ignored."""
    assert parse_payload(b"a=1&b=&c=x%20y&c=z", content_type) == {"a": "1", "b": "", "c": ["x y", "z"]}


def test_json_in_a_forms_payload_field_is_the_payload() -> None:
    """GitHub and Slack send forms like this."""
    assert parse_payload(b"payload=%7B%22action%22%3A%22opened%22%7D", FORM) == {"action": "opened"}


def test_a_payload_field_that_is_no_json_is_a_field() -> None:
    """A form may use the name for something else."""
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
def test_an_unreadable_body_is_one_error(body: bytes, reason: str) -> None:
    """Its message quotes nothing of the body."""
    with pytest.raises(UnreadablePayloadError, match=reason) as caught:
        parse_payload(body, "application/json")
    assert "s3cr3t" not in str(caught.value)


def test_a_form_of_too_many_fields_is_refused() -> None:
    """The bound itself is allowed."""
    fields = b"&".join([b"a=1"] * MAX_FORM_FIELDS)
    assert len(parse_payload(fields, FORM)["a"]) == MAX_FORM_FIELDS
    with pytest.raises(UnreadablePayloadError, match="more than 10000 fields"):
        parse_payload(fields + b"&a=1", FORM)


@given(st.binary(), st.sampled_from([None, FORM, "application/json", "\x00", "text/plain"]))
def test_any_bytes_parse_or_are_unreadable(body: bytes, content_type: str | None) -> None:
    """No other error is raised."""
    with suppress(UnreadablePayloadError):
        parse_payload(body, content_type)
