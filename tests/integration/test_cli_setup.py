"""The command line before setup: no schema, no database, or a wrong environment."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from firstseen.__main__ import cli
from tests.services.waiting import free_port

Run = Callable[..., Result]


@pytest.fixture
def run(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command on an empty database and checks its exit code."""
    monkeypatch.chdir(tmp_path)
    environ = {
        "DATABASE_URL": database_url,
        "BROKER_URL": "redis://127.0.0.1:1/0",
        "FIRSTSEEN_SECRET_KEY": "k" * 32,
    }

    def invoke(*arguments: str, expect: int = 0, **env: str | None) -> Result:
        result = CliRunner().invoke(cli, arguments, env=environ | env)
        assert result.exit_code == expect, f"{arguments} exits {result.exit_code}: {result.output}"
        assert len(result.stderr.splitlines()) <= 1, result.stderr
        return result

    return invoke


def test_migrate_brings_an_empty_database_up_once(run: Run) -> None:
    """The first run creates the schema, and the second changes nothing."""
    assert "it was empty" in run("migrate").stdout
    assert "nothing to do" in run("migrate").stdout
    assert run("events", "--json").stdout == '{"data": [], "next": null}\n'


@pytest.mark.parametrize(
    "command", [["events"], ["show", "stripe", "evt_1"], ["stats"], ["prune"]], ids=" ".join
)
def test_a_missing_schema_is_named(run: Run, command: list[str]) -> None:
    """Without a schema, every command that reads the ledger names `firstseen migrate`."""
    assert "run `firstseen migrate`" in run(*command, expect=1).stderr


def test_a_wrong_environment_is_one_sentence(run: Run) -> None:
    """A configuration error gives exit code 2 and the variable's name, but not its value."""
    assert "DATABASE_URL is not set" in run("events", expect=2, DATABASE_URL=None).stderr
    found = run("events", expect=2, FIRSTSEEN_SECRET_KEY="too_short").stderr
    assert "FIRSTSEEN_SECRET_KEY" in found
    assert "too_short" not in found


def test_a_wrong_source_is_one_sentence(run: Run, tmp_path: Path) -> None:
    """An invalid sources file gives exit code 2 and the file's name."""
    (tmp_path / "wrong.toml").write_text('[stripe]\nprovider = "strip"\nsecrets_env = "S"\n')
    found = run("sources", expect=2, FIRSTSEEN_SOURCES=str(tmp_path / "wrong.toml")).stderr
    assert "wrong.toml" in found
    assert "'strip'" in found


def test_a_database_that_is_away_is_named(run: Run) -> None:
    """An unreachable database gives exit code 1, without its password."""
    away = f"postgres://ann:secret@127.0.0.1:{free_port()}/x"
    found = run("events", expect=1, DATABASE_URL=away).stderr
    assert "does not answer" in found
    assert "secret" not in found


def test_version_and_help_need_nothing(run: Run) -> None:
    """They work without any setting."""
    nothing = dict.fromkeys(("DATABASE_URL", "BROKER_URL", "FIRSTSEEN_SECRET_KEY"))
    assert run("version", **nothing).stdout == run("--version", **nothing).stdout
    assert "retry" in run("--help", **nothing).stdout
