"""Read models: the order of their members, redaction, and the HTTP status of ledger errors."""

import json
from datetime import UTC, datetime
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
from pydantic import BaseModel

from config.sources import parse_json_path
from receiver.ledger import errors
from receiver.ledger.errors import CommitUncertain, LedgerError, LedgerUnavailable, SchemaBehind
from receiver.ledger.reports.models import Call, CallStory, EventInFull, Shape, Story
from receiver.redaction import HIDDEN, Redactor
from receiver.service import refusal

SAMPLES: dict[type, Any] = {
    str: "a text",
    int: 7,
    float: 1.5,
    bool: True,
    type(None): None,
    UUID: UUID(int=9),
    datetime: datetime(2026, 11, 21, 10, tzinfo=UTC),
}


def shapes(base: type[Shape] = Shape) -> list[type[Shape]]:
    """Return every read model."""
    return [model for kind in base.__subclasses__() for model in (kind, *shapes(kind))]


def example(kind: Any) -> Any:
    """Return a value of a type, with every member set and every list filled."""
    origin, of = get_origin(kind), get_args(kind)
    if origin is Literal:
        return of[0]
    if origin in (Annotated, Union, UnionType):
        return example(of[0])
    if origin in (list, dict):
        filled = [example(part) for part in of]
        return filled if origin is list else dict([filled])
    if issubclass(kind, Enum):
        return next(iter(kind))
    if issubclass(kind, BaseModel):
        members = kind.model_fields.items()
        return kind(**{field.alias or name: example(field.annotation) for name, field in members})
    return SAMPLES[kind]


def texts(value: Any) -> list[str]:
    """Return all texts in a JSON value, without member names."""
    match value:
        case str():
            return [value]
        case dict():
            return [text for member in value.values() for text in texts(member)]
        case list():
            return [text for item in value for text in texts(item)]
        case _:
            return []


@pytest.mark.parametrize("model", shapes(), ids=lambda model: model.__name__)
def test_every_read_model_survives_redaction(model: type[Shape]) -> None:
    """A payload that redaction every text of a model still leaves its ids, times and states valid."""
    whole = example(model)
    payload = {"hidden": texts(whole.as_json())}
    redaction = Redactor([parse_json_path("$.hidden")], json.dumps(payload).encode(), "application/json")
    redacted = redaction.redact(whole)
    assert type(redacted) is model
    free = {name for name in ("reason", "error", "step", "url", "once", "body") if name in model.model_fields}
    for name in free:
        assert getattr(redacted, name) == HIDDEN


@pytest.mark.parametrize("model", shapes(), ids=lambda model: model.__name__)
def test_every_read_model_survives_redaction_without_a_payload(model: type[Shape]) -> None:
    """Once a payload is erased, texts that may quote it are hidden whole."""
    redaction = Redactor([parse_json_path("$.hidden")], None, None)
    assert type(redaction.redact(example(model))) is model


def test_members_keep_their_order() -> None:
    """Users of `--json` rely on it."""
    assert " ".join(Story.model_fields) == "event duplicates conflicts attempts actions nudges calls next"
    assert " ".join(CallStory.model_fields) == "call event request answer sends actions next"
    assert " ".join(EventInFull.model_fields) == (
        "id source event_id type state attempts generation received_at due_at reason duplicates conflicts"
        " created_at finished_at revived_at lease_until crashes discarded suspected_replay calls_changed"
        " address content_type body_hash parked_call size"
    )
    assert " ".join(Call.model_fields) == (
        "id event generation position step successor state api method url protection key once fingerprint"
        " changed_to use_stored shares outcome reason status created_at first_sent_at expires_at due_at"
        " quiet_until ended_at send_count"
    )


def test_every_error_of_the_ledger_has_its_status() -> None:
    """Errors about the request are 404, 409 or 422; the others mean that the ledger is down."""
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    raised = {kind for kind in kinds if issubclass(kind, LedgerError) and kind is not LedgerError}
    refused = {kind: refusal(kind("no")) for kind in raised}
    down = {kind for kind, answer in refused.items() if answer is None}
    assert down == {LedgerUnavailable, CommitUncertain, SchemaBehind}
    assert {answer[0] for answer in refused.values() if answer} == {404, 409, 422}
