"""The catalogue of dialects: what it holds, and what it refuses to hold."""

from datetime import timedelta
from pathlib import Path

import pytest

from config.dialects import DIALECTS, load_dialects
from config.errors import ConfigError

GOOD = """
[shop]
title = "Shop"
header = "Idempotency-Key"
min_length = 1
max_length = 255
life = "24h"

[shop.server]
covers = ["POST /v1/orders", "DELETE *"]
scope = ["credential"]
fingerprint = ["method", "target", "header:Content-Type", "body"]
mismatch = { status = 409, code = "used" }
stored = "all"
"""


def load(folder: Path, text: str) -> None:
    """Read a catalogue of this text."""
    path = folder / "dialects.toml"
    path.write_text(text)
    load_dialects(path)


def test_the_catalogue_has_our_own_api_and_the_five() -> None:
    """Each has both what a client must know and what a server does."""
    dialects = load_dialects()
    assert set(dialects) >= {"firstseen", "celper", "chronapilot", "salesly", "stannp", "telness"}
    for name in ("firstseen", "celper", "chronapilot", "salesly", "stannp", "telness"):
        assert dialects[name].server, name
        assert dialects[name].life == timedelta(hours=24), name


def test_our_own_policy_is_the_strictest() -> None:
    """Method, path with query, content type and body must be the same; only final answers are stored."""
    server = load_dialects()["firstseen"].server
    assert server
    assert set(server.fingerprint) == {"method", "target", "header:Content-Type", "body"}
    assert (server.stored, server.quoted, server.scope) == ("final", True, ("credential", "method", "path"))


def test_a_good_catalogue_is_read(tmp_path: Path) -> None:
    """The text that the other tests break is good by itself."""
    load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("was", "becomes", "words"),
    [
        ('"Idempotency-Key"', '"Idempotency_Key"', "shop.header"),
        ('"Idempotency-Key"', '""', "shop.header"),
        ("min_length = 1", "min_length = 0", "shop.min_length"),
        ("min_length = 1", "min_length = 256", "min_length 256 is above max_length 255"),
        ("max_length = 255", "max_length = 5000", "shop.max_length"),
        ('life = "24h"', 'life = "1 day"', "shop.life: Value error, '1 day' is not a duration"),
        ('life = "24h"', 'life = "0s"', "shop.life: Value error, a key lives longer than 0s"),
        ("POST /v1/orders", "GET /v1/orders", "'GET /v1/orders' is not one of POST, PUT, PATCH, DELETE"),
        ("POST /v1/orders", "POST v1/orders", "'POST v1/orders' is not one of"),
        ("POST /v1/orders", "POST /v1/orders?a=1", "'POST /v1/orders?a=1' is not one of"),
        ("POST /v1/orders", "POST /v1/orders/", "'POST /v1/orders/' is not one of"),
        ('"target"', '"url"', "'url' is not one of method, path, target, body or header:<name>"),
        ('"header:Content-Type"', '"header:"', "'header:' is not one of"),
        ("status = 409", "status = 200", "shop.server.mismatch"),
        ('stored = "all"', 'stored = "some"', "shop.server.stored"),
        ('title = "Shop"', 'titel = "Shop"', "shop.title"),
        ("[shop]", "[shop", "cannot be read"),
    ],
)
def test_nonsense_is_refused_by_its_place(tmp_path: Path, was: str, becomes: str, words: str) -> None:
    """A wrong value is one sentence with the file, the entry and what is wrong."""
    assert was in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(was, becomes))
    assert words in str(caught.value), str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_catalogue_is_refused(tmp_path: Path) -> None:
    """A file that is not there is a sentence, too."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_dialects(tmp_path / "none.toml")


def test_the_catalogue_stands_beside_its_reader() -> None:
    """An installed copy finds it: it is data of the package."""
    assert DIALECTS.is_file()
    assert DIALECTS.parent.name == "config"
