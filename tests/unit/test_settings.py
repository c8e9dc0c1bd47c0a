"""Settings: defaults, and the error message of each mistake, which shows no secret."""

from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import Settings, environment, load_settings
from config.toml import ConfigError

KEY = "k" * 32
GOOD = {
    "DATABASE_URL": "postgresql://app:hunter2@db/firstseen",
    "BROKER_URL": "redis://:hunter3@broker/0",
    "FIRSTSEEN_SECRET_KEY": KEY,
}
SECRETS = ("hunter2", "hunter3", "hunter4", KEY)
NAMES = {str(field.validation_alias) for field in Settings.model_fields.values()}


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run without settings in the environment and in a folder without `.env`."""
    monkeypatch.chdir(tmp_path)
    for name in (*NAMES, "DYNO", "RENDER", "FLY_APP_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> "Load":
    """Load settings from a valid environment with changes; None removes a variable."""
    return Load(monkeypatch)


class Load:
    """Sets the environment, then loads the settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, **change: str | None) -> Settings:
        """Return the settings of GOOD with these changes."""
        for name, value in (GOOD | change).items():
            if value is None:
                self.monkeypatch.delenv(name, raising=False)
            else:
                self.monkeypatch.setenv(name, value)
        return load_settings()

    def refusal(self, **change: str | None) -> str:
        """Return the message that refuses these changes; it is one line without a secret."""
        with pytest.raises(ConfigError) as caught:
            self(**change)
        message = str(caught.value)
        assert not any(secret in message for secret in SECRETS), message
        assert caught.value.__cause__ is None
        assert message.endswith(".")
        assert "\n" not in message
        return message


def test_defaults(load: Load) -> None:
    """Three variables are enough."""
    found = load()
    assert found.database == "postgresql+psycopg://app:hunter2@db/firstseen"
    assert found.broker == "redis://:hunter3@broker/0"
    assert [key.get_secret_value() for key in found.secret_keys] == [KEY]
    assert (found.lease, found.sweep, found.attempts) == (timedelta(seconds=60), timedelta(seconds=5), 15)
    assert (found.backoff_max, found.max_runtime) == (timedelta(hours=1), timedelta(minutes=10))
    assert (found.db_pool, found.port, found.dev, found.handlers) == (4, 8000, False, ())


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_gets_the_driver(load: Load, scheme: str) -> None:
    """Heroku's `postgres://` too; the rest of the URL stays."""
    found = load(DATABASE_URL=f"{scheme}://u:p%40ss@h:5432/d?sslmode=require")
    assert found.database == "postgresql+psycopg://u:p%40ss@h:5432/d?sslmode=require"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"DATABASE_URL": None}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "mysql://u:hunter2@h/d"}, "DATABASE_URL has 'mysql' before ://"),
        ({"DATABASE_URL": "hunter2"}, "DATABASE_URL has 'no scheme' before ://"),
        ({"DATABASE_URL": "app:hunter2@db://x"}, "DATABASE_URL has 'no scheme' before ://"),
        ({"DATABASE_URL": "sqlite://"}, "names no file"),
        ({"DATABASE_URL": "sqlite:///:memory:"}, "names no file"),
        ({"DATABASE_URL": "sqlite:///file::memory:?cache=shared&uri=true"}, "names no file"),
        ({"DATABASE_URL": "sqlite:///file:x?mode=memory&uri=true"}, "names no file"),
        ({"BROKER_URL": None}, "BROKER_URL is not set, nor REDIS_URL"),
        ({"BROKER_URL": "kafka://u:hunter3@h"}, "BROKER_URL has 'kafka' before ://"),
        ({"BROKER_URL": None, "REDIS_URL": "http://u:hunter3@h"}, "REDIS_URL has 'http' before ://"),
        ({"BROKER_URL": "hunter3"}, "BROKER_URL has 'no scheme' before ://"),
        ({"FIRSTSEEN_SECRET_KEY": None}, "FIRSTSEEN_SECRET_KEY is not set"),
        ({"FIRSTSEEN_SECRET_KEY": " , "}, "FIRSTSEEN_SECRET_KEY is not set"),
        ({"FIRSTSEEN_SECRET_KEY": f"{KEY},hunter2"}, "a key shorter than 32 characters"),
    ],
)
def test_a_wrong_database_broker_or_key_is_refused(
    load: Load, change: dict[str, str | None], sentence: str
) -> None:
    """Starting with it would lose events; the message names the variable."""
    assert sentence in load.refusal(**change)


