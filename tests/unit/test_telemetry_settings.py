"""Settings of logs, metrics and alerts: what is refused, and that no sentence tells a secret."""

from datetime import timedelta
from pathlib import Path

import pytest

from config.settings import load_settings
from config.toml import ConfigError

SECRET = "hunter4"


@pytest.fixture(autouse=True)
def _dev(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Give each test settings that work by themselves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")


def test_everything_is_off_or_sensible_by_default() -> None:
    """Nothing is told to anybody until somebody asks for it."""
    settings = load_settings()
    assert not settings.metrics_token.get_secret_value()
    assert not settings.alert_url.get_secret_value()
    assert (settings.logs, settings.alert_backlog) == ("auto", timedelta(minutes=10))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FIRSTSEEN_METRICS_TOKEN", SECRET, "16 characters or more"),
        ("FIRSTSEEN_ALERT_URL", f"hooks.example.com/{SECRET}", "begins with https:// or http://"),
        ("FIRSTSEEN_ALERT_URL", f"https://user:{SECRET}@hooks.example.com/", "begins with https://"),
        ("FIRSTSEEN_ALERT_URL", f"https://hooks.example.com/a b{SECRET}", "begins with https://"),
        ("FIRSTSEEN_ALERT_BACKLOG", "0s", "more than 0s"),
        ("FIRSTSEEN_LOGS", "xml", "'auto', 'json' or 'text'"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    """The sentence names the variable and what is wrong, and never shows a token or an address."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert name in str(caught.value)
    assert sentence in str(caught.value)
    assert SECRET not in str(caught.value)


def test_secrets_stand_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Printing the settings tells neither the token nor the address."""
    monkeypatch.setenv("FIRSTSEEN_METRICS_TOKEN", f"{SECRET}-0123456789")
    monkeypatch.setenv("FIRSTSEEN_ALERT_URL", f"https://hooks.example.com?key={SECRET}")
    settings = load_settings()
    assert settings.alert_url.get_secret_value().endswith(SECRET)
    assert SECRET not in repr(settings)
