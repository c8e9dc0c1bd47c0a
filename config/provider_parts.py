"""The smaller tables of a provider: places of values, durations, time."""

from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr

from config.durations import parse_duration
from config.locators import HEADER_NAME, Kind, Locators, parse_locator, parse_locators
from config.tables import Table, kind_of

LONGEST = timedelta(days=36_500)  # a longer one, taken from today, leaves the calendar
VALUE_KINDS: tuple[Kind, ...] = ("header", "json", "item", "query", "form")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _check_places(places: tuple[str, ...]) -> tuple[str, ...]:
    for place in places:
        parse_locators(place, VALUE_KINDS)
    return places


def _check_place(place: str) -> str:
    return _check_places((place,))[0]


def parse_part(text: str) -> Locators:
    """Read one part of an event's id; a `?` at its end leaves the part out where it is not there."""
    where = parse_locators(text.removesuffix("?"), VALUE_KINDS)
    return replace(where, optional=text.endswith("?"))


def _check_parts(parts: tuple[str, ...]) -> tuple[str, ...]:
    if parts and all(parse_part(part).optional for part in parts):
        raise ValueError("every part may be missing; at least one must be there always")
    return parts


def _check_header_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a header's name")
    return names


def _read_duration(value: Any) -> timedelta:
    if not isinstance(value, str):
        raise ValueError(f'found {kind_of(value)}; write a number with its unit in quotes, such as "30d"')  # noqa: TRY004 - pydantic turns only this one into a sentence
    span = parse_duration(value)
    if not timedelta(0) < span <= LONGEST:
        raise ValueError(f"{value!r} is out of range; it must be more than 0s and at most {LONGEST.days}d")
    return span


def check_batch(text: str) -> str:
    """Accept the place of a batch's array; ValueError otherwise."""
    parse_locator(text, ("json", "form"), root=True)
    return text


Places = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list), AfterValidator(_check_places)]
IdParts = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list), AfterValidator(_check_parts)]
HeaderNames = Annotated[tuple[StrictStr, ...], AfterValidator(_check_header_names)]
WrittenDuration = Annotated[timedelta, BeforeValidator(_read_duration)]


class TimeTable(Table):
    """Where the provider's own time of the event is."""

    at: Annotated[StrictStr, AfterValidator(_check_place)] = Field(alias="in")
    unit: Literal["s", "ms", "iso8601"]

    @cached_property
    def places(self) -> Locators:
        """The time's places."""
        return parse_locators(self.at, VALUE_KINDS)
