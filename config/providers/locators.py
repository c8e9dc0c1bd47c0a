"""Locators: where in a delivery a value stands, such as `header:X-Id`, `json:data.id` or `query:code`.

`a|b` reads the first that is there, `a||b` reads every one that is there. A key that holds a dot is written
with a backslash before it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

Kind = Literal["header", "json", "item", "query", "form", "sig"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# Where a value of one event can stand.
VALUE_KINDS: tuple[Kind, ...] = ("header", "json", "item", "query", "form")

HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`~-]+")
_DOT = re.compile(r"(?<!\\)\.")


@dataclass(frozen=True)
class Locator:
    """One place: `json` in the payload, `item` in one element of a batch, `sig` in the signature's header."""

    kind: Kind
    name: str

    @cached_property
    def path(self) -> tuple[str, ...]:
        """The steps from the top of the payload; empty means all of it."""
        return tuple(step.replace("\\.", ".") for step in _DOT.split(self.name)) if self.name else ()

    def same_place(self, other: "Locator") -> bool:
        """Compare; header names in any case."""
        if self.kind == other.kind == "header":
            return self.name.lower() == other.name.lower()
        return self == other

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


@dataclass(frozen=True)
class Locators:
    """Alternatives in the order in which they are tried; `several` reads all of them.

    An `optional` one is a part that may be missing.
    """

    places: tuple[Locator, ...]
    several: bool = False
    optional: bool = False

    def __str__(self) -> str:
        return ("||" if self.several else "|").join(map(str, self.places))


def parse_locator(text: str, kinds: Iterable[Kind] = KINDS, *, root: bool = False) -> Locator:
    """Read one `kind:name`; `root` allows `json:` alone. Raise ValueError with a sentence."""
    allowed = tuple(kinds)
    kind, separator, name = text.partition(":")
    if not separator or kind not in allowed:
        names = ", ".join(f"{kind}:" for kind in allowed)
        raise ValueError(f"{text!r} is not a place; it must begin with one of {names}")
    if not (name or (root and kind == "json")) or (kind == "header" and not HEADER_NAME.fullmatch(name)):
        raise ValueError(f"{text!r} names nothing; write {kind}: and a name after it")
    if kind in {"json", "item"} and name and "" in _DOT.split(name):
        raise ValueError(f"{text!r} has an empty step; write the keys with single dots between them")
    return Locator(next(known for known in allowed if known == kind), name)


def parse_locators(text: str, kinds: Iterable[Kind] = KINDS) -> Locators:
    """Read `a`, `a|b` or `a||b`; raise ValueError with a sentence."""
    several = "||" in text
    parts = text.split("||" if several else "|")
    allowed = tuple(kinds)
    return Locators(tuple(parse_locator(part.strip(), allowed) for part in parts), several)
