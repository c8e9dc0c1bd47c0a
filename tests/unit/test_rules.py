"""Rules in words: for every provider and every dialect of the catalogues, and true ones."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from config.apis import APIS, Api, load_apis
from config.dialects import load_dialects
from config.providers import load_providers
from config.sources import Source
from receiver.dashboard.presentation import timeline
from receiver.describe import dialect_rules, source_rules
from receiver.ledger.reports.models import (
    Action,
    Attempt,
    Duplicate,
    Duplicates,
    EventInFull,
    Nudges,
    Story,
)
from tests.services.catalogue import over

PROVIDERS = {name: one for name, one in load_providers().items() if not one.custom}


def api(dialect: str) -> Api:
    """Return an API of this dialect."""
    shipped = load_apis(APIS, load_dialects(), {})["stannp"]
    return replace(shipped, dialect=load_dialects()[dialect], quiet=timedelta(seconds=15))


@over(sorted(PROVIDERS))
def test_every_provider_has_its_rules(name: str) -> None:
    """Whole sentences, the window among them."""
    told = list(source_rules(Source(name, PROVIDERS[name], ("canary",))))
    assert len(told) >= 3
    assert all(rule[0].isupper() and rule.endswith(".") for rule in told), told
    assert any("can send an event again for" in rule for rule in told)
    assert "canary" not in " ".join(told)


@pytest.mark.parametrize("name", sorted(load_dialects()))
def test_every_dialect_has_its_rules(name: str) -> None:
    """Whole sentences."""
    told = list(dialect_rules(api(name)))
    assert told
    assert all(rule[0].isupper() and rule.endswith(".") for rule in told), told


def test_rules_say_what_differs() -> None:
    """Who forgets failures, who replays with 409, who knows no keys."""
    assert "It keeps successes only: after a failure the same key runs again." in dialect_rules(
        api("salesly")
    )
    assert any("status 409" in rule for rule in dialect_rules(api("stannp")))
    assert any("idempotency_key_locked: we wait" in rule for rule in dialect_rules(api("telness")))
    assert ["It knows no idempotency keys" in rule for rule in dialect_rules(api("none"))] == [True]
    github = " ".join(source_rules(Source("github", PROVIDERS["github"], (), on_replay="park")))
    assert "held back for a person" in github


def second(number: int) -> datetime:
    """Return a time so many seconds after midnight."""
    return datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC)


def test_moments_are_told_in_order() -> None:
    """Oldest first, whatever they are; duplicates beyond the last 20 are one moment."""
    event = EventInFull.model_construct(received_at=second(0), address=None, suspected_replay=True)
    attempt = Attempt(
        number=1,
        generation=0,
        claim=1,
        started_at=second(2),
        ended_at=second(3),
        outcome="retry later",
        reason="No.",
        error="Trace",
        worker="one:1",
    )
    latest = [Duplicate(at=second(9), address="192.0.2.1")]
    story = Story.model_construct(
        event=event,
        duplicates=Duplicates(count=25, first=second(1), last=second(9), latest=latest),
        conflicts=[],
        attempts=[attempt],
        calls=[],
        actions=[Action(at=second(5), who="ada", what="retry", was="dead", generation=0, call=None)],
        nudges=Nudges(count=2, last=second(4)),
    )
    assert [moment.title for moment in timeline(story)] == [
        "First seen",
        "Came again 24 times",
        "Attempt 0.1 started",
        "Attempt 0.1 failed, runs again later",
        "Workers were woken 2 times for it",
        "ada retried it",
        "Came again, answered as a duplicate",
    ]
