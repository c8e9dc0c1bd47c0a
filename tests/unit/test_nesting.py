"""The bound on nested documents: the same on every Python and at any stack depth."""

import json
import tomllib
from base64 import urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import pytest
from flask import Request
from hypothesis import given
from hypothesis import strategies as st

from config import nesting
from config.nesting import (
    MAX_DEPTH,
    NestedTooDeeplyError,
    check_depth,
    check_toml,
    dump_json,
    load_json,
)
from config.sources import parse_json_path
from receiver.dashboard.presentation import indented
from receiver.idempotency import Refusal
from receiver.redaction import HIDDEN, shown_body
from receiver.sandbox.storage import Desk
from receiver.signatures.errors import CannotVerify, InvalidSignature
from receiver.verifiers.crypto import key_id, parse_key
from worker.calls import client
from worker.calls.classify import top_level_boolean
from worker.calls.errors import CallRefused

FEW = 4
DOCUMENTS = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\a#'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\'), inner, max_size=4),
)


def array(levels: int) -> Any:
    """Return arrays nested this deep."""
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


def depth(value: Any) -> int:
    """Count levels as the bound does."""
    members = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, members), default=0) if isinstance(value, dict | list) else 0


def from_deep_stack(frames: int, act: Callable[[], Any]) -> Any:
    """Call a function with this many more frames on the stack."""
    return act() if frames == 0 else from_deep_stack(frames - 1, act)


@pytest.mark.parametrize(
    ("opening", "closing", "times"),
    [("[", "]", MAX_DEPTH), ('{"a":', "}", MAX_DEPTH), ('[{"a":', "}]", MAX_DEPTH // 2)],
)
def test_json_is_read_to_the_bound_and_refused_beyond(opening: str, closing: str, times: int) -> None:
    """At any stack depth of the caller."""

    def read(count: int) -> Any:
        return load_json(opening * count + "1" + closing * count)

    assert from_deep_stack(300, lambda: depth(read(times))) == MAX_DEPTH
    for beyond in (times + 1, 20_000):
        with pytest.raises(NestedTooDeeplyError, match="more than 200 levels"):
            read(beyond)


@given(DOCUMENTS, st.sampled_from([None, 1]), st.sampled_from(["utf-8", "utf-16", "utf-32"]))
def test_texts_and_values_have_the_same_depth(value: Any, indent: int | None, encoding: str) -> None:
    """Brackets in strings do not count, and every other one does."""
    text = json.dumps(value, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nesting, "MAX_DEPTH", FEW)
        for act in (
            lambda: load_json(text),
            lambda: load_json(text.encode(encoding)),
            lambda: dump_json(value),
            lambda: check_toml("\n".join(_toml_lines(value))),
        ):
            if depth(value) > FEW:
                with pytest.raises(NestedTooDeeplyError):
                    act()
            else:
                act()


def _toml_lines(value: Any) -> list[str]:
    """Write a value as TOML, after strings and comments that contain brackets."""
    noise = ["# [[[[[[", "a = '[[[['", 'b = """[\\"[[[["""""', "c = '''['[[[['''''", 'd = "\\"[[[[["']
    return [*noise, f"e = {_inline(value)}"]


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    return json.dumps(value if value is not None else "")


@given(DOCUMENTS)
def test_the_generated_toml_is_valid(value: Any) -> None:
    """Invalid lines would prove nothing above."""
    tomllib.loads("\n".join(_toml_lines(value)))


@pytest.mark.parametrize(
    "text", ["[" * 500_000, '"' + '\\"' * 500_000 + "[" * 201, '"\\' + "[" * 201, "]" * 999]
)
def test_broken_json_is_refused_at_once(text: str) -> None:
    """As a ValueError, in linear time."""
    with pytest.raises(ValueError, match=r"too deeply|Expecting|Unterminated|Invalid"):
        load_json(text)


def test_shared_values_are_checked_once() -> None:
    """Cycles are too deep."""
    shared: list[Any] = []
    for _ in range(MAX_DEPTH - 1):
        shared = [shared, shared]
    check_depth(shared)
    with pytest.raises(NestedTooDeeplyError):
        check_depth([shared])
    cycle: list[Any] = []
    cycle.extend([cycle, cycle])
    with pytest.raises(NestedTooDeeplyError):
        dump_json(cycle)


def test_the_deepest_payload_can_be_redacted_and_shown() -> None:
    """Code that walks a payload takes all that its reader accepts."""
    body = json.dumps({"a": "secret", "b": array(MAX_DEPTH - 1)}).encode()

    def show() -> None:
        shown = shown_body([parse_json_path("$.a")], body, None)
        assert json.loads(shown) == {"a": HIDDEN, "b": array(MAX_DEPTH - 1)}
        assert indented(load_json(shown), 10**6)[1]
        assert shown_body([parse_json_path("$.b")], body, None).startswith(b'{"a": "secret"')

    from_deep_stack(300, show)


DEEP = b'{"a":' * MAX_DEPTH + b"[]" + b"}" * MAX_DEPTH


def test_the_bound_holds_for_responses_tokens_and_keys() -> None:
    """A deeper one is refused like a broken one."""
    assert top_level_boolean(b'{"livemode": true}', "livemode") is True
    assert top_level_boolean(b'{"livemode": true, "x": ' + DEEP + b"}", "livemode") is None
    header = urlsafe_b64encode(b'{"alg": "ES256", "kid": "k", "x": ' + DEEP + b"}").decode().rstrip("=")
    with pytest.raises(InvalidSignature, match="no JSON Web Token"):
        key_id(f"{header}.e30.AA", "ES256")
    with pytest.raises(CannotVerify):
        parse_key(DEEP, "a")
    with pytest.raises(Refusal, match="not JSON"):
        Desk(None, Request.from_values(data=DEEP), api="celper", owner="", key=None).json()  # type: ignore[arg-type]


def test_the_bound_holds_for_a_handlers_values() -> None:
    """`calls.value` stores nothing that it could not read again."""
    assert client._value_json("step", array(MAX_DEPTH)) == json.dumps(array(MAX_DEPTH))
    with pytest.raises(CallRefused, match="'step' is not JSON: nested too deeply"):
        client._value_json("step", array(MAX_DEPTH + 1))
