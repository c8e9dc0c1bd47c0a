"""`sources.toml`: the shipped sources, defaults, secrets, and the error message of each mistake."""

from datetime import timedelta
from pathlib import Path

import pytest

from config.providers import load_providers
from config.sources import SOURCES, Source, load_sources
from config.toml import ConfigError

PROVIDERS = load_providers()
STRIPE = '[a]\nprovider = "stripe"\nsecrets_env = "A"\n'
GITHUB = STRIPE.replace("stripe", "github")
HMAC = """
[a]
provider = "hmac"
secrets_env = "A"
[a.options]
hash = "sha256"
content = "{body}"
signature = { in = "header:X-Sig", encoding = "hex" }
event_id = "header:X-Id"
"""


def load(tmp_path: Path, text: str, **environ: str) -> Source:
    """Load a file of one source."""
    file = tmp_path / "sources.toml"
    file.write_text(text, encoding="utf-8")
    return load_sources(file, PROVIDERS, environ)["a"]


def refusal(tmp_path: Path, text: str, **environ: str) -> str:
    """Return the message that refuses a file, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, **environ)
    file, _, sentence = str(caught.value).partition(": ")
    assert file == str(tmp_path / "sources.toml")
    assert "\n" not in sentence
    return sentence


def test_the_shipped_sources_load() -> None:
    """All five load without a secret, and each names the variable that is not set."""
    sources = load_sources(SOURCES, PROVIDERS, {})
    assert set(sources) == {"stripe", "github", "shopify", "slack", "standard"}
    for source in sources.values():
        assert source.secrets == ()
        assert source.problem is not None
        assert source.secret_names[0] in source.problem


def test_defaults(tmp_path: Path) -> None:
    """A minimal table has the defaults that the shipped file documents."""
    source = load(tmp_path, STRIPE, A="whsec_1")
    assert (source.retention, source.payload_retention) == (timedelta(days=400), timedelta(days=30))
    assert (source.max_body, source.on_replay, source.tolerance) == (1_048_576, "run", None)
    assert (source.secrets, source.problem, source.warnings) == (("whsec_1",), None, ())


def test_payloads_never_outlive_ids(tmp_path: Path) -> None:
    """A shorter retention shortens the default of payload_retention."""
    source = load(tmp_path, STRIPE + 'retention = "5d"')
    assert source.payload_retention == timedelta(days=5)


def test_secrets_are_separated_by_commas(tmp_path: Path) -> None:
    """Blanks, empty entries and repeated secrets are dropped."""
    assert load(tmp_path, STRIPE, A=" one, two,,one ").secrets == ("one", "two")


def test_a_list_of_variables_holds_one_secret_each(tmp_path: Path) -> None:
    """So that a secret may contain a comma."""
    text = STRIPE.replace('"A"', '["A", "B", "C"]')
    source = load(tmp_path, text, A="x,y", B="z")
    assert source.secrets == ("x,y", "z")
    assert source.problem is None
    assert source.warnings == ("the environment variable C is not set",)


@pytest.mark.parametrize("environ", [{}, {"A": ""}, {"A": " , "}])
def test_a_source_without_a_secret_has_a_problem(tmp_path: Path, environ: dict[str, str]) -> None:
    """It loads, so that the others work; the problem names the variable."""
    source = load(tmp_path, STRIPE, **environ)
    assert source.secrets == ()
    assert source.problem is not None
    assert "the environment variable A is" in source.problem


def test_a_secret_in_the_wrong_encoding_is_a_warning(tmp_path: Path) -> None:
    """The warning has its position and does not quote it."""
    text = STRIPE.replace("stripe", "standard-webhooks")
    source = load(tmp_path, text, A="whsec_AAAA,whsec_hunter2!")
    assert source.secrets == ("whsec_AAAA",)
    assert source.warnings == ("secret 2 in A is not written as standard-webhooks's secrets are",)


def test_no_repr_shows_a_secret(tmp_path: Path) -> None:
    source = load(tmp_path, STRIPE, A="hunter2")
    assert "hunter2" not in f"{source!r} {source}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (STRIPE + "tolerence = 1", "'tolerence' is not a known key; did you mean 'tolerance'?"),
        (
            STRIPE.replace("stripe", "stripo"),
            "provider is 'stripo', which is not in the catalogue; did you mean 'stripe'?",
        ),
        (
            STRIPE.replace("stripe", "zzzzzz"),
            "provider is 'zzzzzz', which is not in the catalogue; `firstseen providers` lists them",
        ),
        (
            STRIPE.replace("[a]", "[A]"),
            "[A] is no name for a source; allowed are 1 to 64 of a-z, 0-9, _ and -",
        ),
        (STRIPE.replace("[a]", f"[{'a' * 65}]"), "is no name for a source"),
        ('[a]\nprovider = "stripe"', "secrets_env is missing"),
        ('[a]\nsecrets_env = "A"', "provider is missing"),
        ("a = 1", "[a] is a number; every source must be a table"),
        (STRIPE + 'tolerance = "60"', "tolerance is '60'; it must be a whole number"),
        (STRIPE + "tolerance = 0", "tolerance is 0; it must be 1 or more"),
        (GITHUB + "tolerance = 60", "tolerance is 60, but github signs no timestamp; leave it out"),
        (
            STRIPE + 'retention = "3d"',
            "retention is 3d, but stripe can send an event again for 4d (Stripe retries",
        ),
        (STRIPE + "retention = 30", "retention: found a number; write a number with its unit in quotes"),
        (STRIPE + 'retention = "0s"', "it must be more than 0s and at most 36500d"),
        (
            STRIPE + 'payload_retention = "401d"',
            "payload_retention is 401d, longer than retention: allowed is 400d",
        ),
        (
            STRIPE + 'retention = "4d"\ntolerance = 400000',
            "tolerance is 400000 seconds, longer than retention",
        ),
        (STRIPE + "max_body = 0", "max_body is 0; it must be 1 or more"),
        (STRIPE + "max_body = true", "max_body is true; it must be a whole number"),
        (STRIPE + 'keep_headers = "X-A"', "keep_headers is 'X-A'; it must be an array"),
        (STRIPE + 'keep_headers = ["X A"]', "keep_headers: 'X A' is not a header's name"),
        (STRIPE + 'keep_headers = ["AUTHORIZATION"]', "keep_headers has 'AUTHORIZATION'; credentials"),
        (STRIPE + 'keep_headers = ["Cookie"]', "keep_headers has 'Cookie'"),
        (STRIPE + 'keep_headers = ["stripe-signature"]', "keep_headers has 'stripe-signature'"),
        (GITHUB + 'keep_headers = ["X-Hub-Signature"]', "keep_headers has 'X-Hub-Signature'"),
        (STRIPE + 'on_replay = "skip"', "on_replay is 'skip'; allowed is 'run' or 'park'"),
        (
            STRIPE + 'on_replay = "park"',
            "the event's id is inside the bytes that stripe signs; only 'run' is allowed",
        ),
        (STRIPE + "options = { a = 1 }", "options.a is not a known option; stripe takes none"),
        (STRIPE + "[a.b]\nc = 1", "'b' is not a known key"),
        ("[a\n", "it is not valid TOML: Expected ']' at the end of a table declaration (at line 1"),
        (
            HMAC.replace("event_id", "evnt_id"),
            "options.evnt_id is not a known option; did you mean 'event_id'?",
        ),
        (HMAC.replace("event_id", "event_type"), "options.event_id is missing"),
        (HMAC.replace("sha256", "md5"), "options.hash is 'md5'; allowed is"),
        (HMAC.replace('hash = "sha256"', ""), "options: a scheme of type 'hmac' needs hash"),
        (HMAC + 'window = "1h"', "options.window is shorter than 1d"),
        (HMAC + 'window = "500d"', "retention is 400d, but hmac can send an event again for 500d"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """One line has the file, the source, the key, what was found and what is allowed."""
    assert sentence in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        STRIPE.replace('"A"', '"whsec_hunter2"'),
        STRIPE.replace('"A"', '["A", "hunter2"]'),
        STRIPE + 'secret = "hunter2"',
        STRIPE + 'options = "hunter2"',
        STRIPE + 'options = { key = "hunter2" }',
        HMAC + 'key = "hunter2"',
        HMAC + 'app_key = ["hunter2"]',
    ],
)
def test_a_secret_in_place_of_its_variable_is_not_quoted(tmp_path: Path, text: str) -> None:
    assert "hunter2" not in refusal(tmp_path, text, A="x")


@pytest.mark.parametrize("name", ["none.toml", "."])
def test_an_unreadable_file_is_refused(tmp_path: Path, name: str) -> None:
    """A missing file, and a folder in its place."""
    with pytest.raises(ConfigError, match=r"there is no such file|cannot be read"):
        load_sources(tmp_path / name, PROVIDERS, {})


@pytest.mark.parametrize("raw", [b"\xff", b"a = " + b"[" * 50_000])
def test_undecodable_and_deeply_nested_files_are_refused(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "sources.toml"
    file.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"not UTF-8|nested too deeply|not valid TOML"):
        load_sources(file, PROVIDERS, {})


def test_replays_are_guarded_where_they_are_possible(tmp_path: Path) -> None:
    """Only a signed body with an unsigned id can be replayed under another id."""
    assert load(tmp_path, GITHUB).replay_guard == "run"
    assert load(tmp_path, GITHUB + 'on_replay = "park"').replay_guard == "park"
    assert load(tmp_path, STRIPE).replay_guard is None
    assert load(tmp_path, HMAC).replay_guard == "run"


def test_a_token_source_cannot_park_replays(tmp_path: Path) -> None:
    """Nothing is signed, so equal bytes prove nothing."""
    token = HMAC.replace('hash = "sha256"\ncontent = "{body}"\n', 'type = "token"\n')
    token = token.replace(', encoding = "hex"', "").replace(
        'secrets_env = "A"', 'secrets_env = "A"\non_replay = "park"'
    )
    assert "hmac does not sign the body; only 'run' is allowed" in refusal(tmp_path, token)


def test_a_source_describes_its_own_sender(tmp_path: Path) -> None:
    """The options of provider `hmac` make a provider of this source alone."""
    source = load(tmp_path, HMAC + 'window = "7d"\nevent_type = "json:kind"\nsuccess_status = 202', A="k")
    assert source.provider.window == timedelta(days=7)
    assert source.provider.success_status == 202
    assert source.scheme.hash == "sha256"
    assert PROVIDERS["hmac"].scheme is None


def test_values_that_the_content_names_are_options(tmp_path: Path) -> None:
    """`{config:...}` makes an option required; no other is allowed."""
    text = HMAC.replace("{body}", "{config:app_key}{body}")
    assert "options.app_key is missing" in refusal(tmp_path, text)
    assert load(tmp_path, text + 'app_key = "k1"').options == {"app_key": "k1"}


STRAVA = '[a]\nprovider = "strava"\n'
SNS = '[a]\nprovider = "aws-sns"\noptions = { topic_arn = "arn" }\n'
OWN = """
[a]
provider = "code"
verifier = "my_webhooks:acme"
options = { event_id = "json:id" }
"""


def test_an_unsigned_sender_must_be_confirmed(tmp_path: Path) -> None:
    """`unverified = true` is required there, and refused where deliveries can be verified."""
    assert "strava signs nothing" in refusal(tmp_path, STRAVA)
    source = load(tmp_path, f"{STRAVA}unverified = true")
    assert (source.problem, source.secrets, source.replay_guard) == (None, (), None)
    assert "stripe can be verified" in refusal(tmp_path, f"{STRIPE}unverified = true")
    assert "shares no secret" in refusal(tmp_path, f'{STRAVA}unverified = true\nsecrets_env = "A"')


def test_some_senders_share_no_secret(tmp_path: Path) -> None:
    """Their sources have none and no problem; others must name theirs."""
    source = load(tmp_path, SNS)
    assert (source.problem, source.secrets, source.options) == (None, (), {"topic_arn": "arn"})
    assert "aws-sns shares no secret" in refusal(tmp_path, f'{SNS}secrets_env = "A"')
    assert "options.topic_arn is missing" in refusal(tmp_path, '[a]\nprovider = "aws-sns"\n')
    assert refusal(tmp_path, '[a]\nprovider = "stripe"\n').startswith("[a] secrets_env is missing")


def test_a_verifier_of_the_user(tmp_path: Path) -> None:
    """The source names it and says where the id is; a secret is optional."""
    source = load(tmp_path, OWN)
    assert (source.provider.code, source.provider.keyless, source.problem) == ("my_webhooks:acme", True, None)
    with_secret = load(tmp_path, OWN.replace("options", 'secrets_env = "A"\noptions'), A="x")
    assert (with_secret.secrets, with_secret.provider.needs_secret) == (("x",), True)
    token = load(tmp_path, OWN.replace('"json:id"', '"json:id", signs = [], proof = ["X-Token"]'))
    assert (token.provider.signs_body, token.provider.id_is_signed) == (False, False)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (OWN.replace('verifier = "my_webhooks:acme"', ""), "verifier is missing; name your function"),
        (OWN.replace(":acme", ".acme"), "verifier is 'my_webhooks.acme'; write module:function"),
        (OWN.replace('"code"', '"stripe"'), "verifier is set, but stripe is verified already"),
        (OWN.replace("event_id", "event_idd"), "options.event_idd is not a known option; did you mean"),
        (OWN.replace('"json:id"', '"json:id", content = "{body}"'), "options.content is not a known option"),
        (OWN.replace('event_id = "json:id"', ""), "options"),
        (OWN + 'keep_headers = ["X-Token"]', ""),
    ],
)
def test_a_wrong_verifier_of_the_user_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    if not sentence:
        text = text.replace('"json:id"', '"json:id", proof = ["X-Token"]')
        sentence = "keep_headers has 'X-Token'"
    assert sentence in refusal(tmp_path, text)


META = '[a]\nprovider = "meta"\nsecrets_env = "A"\n'
OPTED_IN = 'handshake = true\nverify_token_env = "V"\n'


def test_unsigned_handshakes_are_opt_in(tmp_path: Path) -> None:
    """Verify tokens are read like secrets, and shown as little."""
    assert not load(tmp_path, META).handshake
    source = load(tmp_path, META + OPTED_IN, V="t-old, t-new")
    assert (source.handshake, source.verify_tokens) == (True, ("t-old", "t-new"))
    assert "t-old" not in repr(source)
    (warning,) = load(tmp_path, META + OPTED_IN, A="secret").warnings
    assert warning == "the environment variable V holds no verify token, so the handshake gets no answer"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (META + "handshake = true\n", "verify_token_env is missing; meta's handshake holds a token"),
        (META + 'verify_token_env = "V"\n', "leave it out"),
        (META + OPTED_IN.replace('"V"', '"tok-en"'), "never the token"),
        (META.replace("meta", "stripe") + "handshake = true\n", "stripe has no unsigned handshake"),
        (META.replace("meta", "slack") + "handshake = true\n", "slack has no unsigned handshake"),
        (META.replace("meta", "okta") + OPTED_IN, "leave it out"),
    ],
)
def test_a_wrong_opt_in_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    """One that does nothing, or that lacks its token."""
    found = refusal(tmp_path, text)
    assert sentence in found
    assert "tok-en" not in found