@pytest.mark.parametrize("platform", ["DYNO", "RENDER", "FLY_APP_NAME"])
@pytest.mark.parametrize("dev", [None, "1"])
def test_sqlite_is_refused_on_platforms_without_a_disk(load: Load, platform: str, dev: str | None) -> None:
    """On Heroku, Render and Fly its file would vanish with the events, under `make run` too."""
    change = {"DATABASE_URL": "sqlite:///var/x.db", platform: "web.1", "FIRSTSEEN_DEV": dev}
    assert f"{platform} says that this platform throws its disk away" in load.refusal(**change)
    assert load(DATABASE_URL=GOOD["DATABASE_URL"], **{platform: "web.1"}).database.startswith("postgresql")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("FIRSTSEEN_LEASE", "60", "'60' is not a duration"),
        ("FIRSTSEEN_LEASE", "0s", "more than 0s"),
        ("FIRSTSEEN_SWEEP", "0ms", "more than 0s"),
        ("FIRSTSEEN_MAX_RUNTIME", "-1s", "is not a duration"),
        ("FIRSTSEEN_BACKOFF_MAX", "9999999999d", "longer than a duration can be"),
        ("FIRSTSEEN_ATTEMPTS", "0", "greater than or equal to 1"),
        ("FIRSTSEEN_ATTEMPTS", "many", "valid integer"),
        ("FIRSTSEEN_DB_POOL", "1", "greater than or equal to 2"),
        ("FIRSTSEEN_DB_POOL", "1000", "less than or equal to 100"),
        ("PORT", "0", "greater than or equal to 1"),
        ("PORT", "65536", "less than or equal to 65535"),
        ("WEB_CONCURRENCY", "0", "greater than or equal to 1"),
        ("WORKER_CONCURRENCY", "x", "valid integer"),
        ("FIRSTSEEN_WEB_THREADS", "0", "greater than or equal to 1"),
        ("FIRSTSEEN_DEV", "perhaps", "valid boolean"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(load: Load, name: str, value: str, words: str) -> None:
    """The message has the variable, what is allowed and what was found."""
    sentence = load.refusal(**{name: value})
    assert sentence.startswith(f"Environment: {name} is wrong: ")
    assert words.lower() in sentence.lower()
    assert repr(value) in sentence


def test_dev_needs_no_other_variable(load: Load) -> None:
    """FIRSTSEEN_DEV=1 alone brings SQLite and the embedded broker."""
    found = load(FIRSTSEEN_DEV="1", **dict.fromkeys(GOOD))
    assert found.database == "sqlite:///var/firstseen.db"
    assert found.broker.startswith("redis+socket://")


def test_an_empty_variable_counts_as_unset(load: Load) -> None:
    """As in a file of variables with `FIRSTSEEN_LEASE=`."""
    assert load(FIRSTSEEN_LEASE="", PORT="").lease == timedelta(seconds=60)


def test_the_broker_is_broker_url_else_redis_url(load: Load) -> None:
    """Platforms set REDIS_URL; Valkey's schemes become Redis's."""
    assert load(REDIS_URL="redis://other/1").broker == GOOD["BROKER_URL"]
    assert load(BROKER_URL=None, REDIS_URL="rediss://other/1").broker == "rediss://other/1"
    assert load(BROKER_URL="valkey://h/0").broker == "redis://h/0"
    assert load(BROKER_URL="valkeys://h/0").broker == "rediss://h/0"


def test_secret_keys_are_separated_by_commas(load: Load) -> None:
    """The first one signs."""
    keys = load(FIRSTSEEN_SECRET_KEY=f"{'n' * 32}, {KEY}").secret_keys
    assert [key.get_secret_value() for key in keys] == ["n" * 32, KEY]


def test_no_repr_shows_a_secret(load: Load) -> None:
    shown = repr(load()) + str(load())
    assert not any(secret in shown for secret in SECRETS)


def test_settings_are_frozen(load: Load) -> None:
    found = load()
    with pytest.raises(ValidationError, match="frozen"):
        found.lease = timedelta(0)


def test_the_environment_wins_over_the_env_file(load: Load, tmp_path: Path) -> None:
    """For settings and for secrets that are looked up by name."""
    (tmp_path / ".env").write_text("FIRSTSEEN_LEASE=7s\nPORT=1234\nSHOP_SECRET='it''s # one'\n")
    found = load(PORT="4321")
    assert (found.lease, found.port) == (timedelta(seconds=7), 4321)
    assert environment()["PORT"] == "4321"
    assert environment()["FIRSTSEEN_LEASE"] == "7s"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://hooks.example.com", "https://hooks.example.com"),
        ("https://example.com:8443/a/b/", "https://example.com:8443/a/b"),
        ("http://localhost", "http://localhost"),
        ("", ""),
    ],
)
def test_a_public_url(load: Load, text: str, kept: str) -> None:
    """Scheme and host, and a path without its last slash."""
    assert load(FIRSTSEEN_PUBLIC_URL=text).public_url == kept


