"""Descriptions of sources and APIs: for every provider and every dialect, and correct ones."""

from dataclasses import replace
from datetime import timedelta

import pytest

from config.apis import APIS, Api, load_apis
from config.dialects import load_dialects
from config.providers import load_providers
from config.sources import Source
from receiver.describe import dialect_rules, source_rules
from tests.services.presets import over

PROVIDERS = {name: provider for name, provider in load_providers().items() if not provider.custom}


def api(dialect: str) -> Api:
    """Return an API of this dialect."""
    shipped = load_apis(APIS, load_dialects(), {})["stannp"]
    return replace(shipped, dialect=load_dialects()[dialect], quiet=timedelta(seconds=15))


@over(sorted(PROVIDERS))
def test_every_provider_has_its_rules(name: str) -> None:
    """Whole sentences, the retry window among them."""
    rules = list(source_rules(Source(name, PROVIDERS[name], ("canary",))))
    assert len(rules) >= 3
    assert all(rule[0].isupper() and rule.endswith(".") for rule in rules), rules
    assert any("can send an event again for" in rule for rule in rules)
    assert "canary" not in " ".join(rules)


@pytest.mark.parametrize("name", sorted(load_dialects()))
def test_every_dialect_has_its_rules(name: str) -> None:
    """Whole sentences."""
    rules = list(dialect_rules(api(name)))
    assert rules
    assert all(rule[0].isupper() and rule.endswith(".") for rule in rules), rules


def test_rules_tell_dialects_apart() -> None:
    """Keeping successes only, replaying with 409, locked keys, no keys."""
    assert "It keeps successes only: after a failure the same key runs again." in dialect_rules(
        api("salesly")
    )
    assert any("status 409" in rule for rule in dialect_rules(api("stannp")))
    assert any("idempotency_key_locked: we wait" in rule for rule in dialect_rules(api("telness")))
    assert ["It knows no idempotency keys" in rule for rule in dialect_rules(api("none"))] == [True]
    github = " ".join(source_rules(Source("github", PROVIDERS["github"], (), on_replay="park")))
    assert "held back for a person" in github
