"""The catalogue of providers: its entries, and the mistakes that loading refuses."""

import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest

from config.providers import PUBLIC_KEY, Provider, generate_secret, is_usable, load_providers
from config.providers.catalogue import CATALOGUE
from config.toml import ConfigError
from tests.services.presets import DECLARED, over

ENTRY = """\
title = "Acme"
event_id = "json:id"
window = "3d"
window_reason = "Acme retries for two days"
[scheme]
type = "hmac"
hash = "sha256"
content = "{body}"
signature = { in = "header:X-Acme", encoding = "hex" }
"""
TIMESTAMP = 'timestamp = { in = "header:X-Time", unit = "s", tolerance = 300 }'


def load(tmp_path: Path, text: str) -> Provider:
    """Load one entry."""
    (tmp_path / "acme.toml").write_text(text, encoding="utf-8")
    return load_providers(tmp_path)["acme"]


def refusal(tmp_path: Path, text: str) -> str:
    """Return the message that refuses an entry, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    file, _, sentence = str(caught.value).partition(": ")
    assert file == str(tmp_path / "acme.toml")
    return sentence


def test_the_catalogue_loads() -> None:
    """Every entry passes its own rules, and a verified one links its documentation."""
    catalogue = load_providers()
    assert len([provider for provider in catalogue.values() if provider.scheme]) >= 188
    for provider in catalogue.values():
        assert provider.window >= timedelta(days=1)
        assert provider.custom or provider.docs.startswith("https://") or not provider.verified
        assert not provider.window_reason.endswith(".")
        assert not provider.note or provider.note.endswith(".")


def test_every_file_is_an_entry() -> None:
    """No file of the folder is skipped, and no entry names itself."""
    files = list(CATALOGUE.glob("*.toml"))
    assert sorted(file.stem for file in files) == sorted(load_providers())
    assert not [file for file in files if "name" in tomllib.loads(file.read_text(encoding="utf-8"))]


def test_entries_are_in_order() -> None:
    """Standard Webhooks first, then companies by name, then those that sources describe."""
    names = list(load_providers())
    assert (names[0], names[-2:]) == ("standard-webhooks", ["hmac", "code"])
    assert names[1:-2] == sorted(names[1:-2])
    assert len(names) == len(load_providers())


def test_entries_are_read_lazily(tmp_path: Path) -> None:
    """An entry that no source uses costs nothing and, if broken, stops nothing."""
    (tmp_path / "acme.toml").write_text(ENTRY, encoding="utf-8")
    (tmp_path / "other.toml").write_text(ENTRY.replace("3d", "3"), encoding="utf-8")
    (tmp_path / "worse.toml").write_text("title = \n", encoding="utf-8")
    catalogue = load_providers(tmp_path)
    assert list(catalogue) == ["acme", "other", "worse"]
    assert catalogue["acme"] is catalogue["acme"]
    with pytest.raises(ConfigError, match=r"other\.toml: window: '3' is not a duration"):
        _ = catalogue["other"]


@pytest.mark.parametrize(
    "name", ["../acme", "folder/../acme", "./acme", "acme.toml", "Acme", "", "acme\n", "acme\0", "."]
)
def test_a_name_never_leaves_the_folder(tmp_path: Path, name: str) -> None:
    """A name that is not plain is no provider."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "acme.toml").write_text(ENTRY, encoding="utf-8")
    assert name not in load_providers(folder)
    with pytest.raises(KeyError):
        _ = load_providers(folder)[name]


@pytest.mark.parametrize("other", ["none", "../acme", "acme"])
def test_a_named_scheme_must_exist(tmp_path: Path, other: str) -> None:
    """`scheme` may name only another entry that has a scheme of its own."""
    text = ENTRY[: ENTRY.index("[scheme]")] + f'scheme = "{other}"\n'
    assert refusal(tmp_path, text) == f"scheme is {other!r}, which is no entry with a scheme"