@pytest.mark.parametrize(
    "text",
    ["hooks.example.com", "ftp://x", "https://", "https://user:hunter2@x", "https://x/?a=1", "https://x/#a"],
)
def test_a_wrong_public_url_is_refused(load: Load, text: str) -> None:
    """And not quoted: it may contain a password."""
    assert "write scheme and host" in load.refusal(FIRSTSEEN_PUBLIC_URL=text)


def test_proxy_hops(load: Load) -> None:
    """0 by default, at most 10."""
    assert load().proxy_hops == 0
    assert load(FIRSTSEEN_PROXY_HOPS="2").proxy_hops == 2
    for text in ("-1", "11", "all"):
        assert "FIRSTSEEN_PROXY_HOPS is wrong" in load.refusal(FIRSTSEEN_PROXY_HOPS=text)


def test_logs_metrics_and_alerts_by_default(load: Load) -> None:
    """Metrics and alerts are off."""
    settings = load()
    assert not settings.metrics_token.get_secret_value()
    assert not settings.alert_url.get_secret_value()
    assert (settings.logs, settings.alert_backlog) == ("auto", timedelta(minutes=10))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("FIRSTSEEN_METRICS_TOKEN", "hunter4", "16 characters or more"),
        ("FIRSTSEEN_ALERT_URL", "hooks.example.com/hunter4", "begins with https:// or http://"),
        ("FIRSTSEEN_ALERT_URL", "https://user:hunter4@hooks.example.com/", "begins with https://"),
        ("FIRSTSEEN_ALERT_URL", "https://hooks.example.com/a bhunter4", "begins with https://"),
        ("FIRSTSEEN_ALERT_BACKLOG", "0s", "more than 0s"),
        ("FIRSTSEEN_LOGS", "xml", "'auto', 'json' or 'text'"),
    ],
)
def test_wrong_settings_of_logs_metrics_and_alerts(load: Load, name: str, value: str, sentence: str) -> None:
    """The error names the variable and what is allowed, and shows no token and no address."""
    found = load.refusal(**{name: value})
    assert name in found
    assert sentence in found


def test_no_repr_shows_the_metrics_token_or_the_alert_url(load: Load) -> None:
    settings = load(
        FIRSTSEEN_METRICS_TOKEN="hunter4-0123456789",
        FIRSTSEEN_ALERT_URL="https://hooks.example.com?key=hunter4",
    )
    assert settings.alert_url.get_secret_value().endswith("hunter4")
    assert "hunter4" not in repr(settings)
