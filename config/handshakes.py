"""Handshakes as data: requests that ask whether an endpoint is ours, and the answer that each one wants."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictInt, StrictStr, model_validator

from config.locators import HEADER_NAME, parse_locators
from config.provider_parts import VALUE_KINDS
from config.tables import Table

ANY, ABSENT, VERIFY_TOKEN = "*", "", "{verify_token}"
"""What a value in `when` may be beside a text: anything, nothing at all, the source's own verify token."""
PLACEHOLDERS = frozenset({"challenge", "proof", "verify_token"})

_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _check_when(table: Mapping[str, str]) -> Mapping[str, str]:
    for place in table:
        parse_locators(place, VALUE_KINDS)
    return table


def _check_names(table: Mapping[str, str]) -> Mapping[str, str]:
    for name in table:
        if not HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a header's name")
    return table


class ProofTable(Table):
    """An HMAC of the challenge under the source's secret."""

    hash: Literal["sha256"]
    encoding: Literal["hex", "base64"]
    prefix: StrictStr = ""


class HandshakeTable(Table):
    """A request that proves the endpoint is ours: recognised by `when`, answered as told.

    `signed` ones are answered once their signature verified; the others only in sources that opt in. `answer`
    is a text, or a table that is sent as JSON; it and `headers` may hold `{challenge}`, `{proof}` and
    `{verify_token}`. Of several handshakes the first that fits is answered.
    """

    method: Literal["GET", "POST", "HEAD", "OPTIONS"]
    signed: StrictBool
    when: Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_check_when)] = {}
    challenge: StrictStr | None = None
    proof: ProofTable | None = None
    answer: StrictStr | Mapping[StrictStr, StrictStr | StrictInt] = ""
    headers: Annotated[Mapping[StrictStr, StrictStr], AfterValidator(_check_names)] = {}
    status: Annotated[StrictInt, Field(ge=200, le=299)] = 200

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if self.challenge is not None:
            parse_locators(self.challenge, VALUE_KINDS)
        if unknown := self.placeholders - PLACEHOLDERS:
            raise ValueError(
                f"{{{min(unknown)}}} is not a placeholder; known are {', '.join(sorted(PLACEHOLDERS))}"
            )
        if (self.challenge is not None) != bool(self.placeholders & {"challenge", "proof"}):
            raise ValueError("challenge and an answer with {challenge} or {proof} go together")
        if (self.proof is not None) != ("proof" in self.placeholders):
            raise ValueError("proof and an answer with {proof} go together")
        if not self.signed and self.method == "POST" and not (self.when or self.challenge):
            raise ValueError("an unsigned POST needs when or a challenge, or it would swallow events")
        return self

    @property
    def texts(self) -> tuple[str, ...]:
        """Every template of the answer."""
        told = [self.answer] if isinstance(self.answer, str) else map(str, self.answer.values())
        return (*told, *self.headers.values())

    @property
    def placeholders(self) -> frozenset[str]:
        """What the answer takes from the request or the source."""
        return frozenset(name for text in self.texts for name in _PLACEHOLDER.findall(text))

    @property
    def needs_verify_token(self) -> bool:
        """Whether the source must say its verify token."""
        return VERIFY_TOKEN in self.when.values() or "verify_token" in self.placeholders