def test_a_scheme_can_be_shared(tmp_path: Path) -> None:
    """Twenty providers sign as Standard Webhooks does, and its scheme is written once."""
    other = ENTRY[: ENTRY.index("[scheme]")] + 'scheme = "acme"\n'
    (tmp_path / "acme.toml").write_text(ENTRY, encoding="utf-8")
    (tmp_path / "other.toml").write_text(other, encoding="utf-8")
    catalogue = load_providers(tmp_path)
    assert catalogue["other"].scheme == catalogue["acme"].scheme


@pytest.mark.parametrize(
    ("name", "signed"),
    [
        ("standard-webhooks", True),
        ("svix", True),
        ("polar", True),
        ("stripe", True),
        ("slack", True),
        ("github", False),
        ("shopify", False),
    ],
)
def test_whether_the_id_is_signed_is_computed(name: str, signed: bool) -> None:  # noqa: FBT001 - a verdict
    """GitHub's and Shopify's ids are in headers that are not signed."""
    assert load_providers()[name].id_is_signed is signed


def test_ids_by_body_hash_need_a_signed_body() -> None:
    """Otherwise a replayed copy with another body would be another event."""
    for provider in load_providers().values():
        if provider.scheme and provider.scheme.type not in {"token", "basic"}:
            assert provider.policy != "body_hash" or provider.signs_body, provider.name


def test_a_token_signs_nothing(tmp_path: Path) -> None:
    """Neither the body nor the id."""
    scheme = '[scheme]\ntype = "token"\nsignature = { in = "header:X-Token" }\n'
    provider = load(tmp_path, ENTRY[: ENTRY.index("[scheme]")] + scheme)
    assert (provider.signs_body, provider.id_is_signed) == (False, False)


def test_an_id_in_the_content_is_signed(tmp_path: Path) -> None:
    """A header that the template includes is signed, with its name in any case."""
    text = ENTRY.replace('"json:id"', '"header:x-event"').replace('"{body}"', '"{header:X-Event}{body}"')
    assert load(tmp_path, text).id_is_signed


def test_rule_1_a_tolerance_needs_a_signed_timestamp(tmp_path: Path) -> None:
    """A timestamp that anybody can change protects nothing."""
    assert "timestamp is not in the signed bytes" in refusal(tmp_path, ENTRY + TIMESTAMP)
    assert load(tmp_path, ENTRY.replace("{body}", "{timestamp}{body}") + TIMESTAMP)
    assert load(tmp_path, ENTRY + TIMESTAMP.replace("header:X-Time", "json:time"))


