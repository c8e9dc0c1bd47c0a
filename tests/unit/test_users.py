"""People who may sign in, as they are written."""

import pytest
from click.testing import CliRunner
from werkzeug.security import check_password_hash, generate_password_hash

from config.credentials import find_user, parse_users
from config.settings import load_settings
from config.toml import ConfigError
from firstseen.__main__ import cli
from firstseen.admin import user_entry

HASH = generate_password_hash("correct horse battery", "scrypt")


def test_entries_are_separated_by_blanks() -> None:
    """Each entry is one person with one hash."""
    users = parse_users(f" ada={HASH}\n grace.h@example.com={HASH} ")
    assert [user.name for user in users] == ["ada", "grace.h@example.com"]
    assert find_user(users, "ada") == users[0]
    assert find_user(users, "nobody") is None


def test_no_entry_is_nobody() -> None:
    """An empty variable turns the dashboard off."""
    assert parse_users(" \n ") == ()


def test_what_hash_password_prints_is_read() -> None:
    """The entry is ready to paste, and the password opens it."""
    (user,) = parse_users(user_entry("ada", "correct horse battery"))
    assert check_password_hash(user.password_hash, "correct horse battery")


@pytest.mark.parametrize(
    ("name", "password", "code"),
    [("ada", "correct horse battery", 0), ("ada", "hunter2", 2), ("Ada L", "x" * 20, 2)],
)
def test_the_command_reads_standard_input(name: str, password: str, code: int) -> None:
    """One line in, one entry out; what is too short or no name is misuse, and is not repeated."""
    done = CliRunner().invoke(cli, ["hash-password", name], input=f"{password}\n")
    assert done.exit_code == code, done.output
    assert password not in done.output
    if code == 0:
        (user,) = parse_users(done.stdout)
        assert check_password_hash(user.password_hash, password)
        assert "in single quotes" in done.stderr


def test_another_password_is_another_mark() -> None:
    """Sessions that began under the old one end."""
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
def test_what_is_no_entry_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    """It may be a password: the error names the entry's number and the rule, never what was found."""
    monkeypatch.setenv("FIRSTSEEN_DEV", "1")
    monkeypatch.setenv("FIRSTSEEN_USERS", text)
    with pytest.raises(ConfigError) as refused:
        load_settings()
    assert sentence in str(refused.value)
    assert "hunter2" not in str(refused.value)
    assert HASH[-40:] not in str(refused.value)


def test_a_hash_is_in_no_repr() -> None:
    """Neither a user's nor the settings'."""
    assert HASH not in repr(parse_users(f"ada={HASH}"))
