"""How deeply documents may be nested, and the readers and writers that keep to it.

Python gives up on deep documents at depths that differ by version, platform and the stack in use. The bound
is therefore ours and is checked before anything recurses: code that walks a parsed document needs no guard of
its own.
"""

import json
import re
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

# Arrays and objects inside each other; `[]` is one level. Webhooks have fewer than 20. pydantic's JSON
# reader stops just above 200, and a walk of two frames a level stays far from Python's limit of 1,000.
MAX_DEPTH = 200

_TOML_TEXT = re.compile(
    # Strings of each kind, closed or not, and comments. Possessive, so that no bytes take quadratic time.
    r'"""(?:[^"\\]++|\\.|"(?!""))*+(?:"{3,5})?'
    r"|'''(?:[^']++|'(?!''))*+(?:'{3,5})?"
    r'|"(?:[^"\\\n]++|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|#[^\n]*+",
    re.DOTALL,
)
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_OTHERS = bytes(set(range(256)) - _STEPS.keys())


class NestedTooDeeplyError(ValueError):
    """A document is nested more deeply than MAX_DEPTH."""

    def __init__(self) -> None:
        super().__init__(f"nested too deeply (more than {MAX_DEPTH} levels)")


def load_json(text: str | bytes, decode: Callable[[str], Any] = json.loads) -> Any:
    """Parse JSON of at most MAX_DEPTH levels; raise ValueError, NestedTooDeeplyError for more.

    Bytes are UTF-8, UTF-16 or UTF-32, as `json.loads` takes them.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    if _may_be_deep(text):
        # Once escaped quotes are gone, every second part between quotes is outside of strings.
        parts = text.replace("\\\\", "").replace('\\"', "").split('"')
        _check_brackets("".join(parts[::2]))
    return decode(text)


def dump_json(value: Any, **options: Any) -> str:
    """Write JSON of at most MAX_DEPTH levels, as `json.dumps` does; raise NestedTooDeeplyError for more."""
    check_depth(value)
    return json.dumps(value, **options)


def check_toml(text: str) -> None:
    """Raise NestedTooDeeplyError for TOML whose arrays and inline tables are nested beyond MAX_DEPTH."""
    if _may_be_deep(text):
        _check_brackets(_TOML_TEXT.sub("", text))


def check_depth(value: Any) -> None:
    """Raise NestedTooDeeplyError for dicts, lists and tuples nested beyond MAX_DEPTH, or in a cycle."""
    level = _containers([value])
    for _ in range(MAX_DEPTH):
        if not level:
            return
        # By identity, or a shared child would be visited once for each path to it.
        level = {
            place: child
            for parent in level.values()
            for place, child in _containers(parent.values() if isinstance(parent, dict) else parent).items()
        }
    if level:
        raise NestedTooDeeplyError


def _containers(members: Iterable[Any]) -> dict[int, Any]:
    return {id(member): member for member in members if isinstance(member, dict | list | tuple)}


def _may_be_deep(text: str) -> bool:
    return text.count("[") + text.count("{") > MAX_DEPTH


def _check_brackets(outside_strings: str) -> None:
    brackets = outside_strings.encode("utf-8", "surrogatepass").translate(None, _OTHERS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise NestedTooDeeplyError
