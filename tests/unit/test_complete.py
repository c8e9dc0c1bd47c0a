"""Lists that must be complete: adding a thing in one place and forgetting another fails here."""

import re
from pathlib import Path

import click
import pytest

from config.providers import load_providers
from config.settings import Settings
from firstseen.__main__ import cli
from receiver.dashboard.presentation import OUTCOMES
from receiver.describe import STATES
from receiver.endpoints import VERIFIERS
from receiver.ledger.reports.alerts import DueAlert, Subject, Topic
from receiver.ledger.states import Move, State, leaves
from receiver.sandbox import apis
from receiver.sandbox.factory import APIS
from tests.services.checkout import CHECKOUT
from worker.notifier import sentence


def test_every_state_and_every_outcome_of_an_attempt_has_words() -> None:
    """The pages explain each state, and the timeline each outcome."""
    assert set(STATES) == set(State)
    ends = {move for move in Move if State.PROCESSING in leaves(move)}
    assert ends <= set(OUTCOMES)


def test_every_command_is_documented() -> None:
    """docs/command-line.md names each command and subcommand."""
    page = (CHECKOUT / "docs" / "command-line.md").read_text(encoding="utf-8")
    names = [
        f"{name} {sub}" if isinstance(command, click.Group) and not command.invoke_without_command else name
        for name, command in cli.commands.items()
        for sub in (command.commands if isinstance(command, click.Group) else [""])
    ]
    assert [name for name in names if name != "release" and f"`{name}" not in page] == []


def test_every_setting_is_documented() -> None:
    """docs/configuration.md names each variable except FIRSTSEEN_DEV, which `make run` sets."""
    page = (CHECKOUT / "docs" / "configuration.md").read_text(encoding="utf-8")
    variables = {field.validation_alias for field in Settings.model_fields.values()} - {"FIRSTSEEN_DEV"}
    assert {name for name in variables if f"`{name}`" not in page} == set()


def test_every_entry_with_code_has_its_verifier() -> None:
    """And every verifier has its entry."""
    named = {provider.code for provider in load_providers().values() if provider.code}
    assert named == set(VERIFIERS)


def test_every_api_of_the_sandbox_is_served() -> None:
    """Each module of receiver/sandbox/apis is registered in `APIS`."""
    files = {file.stem for file in Path(str(apis.__file__)).parent.glob("*.py")} - {"__init__"}
    assert {api.name for api in APIS} == files


@pytest.mark.parametrize("topic", list(Topic))
def test_every_alert_has_a_sentence(topic: Topic) -> None:
    """It has the number of events."""
    alert = DueAlert(Subject(topic, "shop", "paid"), total=7, count=7, seconds=60.0)
    assert re.fullmatch(r"Firstseen: .*\b7\b.*[.?]", sentence(alert))
