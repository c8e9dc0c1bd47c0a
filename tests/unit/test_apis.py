"""`apis.toml`: the shipped APIs, defaults, credentials, and the error message of each mistake."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.apis import APIS, Api, check_base_url, header_of, load_apis
from config.dialects import load_dialects
from config.toml import ConfigError
from receiver.sandbox.factory import APIS as SANDBOX

DIALECTS = load_dialects()
SECRET = "hunter2-hunter2"
GOOD = """
[shop]
base_url = "https://api.shop.example/v1/"
dialect = "salesly"
auth = { type = "header", name = "X-API-Key", value_env = "SHOP_KEY" }
"""
BEARER = GOOD.replace('type = "header", name = "X-API-Key"', 'type = "bearer"')
BASIC = BEARER.replace('"bearer"', '"basic"')


def load(tmp_path: Path, text: str, **environ: str) -> Api:
    """Load a file of one API."""
    file = tmp_path / "apis.toml"
    file.write_text(text, encoding="utf-8")
    (api,) = load_apis(file, DIALECTS, environ).values()
    return api


def refusal(tmp_path: Path, text: str) -> str:
    """Return the error message for a file, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, SHOP_KEY="x")
    file, _, sentence = str(caught.value).partition(": ")
    assert file == str(tmp_path / "apis.toml")
    assert "\n" not in sentence
    return sentence


def test_the_shipped_apis_are_those_of_the_sandbox() -> None:
    """All five load without a credential, and each names the variable that is not set."""
    apis = load_apis(APIS, DIALECTS, {})
    assert list(apis) == [api.name for api in SANDBOX]
    for name, api in apis.items():
        assert api.dialect_name == name
        assert api.base_url.startswith(f"http://127.0.0.1:8001/{name}")
        assert (
            api.problem
            == f"[{name}] has no credential: the environment variable {api.auth.variable} is not set"
        )


def test_defaults(tmp_path: Path) -> None:
    """A minimal table has the defaults that the shipped file documents."""
    api = load(tmp_path, GOOD, SHOP_KEY=f" {SECRET}\n")
    assert (api.base_url, api.headers, api.problem) == ("https://api.shop.example/v1", {}, None)
    times = (api.connect_timeout, api.read_timeout, api.deadline, api.quiet)
    assert times == tuple(timedelta(seconds=seconds) for seconds in (5, 20, 30, 15))
    assert (api.max_connections, api.key_life, api.key_margin) == (
        16,
        timedelta(days=1),
        timedelta(minutes=10),
    )
    assert api.credential == SECRET
    assert SECRET not in repr(api)


@pytest.mark.parametrize(
    ("text", "credential", "name", "value"),
    [
        (GOOD, "k-1", "X-API-Key", "k-1"),
        (GOOD.replace("X-API-Key", "Authorization"), "Token k-1", "Authorization", "Token k-1"),
        (BEARER, "k-1", "Authorization", "Bearer k-1"),
        (BASIC, "Aladdin:open sesame", "Authorization", "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="),
        (BASIC, "test:123\u00a3", "Authorization", "Basic dGVzdDoxMjPCow=="),
        (BASIC, "key:", "Authorization", "Basic a2V5Og=="),
    ],
)
def test_credentials_travel_as_written(
    tmp_path: Path, text: str, credential: str, name: str, value: str
) -> None:
    """The two Basic credentials are RFC 7617's own examples."""
    assert header_of(load(tmp_path, text, SHOP_KEY=credential)) == (name, value)


@pytest.mark.parametrize(
    ("text", "credential", "words"),
    [
        (GOOD, "", "the environment variable SHOP_KEY is empty"),
        (GOOD, f"{SECRET}\x01", "SHOP_KEY holds characters that X-API-Key cannot carry"),
        (GOOD, f"{SECRET}\n{SECRET}", "SHOP_KEY holds characters that X-API-Key cannot carry"),
        (BEARER, f"{SECRET} {SECRET}", "SHOP_KEY holds characters that Authorization cannot carry"),
        (BEARER, f"{SECRET}\u00a3", "SHOP_KEY holds characters that Authorization cannot carry"),
        (BASIC, SECRET, "SHOP_KEY is not written as user:password"),
    ],
)
def test_a_bad_credential_disables_its_api(tmp_path: Path, text: str, credential: str, words: str) -> None:
    """The process starts; the API has a problem that does not show the credential, and sends nothing."""
    api = load(tmp_path, text, SHOP_KEY=credential)
    assert (api.credential, api.problem) == ("", f"[shop] has no credential: {words}")
    with pytest.raises(ConfigError, match="has no credential"):
        header_of(api)