def test_rule_2_an_id_outside_the_signed_bytes_is_unsigned(tmp_path: Path) -> None:
    """The ledger then compares the body's hash too."""
    assert not load(tmp_path, ENTRY.replace('"json:id"', '"header:X-Id"')).id_is_signed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("event_id = ", "event_type = "), "event_id is missing"),
        (("event_id = ", 'dedup = "none"\nevent_id = '), "dedup is 'none', but event_id makes it 'id'"),
        (
            ("event_id = ", 'dedup = "some"\nevent_id = '),
            "allowed is 'id', 'composite', 'body_hash' or 'none'",
        ),
    ],
)
def test_rule_3_the_policy_is_stated(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    """An entry without an id states its policy, and it may not contradict `event_id`."""
    assert sentence in refusal(tmp_path, ENTRY.replace(*change))


@pytest.mark.parametrize(
    ("line", "policy"),
    [
        ('event_id = ["json:a", "json:b"]', "composite"),
        ('event_id = "json:a|json:b"', "id"),
        ('dedup = "body_hash"', "body_hash"),
        ('dedup = "none"', "none"),
    ],
)
def test_the_policy_follows_from_the_entry(tmp_path: Path, line: str, policy: str) -> None:
    """Several places make a composite id; alternatives of one place do not."""
    assert load(tmp_path, ENTRY.replace('event_id = "json:id"', line)).policy == policy


def test_rule_4_a_batch_needs_an_id_per_item(tmp_path: Path) -> None:
    """Events of one batch must not share the delivery's id."""
    batch = ENTRY.replace("event_id", 'batch = "json:events"\nevent_id')
    assert "event_id must read item:" in refusal(tmp_path, batch)
    assert load(tmp_path, batch.replace("json:id", "item:id")).is_batch
    assert "has no batch" in refusal(tmp_path, ENTRY.replace("json:id", "item:id"))


def test_rule_5_the_window_has_a_floor(tmp_path: Path) -> None:
    """Ids are kept for a day or longer, and longer than an old delivery still verifies."""
    assert "shorter than 1d" in refusal(tmp_path, ENTRY.replace('"3d"', '"23h"'))
    tolerant = ENTRY.replace("{body}", "{timestamp}{body}") + TIMESTAMP.replace("300", "400000")
    assert "shorter than the scheme's tolerance" in refusal(tmp_path, tolerant)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ('"sha256"', '"md5"'),
            "scheme.hash is 'md5'; allowed is 'sha1', 'sha256', 'sha384' or 'sha512'",
        ),
        (('"hmac"', '"hmacc"'), "scheme.type is 'hmacc'; allowed is 'hmac'"),
        (("{body}", "{bdy}"), "scheme.content: {bdy} is not a placeholder; allowed are {body}"),
        (("{body}", "{body"), "has a brace without its other half"),
        (("{body}", "fixed"), "content takes nothing from the delivery"),
        (("{body}", "{id}{body}"), "{id} in the content and the key id go together"),
        (("{body}", "{timestamp}{body}"), "{timestamp} in the content needs"),
        (("{body}", "{secret}{body}"), "{secret} belongs into the content of a scheme of type 'hash'"),
        (("header:X-Acme", "headr:X-Acme"), "scheme.signature.in: 'headr:X-Acme' is not a place"),
        (("header:X-Acme", "header:X Acme"), "names nothing"),
        (("header:X-Acme", "json:sig"), "cannot stand inside the bytes that it signs"),
        ((', encoding = "hex"', ""), "signature.encoding is missing"),
        (('"hex"', '"hex", list_sep = "["'), "is not a regular expression"),
        (('"hex"', '"hex", list_sep = " *"'), "matches nothing at all"),
        (('"hex"', '"hex", pair_sep = "="'), "pair_sep and field go together"),
        (("json:id", "json:a..b"), "has an empty step"),
        (('"3d"', "3"), "window: found a number; write a number with its unit"),
        (('window = "3d"', ""), "window is missing"),
        (
            ('"json:id"', '"json:id?"'),
            "event_id: every part may be missing; at least one must be there always",
        ),
        (('"json:id"', '["json:a", "item:#"]'), "event_id reads item:, but the entry has no batch"),
        (('"json:id"', '"json:id"\nbatch_type = "a/b"'), "batch_type says when a body is a batch"),
        (('event_id = "json:id"', 'dedup = "none"\nwithout_id = "none"'), "there is no event_id"),
        (("window =", "deadline = 3\nwindow ="), "deadline: found a number"),
        (("window =", 'unread = ["retries"]\nwindow ='), "unread.0 is 'retries'; allowed is"),
        (("title", "titel"), "'titel' is not a known key; did you mean 'title'?"),
        (("[scheme]", "[schema]"), "'schema' is not a known key; did you mean 'scheme'?"),
        (('type = "hmac"', 'type = "token"'), "a scheme of type 'token' has no use for content, hash"),
        (('type = "hmac"', 'type = "rsa"'), "a scheme of type 'rsa' needs key"),
        (
            ("[scheme]", "success_status = 302\n[scheme]"),
            "success_status is 302; it must be 299 or less",
        ),
    ],
)
def test_a_wrong_entry_is_refused(tmp_path: Path, change: tuple[str, str], sentence: str) -> None:
    """One line has the entry, the key, what was found and what is allowed."""
    assert ENTRY.replace(*change) != ENTRY
    found = refusal(tmp_path, ENTRY.replace(*change))
    assert sentence in found
    assert "\n" not in found


CODE = ENTRY[: ENTRY.index("[scheme]")] + 'code = "acme"\noptions = ["audience"]\n'


