"""The smaller tables of a provider: places of values, durations, time, handshake."""

from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

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


def _check_when(table: Mapping[str, str]) -> Mapping[str, str]:
    _check_places(tuple(table))
    return table


Places = Annotated[tuple[StrictStr, ...], BeforeValidator(_as_list), AfterValidator(_check_places)]
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


class HandshakeTable(Table):
    """A request that proves the endpoint is ours: recognised by `when`, answered with its challenge.

    `signed` ones are answered only after their signature verified. `answer` is `text` (the challenge itself),
    `json:<key>` (an object with the challenge under that key) or `empty`.
    """

    method: Literal["GET", "POST", "HEAD", "OPTIONS"]
    signed: StrictBool
    when: Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_check_when)]
    challenge: StrictStr | None = None
    answer: Annotated[StrictStr, Field(pattern=r"^(text|empty|json:\w+)$")]
    status: Annotated[StrictInt, Field(ge=200, le=299)] = 200

    @model_validator(mode="after")
    def _challenged(self) -> Self:
        if (self.answer == "empty") != (self.challenge is None):
            raise ValueError("answer needs a challenge to repeat, unless it is 'empty'")
        if self.challenge is not None:
            parse_locators(self.challenge, VALUE_KINDS)
        return self
