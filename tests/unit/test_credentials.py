"""API keys and dashboard users: parsing, comparing, and errors that show no secret."""

import pytest
from click.testing import CliRunner
from werkzeug.security import check_password_hash, generate_password_hash

from config.credentials import ApiKey, find_api_key, find_user, parse_api_keys, parse_users
from config.settings import load_settings
from config.toml import ConfigError
from firstseen.__main__ import cli
from firstseen.admin import user_entry

FIRST, SECOND = "k" * 16, "another-key.of~its+own/=="
HASH = generate_password_hash("correct horse battery", "scrypt")


def test_api_keys_are_separated_by_blanks() -> None:
    """Each entry is one key; `:read` makes it read-only."""
    keys = parse_api_keys(f" ops={FIRST}\n  board:read={SECOND} ")
    assert keys == (ApiKey("ops", FIRST), ApiKey("board", SECOND, read_only=True))


def test_an_empty_variable_has_no_api_key() -> None:
    """The API is off."""
    assert parse_api_keys(" \n ") == ()


def test_two_keys_of_one_name_are_both_valid() -> None:
    """During a rotation a caller may use either."""
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
def test_a_wrong_api_key_is_refused_without_showing_it(
    text: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable and the rule, and contains no part of a key."""
    monkeypatch.setenv("FIRSTSEEN_API_KEYS", text)
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    with pytest.raises(ConfigError) as refused:
        load_settings()
    message = str(refused.value)
    assert message.startswith("Environment: FIRSTSEEN_API_KEYS is wrong: ")
    assert sentence in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_no_repr_shows_an_api_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTSEEN_API_KEYS", f"ops={FIRST}")
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    settings = load_settings()
    assert settings.api_keys == (ApiKey("ops", FIRST),)
    assert FIRST not in repr(settings)
    assert FIRST not in repr(settings.api_keys)


@pytest.mark.parametrize("secret", ["", "k" * 15, "k" * 17, "K" * 16, "ké", "\udc80"])
def test_only_the_exact_secret_finds_a_key(secret: str) -> None:
    assert find_api_key(parse_api_keys(f"ops={FIRST}"), secret) is None


def test_users_are_separated_by_blanks() -> None:
    """Each entry is one user with one password hash."""
    users = parse_users(f" ada={HASH}\n grace.h@example.com={HASH} ")
    assert [user.name for user in users] == ["ada", "grace.h@example.com"]
    assert find_user(users, "ada") == users[0]
    assert find_user(users, "nobody") is None


def test_an_empty_variable_has_no_user() -> None:
    """The dashboard is off."""
    assert parse_users(" \n ") == ()


def test_the_output_of_hash_password_can_be_parsed() -> None:
    """The entry can be pasted as printed, and the password matches its hash."""
    (user,) = parse_users(user_entry("ada", "correct horse battery"))
    assert check_password_hash(user.password_hash, "correct horse battery")


@pytest.mark.parametrize(
    ("name", "password", "code"),
    [("ada", "correct horse battery", 0), ("ada", "hunter2", 2), ("Ada L", "x" * 20, 2)],
)
def test_hash_password_reads_standard_input(name: str, password: str, code: int) -> None:
    """One line in, one entry out; a short password or a wrong name exits 2 and is not printed."""
    done = CliRunner().invoke(cli, ["hash-password", name], input=f"{password}\n")
    assert done.exit_code == code, done.output
    assert password not in done.output
    if code == 0:
        (user,) = parse_users(done.stdout)
        assert check_password_hash(user.password_hash, password)
        assert "in single quotes" in done.stderr


def test_another_hash_is_another_mark() -> None:
    """A new password ends the sessions of the old one."""
    first, second = parse_users(user_entry("ada", "a password")), parse_users(user_entry("ada", "a password"))
    assert first[0].mark != second[0].mark


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hunter2hunter2", "entry 1 must be name=hash"),
        (f"ada={HASH} hunter2hunter2", "entry 2 must be name=hash"),
        ("Ada=hunter2hunter2", "entry 1 must be name=hash"),
        ("ada=hunter2hunter2", "not as `firstseen hash-password` prints it"),
        (f"ada={HASH.replace('$', '')}", "in a shell it needs single quotes"),
        (f"ada={HASH}hunter2hunter2", "not as `firstseen hash-password` prints it"),
        (f"ada={HASH} ada={HASH}", "a name stands in two entries"),
    ],
)
def test_a_wrong_user_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    """The entry may be a password: the error has its number and the rule, never its text."""
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    monkeypatch.setenv("FIRSTSEEN_USERS", text)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert sentence in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert HASH[-40:] not in str(refused.value)


def test_no_repr_shows_a_hash() -> None:
    assert HASH not in repr(parse_users(f"ada={HASH}"))
