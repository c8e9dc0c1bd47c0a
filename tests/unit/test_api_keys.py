"""Keys of the management API, as they are written and compared."""

import pytest

from config.credentials import ApiKey, find_api_key, parse_api_keys
from config.settings import load_settings
from config.toml import ConfigError

FIRST, SECOND = "k" * 16, "another-key.of~its+own/=="


def test_entries_are_separated_by_blanks() -> None:
    """Each entry is one key; `:read` makes it read-only."""
    keys = parse_api_keys(f" ops={FIRST}\n  board:read={SECOND} ")
    assert keys == (ApiKey("ops", FIRST), ApiKey("board", SECOND, read_only=True))


def test_no_entry_is_no_key() -> None:
    """An empty variable turns the API off."""
    assert parse_api_keys(" \n ") == ()


def test_a_name_may_stand_twice_while_its_key_is_replaced() -> None:
    """Both keys are valid, under one name."""
    keys = parse_api_keys(f"ops={FIRST} ops={SECOND}")
    assert [find_api_key(keys, secret) for secret in (FIRST, SECOND)] == list(keys)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hunter2-hunter2-hunter2", "entry 1 must be name=key"),
        (f"ops={FIRST} hunter2-hunter2-hunter2", "entry 2 must be name=key"),
        ("=hunter2-hunter2-hunter2", "entry 1 must be name=key"),
        ("Ops=hunter2-hunter2-hunter2", "entry 1 must be name=key"),
        ("ops:write=hunter2-hunter2-hunter2", "entry 1 must be name=key"),
        ("ops=hunter2", "16 or more"),
        ("ops=hunter2,hunter2,hunter2", "16 or more"),
        ("ops=hunter2-hunter2-hunteré", "16 or more"),
        ("ops=hunter2-hunter2-hunter2 dev=hunter2-hunter2-hunter2", "one key stands in two entries"),
        (f"ops=hunter2-hunter2-hunter2 ops:read={FIRST}", "both with and without :read"),
    ],
)
def test_nonsense_is_refused_without_showing_it(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the variable and what is allowed, and no part of a key."""
    monkeypatch.setenv("FIRSTSEEN_API_KEYS", text)
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    message = str(refused.value)
    assert message.startswith("Environment: FIRSTSEEN_API_KEYS is wrong: ")
    assert sentence in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_settings_hold_keys_that_nothing_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded is usable, and its repr shows no key."""
    monkeypatch.setenv("FIRSTSEEN_API_KEYS", f"ops={FIRST}")
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    settings = load_settings()
    assert settings.api_keys == (ApiKey("ops", FIRST),)
    assert FIRST not in repr(settings)
    assert FIRST not in repr(settings.api_keys)


@pytest.mark.parametrize("secret", ["", "k" * 15, "k" * 17, "K" * 16, "ké", "\udc80"])
def test_another_secret_finds_no_key(secret: str) -> None:
    """Only the exact secret counts."""
    assert find_api_key(parse_api_keys(f"ops={FIRST}"), secret) is None
