"""The smaller tables of a scheme: the signature, the timestamp, the key."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StrictInt, StrictStr, model_validator

from config.locators import Locators, parse_locator, parse_locators
from config.tables import Table
from config.templates import parse_template


def _check_pattern(text: str) -> str:
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from None
    if pattern.match(""):
        raise ValueError(f"{text!r} matches nothing at all; write the characters between two signatures")
    return text


def check_places(text: str) -> str:
    """Accept a locator of a value that a delivery can carry; ValueError otherwise."""
    parse_locators(text, ("header", "json", "query", "form"))
    return text


def _check_timestamp_place(text: str) -> str:
    parse_locators(text, ("header", "json", "query", "form", "sig"))
    return text


def check_content(text: str) -> str:
    """Accept a template of signed bytes; ValueError otherwise."""
    parse_template(text)
    return text


def check_required(table: Mapping[str, str]) -> Mapping[str, str]:
    """Accept locators with the value that each must have; ValueError otherwise."""
    for place in table:
        parse_locator(place, ("header", "json", "query", "form"))
    return table


class SignatureTable(Table):
    """Where the signature stands and how it is written."""

    at: Annotated[StrictStr, AfterValidator(check_places)] = Field(alias="in")
    encoding: Literal["hex", "base64", "base64url"] | None = None
    prefix: StrictStr = ""
    list_sep: Annotated[StrictStr, AfterValidator(_check_pattern)] | None = None
    pair_sep: Annotated[StrictStr, Field(min_length=1)] | None = None
    field: Annotated[StrictStr, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.pair_sep is None) != (self.field is None):
            raise ValueError("pair_sep and field go together: field names the pairs that are signatures")
        return self

    @cached_property
    def places(self) -> Locators:
        """The signature's places."""
        return parse_locators(self.at)


class TimestampTable(Table):
    """Where the time of signing stands; `tolerance` in seconds to either side, None for no limit."""

    at: Annotated[StrictStr, AfterValidator(_check_timestamp_place)] = Field(alias="in")
    unit: Literal["s", "ms", "iso8601"]
    tolerance: Annotated[StrictInt, Field(ge=1)] | None = None

    @cached_property
    def places(self) -> Locators:
        """The timestamp's places."""
        return parse_locators(self.at)


class KeyTable(Table):
    """How a secret's text becomes key bytes."""

    encoding: Literal["utf8", "base64", "hex", "ed25519-hex", "ed25519-base64", "spki-base64", "pem"] = "utf8"
    strip_prefix: StrictStr = ""