@pytest.mark.parametrize(
    ("extra", "life", "margin"),
    [
        ("", 86_400, 600),
        ('deadline = "5min"', 86_400, 1_200),
        ('key_life = "1h"', 3_600, 600),
        ('key_life = "12min"', 720, 360),
        ('key_life = "4s"\ndeadline = "2s"', 4, 2),
        ('key_life = "1h"\nkey_margin = "30min"', 3_600, 1_800),
        ('key_margin = "30s"', 86_400, 30),
        ('key_life = "1min"', 60, 30),
        ('key_life = "4s"\ndeadline = "1s"\nkey_margin = "1s"', 4, 1),
    ],
)
def test_key_margin(tmp_path: Path, extra: str, life: int, margin: int) -> None:
    """The default is 10 minutes or four deadlines, whichever is longer, and at most half of `key_life`."""
    api = load(tmp_path, GOOD + extra)
    assert (api.key_life, api.key_margin) == (timedelta(seconds=life), timedelta(seconds=margin))


def test_an_unpublished_life_is_an_hour(tmp_path: Path) -> None:
    """The IETF draft leaves the life of a key to each API."""
    assert load(tmp_path, GOOD.replace("salesly", "ietf")).key_life == timedelta(hours=1)


def test_a_short_deadline_shortens_the_timeouts(tmp_path: Path) -> None:
    """Default timeouts are no longer than the deadline."""
    api = load(tmp_path, GOOD + 'deadline = "3s"')
    assert (api.connect_timeout, api.read_timeout) == (timedelta(seconds=3), timedelta(seconds=3))


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ("[shop]", "[value]", "[value] is no name for an API: calls.value is something of its own"),
        ("[shop]", "[Shop]", "[Shop] is no name for an API, since handlers write calls.<name>; allowed are"),
        ("[shop]", "[my-shop]", "[my-shop] is no name for an API"),
        ("[shop]", "[class]", "[class] is no name for an API"),
        ("[shop]", "[_shop]", "[_shop] is no name for an API"),
        ("[shop]", "shop = 1\n[other]", "[shop] is a number; every API must be a table such as [salesly]"),
        ("base_url =", "base_uri =", "[shop] 'base_uri' is not a known key; did you mean 'base_url'?"),
        ("dialect =", "quiet =", "[shop] dialect is missing"),
        (
            '"salesly"',
            '"salesli"',
            "dialect is 'salesli', which is not in the catalogue; did you mean 'salesly'?",
        ),
        (
            "https:",
            "http:",
            "base_url: it is plain http, which shows credentials to everyone on the way; use https",
        ),
        ("https:", "ftp:", "base_url: it must begin with https:// and a host"),
        ("https://api.shop.example", "https://", "base_url: it must begin with https:// and a host"),
        ("api.shop", f"ann:{SECRET}@api.shop", "base_url: it holds a user or password before @"),
        ("/v1/", f"/v1?key={SECRET}", "base_url: it holds ? or #"),
        ("/v1/", "/v1#top", "base_url: it holds ? or #"),
        ("/v1/", "/v1/../v2", "base_url: its path holds an empty, . or .. segment"),
        ("/v1/", "/a//b", "base_url: its path holds an empty, . or .. segment"),
        ("/v1/", ":99999/v1", "base_url: its host or port cannot be read"),
        ("/v1/", "/v 1", "base_url: it holds blanks, backslashes or other characters"),
        ('"https://api.shop.example/v1/"', "7", "base_url is a number; it must be a string"),
        ("auth = {", f'auth = "{SECRET}" # {{', "auth is a string; it must be a table"),
        ("auth =", f'key = "{SECRET}"\nauth =', "'key' is not a known key"),
        ("value_env", "value", "auth: 'value' is not a known key; did you mean 'value_env'?"),
        ('"SHOP_KEY"', f'"{SECRET}"', "auth.value_env: found a string that is no variable's name"),
        ('"header"', '"digest"', "auth.type is a string; allowed is 'bearer', 'basic' or 'header'"),
        ('name = "X-API-Key", ', "", "auth: name goes with type 'header', and only with it"),
        ('type = "header"', 'type = "bearer"', "auth: name goes with type 'header', and only with it"),
        ("X-API-Key", f"{SECRET}:", "auth.name: found a string that is not a header's name"),
        ("X-API-Key", "Host", "auth.name: Host is the client's own to write"),
        ("X-API-Key", "idempotency-key", "auth.name is Idempotency-Key, which carries the idempotency key"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, was: str, becomes: str, words: str) -> None:
    """The message has the API, the key and what is allowed, and no credential."""
    assert was in GOOD
    message = refusal(tmp_path, GOOD.replace(was, becomes, 1))
    assert words in message, message
    assert message.startswith("[")
    assert SECRET not in message


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            'headers = { Authorization = "hunter2-hunter2" }',
            "headers: Authorization carries a secret; auth reads it",
        ),
        ('headers = { cookie = "hunter2-hunter2" }', "headers: cookie carries a secret"),
        ('headers = { Content-Length = "1" }', "headers: Content-Length is the client's own to write"),
        ('headers = { X-A = "1", x-a = "2" }', "headers: x-a is there twice"),
        ('headers = { X-A = "hunter2-hunter2\\u00e9" }', "headers: X-A must have a value of printable ASCII"),
        ("headers = { X-A = 1 }", "headers.X-A is a number; it must be a string"),
        ('headers = { "X A" = "1" }', "headers: found a string that is not a header's name"),
        (
            'headers = { Idempotency-Key = "1" }',
            "headers has Idempotency-Key, which carries the idempotency key",
        ),
        (
            'headers = { x-api-key = "hunter2-hunter2" }',
            "headers has x-api-key, which carries the credential",
        ),
        ("deadline = 30", 'deadline: found a number; write a number with its unit in quotes, such as "30d"'),
        ('deadline = "11min"', "deadline is 11min; it must be at most 10min"),
        ('deadline = "2s"\nread_timeout = "3s"', "read_timeout is 3s, longer than deadline (2s)"),
        ('connect_timeout = "31s"', "connect_timeout is 31s, longer than deadline (30s)"),
        ("max_connections = 0", "max_connections is 0; it must be 1 or more"),
        ('quiet = "0s"', "quiet: '0s' is out of range"),
        (
            'key_life = "25h"',
            "key_life is 25h, but Salesly may forget a key after 1d; it can only be shortened",
        ),
        ('key_margin = "13h"', "key_margin is 13h, more than half of the key's life; allowed is 12h or less"),
        ('key_margin = "29s"', "key_margin is 29s, but a request may take 30s; allowed is 30s or more"),
        (
            'key_life = "59s"',
            "key_life is 59s, but two requests under one key may take 30s each; allowed is 1min or more",
        ),
        (
            'key_life = "1min"\nkey_margin = "1s"',
            "key_margin is 1s, but a request may take 30s; allowed is 30s or more",
        ),
    ],
)
def test_a_wrong_optional_key_is_refused(tmp_path: Path, extra: str, words: str) -> None:
    message = refusal(tmp_path, GOOD + extra)
    assert words in message, message
    assert message.startswith("[shop] ")
    assert SECRET not in message


@pytest.mark.parametrize("name", ["key_life", "key_margin"])
def test_key_settings_need_a_dialect_with_keys(tmp_path: Path, name: str) -> None:
    message = refusal(tmp_path, GOOD.replace("salesly", "none") + f'{name} = "1min"')
    assert message == f"[shop] {name} is there, but an API of the dialect 'none' knows no keys"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8001", "127.9.9.9", "[::1]:8001"])
def test_plain_http_is_allowed_on_loopback(host: str) -> None:
    """Credentials stay on the machine there."""
    assert check_base_url(f"http://{host}/celper/") == f"http://{host}/celper"


@given(st.text(max_size=40) | st.text(max_size=30).map("https://a.example/".__add__))
def test_any_text_is_a_base_url_or_a_value_error(url: str) -> None:
    try:
        accepted = check_base_url(url)
    except ValueError:
        return
    assert accepted.lower().startswith(("https://", "http://"))
    assert not {"?", "#", " ", "\\"} & set(accepted)
