"""What `make run` writes and chooses before it starts anything."""

import os
import stat
from contextlib import ExitStack
from pathlib import Path

import pytest
from dotenv import dotenv_values
from werkzeug.security import check_password_hash

from config.apis import APIS, header_of, load_apis
from config.dialects import load_dialects
from config.settings import environment, load_settings
from firstseen.dev import SOCKET_LIMIT, Refused, moved_apis, only_one, socket_path, write_env, write_user

ENV = Path(".env")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, as after a clone, with none of the product's variables set."""
    monkeypatch.chdir(tmp_path)
    for name in [*os.environ]:
        if name.startswith("FIRSTSEEN_") or name.endswith(("_SECRETS", "_URL", "_API_KEY")):
            monkeypatch.delenv(name)
    Path("var").mkdir()


def test_the_first_run_writes_secrets() -> None:
    """Every variable of the shipped sources gets a secret, in a file that only its owner can read."""
    added = write_env(ENV)
    written = dotenv_values(ENV)
    assert list(written) == added
    assert added[:2] == ["FIRSTSEEN_DEV", "FIRSTSEEN_SECRET_KEY"]
    assert {"STRIPE_WEBHOOK_SECRETS", "GITHUB_WEBHOOK_SECRETS", "STANDARD_WEBHOOK_SECRETS"} < set(added)
    assert all(len(value or "") > 30 for name, value in written.items() if name != "FIRSTSEEN_DEV")
    assert stat.S_IMODE(ENV.stat().st_mode) == 0o600
    assert load_settings().dev


def test_the_first_run_makes_a_user() -> None:
    """Name and password are printed once; `.env` holds only the hash."""
    write_env(ENV)
    message = write_user(ENV)
    assert message
    password = message.rpartition(" ")[2]
    (user,) = load_settings().users
    assert user.name in message
    assert check_password_hash(user.password_hash, password)
    assert password not in ENV.read_text()
    assert write_user(ENV) is None
    assert load_settings().users == (user,)


def test_the_first_run_can_call_the_sandbox() -> None:
    """Every shipped API gets a credential of its own."""
    write_env(ENV)
    apis = load_apis(load_settings().apis_path, load_dialects(), environment())
    assert [api.problem for api in apis.values()] == [None] * 5
    assert len({header_of(api)[1] for api in apis.values()}) == 5


def test_an_api_elsewhere_gets_no_made_up_credential(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the sandbox accepts any credential."""
    text = '[shop]\nbase_url = "https://shop.example"\ndialect = "none"\n'
    Path("apis.toml").write_text(text + 'auth = { type = "bearer", value_env = "SHOP_API_KEY" }\n')
    monkeypatch.setenv("FIRSTSEEN_APIS", "apis.toml")
    assert "SHOP_API_KEY" not in write_env(ENV)


def test_missing_variables_are_added_to_an_older_file() -> None:
    """Its lines stay as they are."""
    write_env(ENV)
    earlier = [line for line in ENV.read_text().splitlines() if "_API_KEY=" not in line]
    ENV.write_text("\n".join(earlier))
    added = write_env(ENV)
    assert len(added) == 5
    assert all(name.endswith("_API_KEY") for name in added)
    assert ENV.read_text().splitlines()[: len(earlier)] == earlier


def test_the_sandbox_apis_move_to_another_port() -> None:
    """Other APIs keep their address."""
    auth = '{ type = "bearer", value_env = "SHOP" }'
    table = f'[shop]\nbase_url = "https://shop.example"\ndialect = "none"\nauth = {auth}\n'
    Path("mine.toml").write_text(APIS.read_text() + table)
    before = load_apis(Path("mine.toml"), load_dialects(), {})
    after = load_apis(moved_apis(Path("mine.toml"), 9999), load_dialects(), {})
    assert after.keys() == before.keys()
    moved = {name for name in after if after[name].base_url != before[name].base_url}
    assert moved == set(after) - {"shop"}
    assert all(after[name].base_url.startswith(f"http://127.0.0.1:9999/{name}") for name in moved)


def test_no_two_folders_share_secrets() -> None:
    write_env(ENV)
    first = dotenv_values(ENV)
    ENV.unlink()
    write_env(ENV)
    same = [name for name, value in dotenv_values(ENV).items() if first[name] == value]
    assert same == ["FIRSTSEEN_DEV"]


def test_a_second_run_changes_nothing() -> None:
    """The file stays the same byte for byte."""
    write_env(ENV)
    before = ENV.read_bytes()
    assert write_env(ENV) == []
    assert ENV.read_bytes() == before


def test_variables_that_are_set_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file, even after an unfinished line, and in the environment."""
    ENV.write_text("# mine\nSTRIPE_WEBHOOK_SECRETS='whsec_it is #1'")
    monkeypatch.setenv("GITHUB_WEBHOOK_SECRETS", "exported")
    added = write_env(ENV)
    assert not {"STRIPE_WEBHOOK_SECRETS", "GITHUB_WEBHOOK_SECRETS"} & set(added)
    assert ENV.read_text().startswith("# mine\nSTRIPE_WEBHOOK_SECRETS='whsec_it is #1'\nFIRSTSEEN_DEV=1\n")
    assert dotenv_values(ENV)["STRIPE_WEBHOOK_SECRETS"] == "whsec_it is #1"


def test_two_runs_in_one_folder_are_refused() -> None:
    """The second would use the first one's broker."""
    with ExitStack() as first, ExitStack() as second:
        only_one(first)
        with pytest.raises(Refused, match="already runs in this folder"):
            only_one(second)
    with ExitStack() as third:
        only_one(third)


def test_the_socket_is_under_var() -> None:
    """A socket left by a crash is removed."""
    Path("var/valkey.sock").touch()
    with ExitStack() as cleanup:
        path = socket_path(cleanup)
    assert path == Path("var/valkey.sock").absolute()
    assert not path.exists()


def test_the_socket_of_a_long_path_is_in_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path has a length limit; the folder is removed at the end."""
    deep = tmp_path / ("d" * SOCKET_LIMIT)
    deep.mkdir()
    monkeypatch.chdir(deep)
    with ExitStack() as cleanup:
        path = socket_path(cleanup)
        assert len(bytes(path)) < SOCKET_LIMIT
        assert path.parent.is_dir()
    assert not path.parent.exists()
