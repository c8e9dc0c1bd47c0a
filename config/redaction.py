"""What a source's screens, logs and `/v1` leave out: places in its payload, `$.data.object.email`."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from config.tables import kind_of

EVERY: Final = "*"
_STEP = re.compile(r"\.([^.\[\]*\s]+|\*)|\[\*\]")


@dataclass(frozen=True)
class JsonPath:
    """One place, or many. `steps` lead from the top of the payload; `*` goes into every member or element."""

    steps: tuple[str, ...]

    def __str__(self) -> str:
        return "".join(["$", *(f".{step}" for step in self.steps)])


def parse_json_path(text: str) -> JsonPath:
    """Read `$.data.items[*].email` or `$.data.*.email`; raise ValueError with a sentence."""
    steps, place = [], 1
    while text.startswith("$") and (match := _STEP.match(text, place)):
        steps.append(match[1] or EVERY)
        place = match.end()
    if not steps or place != len(text):
        raise ValueError(
            f"{text!r} is not a path; write $ and the keys after dots, such as $.data.object.email,"
            " and [*] for every element of an array"
        )
    return JsonPath(tuple(steps))


def _read(value: Any) -> tuple[JsonPath, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"found {kind_of(value)}; it must be an array of paths such as $.data.object.email")  # noqa: TRY004 - pydantic makes sentences of ValueErrors alone
    return tuple(one if isinstance(one, JsonPath) else parse_json_path(str(one)) for one in value)


JsonPaths = Annotated[tuple[JsonPath, ...], BeforeValidator(_read)]