def test_code_takes_the_place_of_a_scheme(tmp_path: Path) -> None:
    """It signs the body, so an id in the body is signed, and it names its options."""
    provider = load(tmp_path, CODE)
    assert (provider.signs_body, provider.id_is_signed) == (True, True)
    assert provider.option_names == {"audience"}
    assert not load(tmp_path, CODE.replace("json:id", "header:X-Id")).id_is_signed
    with pytest.raises(ConfigError, match="verified by code"):
        _ = provider.required_scheme


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (CODE + ENTRY[ENTRY.index("[scheme]") :], "exactly one of scheme, code, custom"),
        (CODE.replace('code = "acme"', ""), "exactly one of scheme, code, custom"),
        (CODE.replace('code = "acme"', "custom = true\ncode = 'acme'"), "exactly one of scheme, code"),
        (CODE.replace('code = "acme"', "custom = true"), "options are for code"),
    ],
)
def test_an_entry_verifies_in_one_way(tmp_path: Path, text: str, sentence: str) -> None:
    """By exactly one of scheme, code and custom; options need code."""
    assert sentence in refusal(tmp_path, text)


def test_broken_toml_names_its_line(tmp_path: Path) -> None:
    """The message has the line where parsing failed."""
    assert "line 2" in refusal(tmp_path, "docs = ''\ntitle = \n")
    assert "not valid TOML" in refusal(tmp_path, ENTRY + "[scheme]\n")


@over([provider for provider in DECLARED if provider.required_scheme.type not in PUBLIC_KEY])
def test_generated_secrets_are_usable(provider: Provider) -> None:
    """They have the provider's format and differ each time."""
    made = {generate_secret(provider) for _ in range(3)}
    assert len(made) == 3
    assert all(is_usable(secret, provider.required_scheme) and "," not in secret for secret in made)


def test_no_secret_is_generated_for_a_public_key(tmp_path: Path) -> None:
    """The provider signs with a private key of its own."""
    scheme = 'type = "ed25519"\nkey = { encoding = "ed25519-hex" }\n'
    text = ENTRY.replace('type = "hmac"\nhash = "sha256"\n', scheme)
    with pytest.raises(ConfigError, match="must be set by hand"):
        generate_secret(load(tmp_path, text))


@pytest.mark.parametrize("key", ["signs = []", "keyless = true", 'proof = ["X-A"]'])
def test_some_keys_are_only_for_code(tmp_path: Path, key: str) -> None:
    """A scheme already says what is signed and where the signature is."""
    assert "is for code" in refusal(tmp_path, ENTRY.replace("[scheme]", f"{key}\n[scheme]"))


def test_code_signs_the_body_unless_its_entry_says_otherwise(tmp_path: Path) -> None:
    provider = load(tmp_path, CODE)
    assert (provider.signs_body, provider.signs_url, provider.id_is_signed) == (True, False, True)
    provider = load(tmp_path, CODE + 'signs = ["url"]\n')
    assert (provider.signs_body, provider.signs_url, provider.id_is_signed) == (False, True, False)
    provider = load(tmp_path, CODE + 'keyless = true\nproof = ["X-Proof"]\n')
    assert (provider.needs_secret, provider.signature_headers) == (False, {"x-proof"})


def test_an_entry_may_say_that_nothing_is_signed(tmp_path: Path) -> None:
    """It has no scheme and needs no secret."""
    provider = load(
        tmp_path, CODE.replace('code = "acme"', 'verification = "none"').replace('options = ["audience"]', "")
    )
    assert (provider.needs_secret, provider.signs_body, provider.id_is_signed) == (False, False, False)
    with pytest.raises(ConfigError, match="signs nothing"):
        _ = provider.required_scheme


LAZY = """
import sys
from pathlib import Path
from config.providers import load_providers
from config.sources import load_sources
from receiver.endpoints import build_endpoints
build_endpoints(load_sources(Path(sys.argv[1]), load_providers(), {}))
print("cryptography" in sys.modules)
"""


@pytest.mark.parametrize(("name", "loaded"), [("stripe", "False"), ("discord", "True")])
def test_cryptography_is_imported_only_for_public_keys(tmp_path: Path, name: str, loaded: str) -> None:
    """A process whose sources share secrets never loads it."""
    file = tmp_path / "sources.toml"
    file.write_text(f'[a]\nprovider = "{name}"\nsecrets_env = "A"\n', encoding="utf-8")
    ran = subprocess.run([sys.executable, "-c", LAZY, str(file)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == loaded
